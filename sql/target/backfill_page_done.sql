-- All lanes of a page are done: its rows count once, whoever comes second. $1 entity, $2 page, $3 rows a second.
WITH page AS (
    DELETE FROM {relay}.backfill_page WHERE source_id = {source} AND entity = $1 AND page = $2 RETURNING page
), lane AS (
    DELETE FROM {relay}.backfill_lane WHERE source_id = {source} AND entity = $1 AND page = $2 RETURNING rows
)
UPDATE {relay}.backfill SET rows = rows + (SELECT coalesce(sum(rows), 0) FROM lane), rate = $3, touched_at = now()
WHERE source_id = {source} AND entity = $1 AND EXISTS (SELECT FROM page)
