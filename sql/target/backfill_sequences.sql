-- The sequences that were set past the highest value. $1 entity, $2 their names.
UPDATE {relay}.backfill SET sequences = $2 WHERE source_id = {source} AND entity = $1
