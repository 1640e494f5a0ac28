-- Pages that were handed out and are not done, by whoever. $1 entity.
SELECT page, after, until FROM {relay}.backfill_page WHERE source_id = {source} AND entity = $1 ORDER BY page
