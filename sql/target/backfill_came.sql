-- Rows that had been left out and no longer are; no row: the copy was begun anew meanwhile. $1 entity, $2 generation, $3 keys, $4 how many of
-- them are in the new table now.
WITH came AS (
    DELETE FROM {relay}.backfill_left WHERE source_id = {source} AND entity = $1 AND key = ANY ($3::text[])
      AND EXISTS (SELECT FROM {relay}.backfill WHERE source_id = {source} AND entity = $1 AND generation = $2)
)
UPDATE {relay}.backfill SET rows = rows + $4, touched_at = now() WHERE source_id = {source} AND entity = $1 AND generation = $2
RETURNING true
