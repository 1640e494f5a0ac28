-- Which of these events ($2) have a newer one of their aggregate among the batches settled after a token. $1 lane, $3 token.
WITH k AS MATERIALIZED (
    SELECT {id}::bigint AS id, {aggregate_type}::text AS aggregate_type, {aggregate_id}::text AS aggregate_id
    FROM {outbox} WHERE {id} = ANY ($2::bigint[])
), settled AS MATERIALIZED (
    SELECT DISTINCT unnest(ids) AS id FROM {relay}.batch_log WHERE lane = $1 AND token > $3
)
SELECT DISTINCT k.id
FROM settled s
JOIN {outbox} o ON o.{id} = s.id
JOIN k ON k.aggregate_type = o.{aggregate_type}::text AND k.aggregate_id = o.{aggregate_id}::text AND k.id < s.id
WHERE o.{status} = {processed}
