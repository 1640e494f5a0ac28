-- Rows that were left out, a part at a time. $1 entity, $2 after which key, $3 how many.
SELECT key, lane, reason, code, message, event FROM {relay}.backfill_left
WHERE source_id = {source} AND entity = $1 AND ($2::text IS NULL OR key > $2) ORDER BY key LIMIT $3
