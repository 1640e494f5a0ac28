-- The lanes of a page that are done. $1 entity, $2 page.
SELECT lane FROM {relay}.backfill_lane WHERE source_id = {source} AND entity = $1 AND page = $2
