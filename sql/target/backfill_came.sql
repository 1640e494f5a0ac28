-- Rows that had been left out and no longer are. $1 entity, $2 keys, $3 how many of them are in the new table now.
WITH came AS (
    DELETE FROM {relay}.backfill_left WHERE source_id = {source} AND entity = $1 AND key = ANY ($2::text[])
)
UPDATE {relay}.backfill SET rows = rows + $3, touched_at = now() WHERE source_id = {source} AND entity = $1
