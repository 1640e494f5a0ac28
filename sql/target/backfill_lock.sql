-- How far pages were handed out; nobody else hands one out meanwhile. $1 entity.
SELECT after, exhausted, pages FROM {relay}.backfill WHERE source_id = {source} AND entity = $1 FOR UPDATE
