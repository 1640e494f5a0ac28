-- All lanes of a page are done: its rows count once, whoever comes second. Not a page of the same number of a copy that was begun anew: one
-- statement sees the generation and the pages as of one moment. $1 entity, $2 generation, $3 page, $4 rows a second.
WITH page AS (
    DELETE FROM {relay}.backfill_page WHERE source_id = {source} AND entity = $1 AND page = $3
      AND EXISTS (SELECT FROM {relay}.backfill WHERE source_id = {source} AND entity = $1 AND generation = $2) RETURNING page
), lane AS (
    DELETE FROM {relay}.backfill_lane WHERE source_id = {source} AND entity = $1 AND page = $3
      AND EXISTS (SELECT FROM {relay}.backfill WHERE source_id = {source} AND entity = $1 AND generation = $2) RETURNING rows
)
UPDATE {relay}.backfill SET rows = rows + (SELECT coalesce(sum(rows), 0) FROM lane), rate = $4, touched_at = now()
WHERE source_id = {source} AND entity = $1 AND generation = $2 AND EXISTS (SELECT FROM page)
