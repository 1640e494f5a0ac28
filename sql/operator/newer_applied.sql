-- Which of these events ($1) have a newer one of their aggregate that was applied. No index leads there: this walks all events
-- newer than the oldest of these, once, and is therefore asked before the lane is locked; newer_since.sql asks for the rest.
WITH k AS MATERIALIZED (
    SELECT {id}::bigint AS id, {aggregate_type}::text AS aggregate_type, {aggregate_id}::text AS aggregate_id
    FROM {outbox} WHERE {id} = ANY ($1::bigint[])
)
SELECT DISTINCT k.id
FROM k
JOIN {outbox} o ON o.{aggregate_type}::text = k.aggregate_type AND o.{aggregate_id}::text = k.aggregate_id AND o.{id} > k.id
WHERE o.{status} = {processed} AND o.{id} > (SELECT min(id) FROM k)
