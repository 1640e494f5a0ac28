-- The sequences that were set past the highest value. $1 entity, $2 generation, $3 their names.
UPDATE {relay}.backfill SET sequences = $3 WHERE source_id = {source} AND entity = $1 AND generation = $2
