-- Aggregates that hold events back although nothing blocks them any more: their first event that waits is itself held, and its
-- event type is mapped. One probe an aggregate, over the index (lane, hash, id): the next hash above the last one.
-- $1 lane, $2 the hash to begin at, $3 how many aggregates to look at, $4 aggregate types that pass failed events over,
-- $5 and $6 the mapped pairs of aggregate type and event type. Gives every aggregate looked at; `free` ones are to be released.
WITH RECURSIVE step AS (
    (SELECT {hash} AS hash, {aggregate_type}::text AS aggregate_type, {aggregate_id}::text AS aggregate_id, 1 AS n
     FROM {outbox}
     WHERE {lane} = $1 AND {status} IN ({retry}, {held}, {failed}) AND {hash} >= $2
     ORDER BY {lane}, {hash}, {id} LIMIT 1)
    UNION ALL
    SELECT s.hash, s.aggregate_type, s.aggregate_id, step.n + 1
    FROM step
    CROSS JOIN LATERAL (
        SELECT {hash} AS hash, {aggregate_type}::text AS aggregate_type, {aggregate_id}::text AS aggregate_id
        FROM {outbox}
        WHERE {lane} = $1 AND {status} IN ({retry}, {held}, {failed}) AND {hash} > step.hash
        ORDER BY {lane}, {hash}, {id} LIMIT 1
    ) s
    WHERE step.n < $3
)
SELECT k.hash, k.aggregate_type, k.aggregate_id,
       coalesce(first.is_held AND (first.aggregate_type, first.event_type) IN (SELECT * FROM unnest($5::text[], $6::text[])), false) AS free
FROM step k
LEFT JOIN LATERAL (
    SELECT {status} = {held} AS is_held, {aggregate_type}::text AS aggregate_type, {event_type}::text AS event_type
    FROM {outbox}
    WHERE {lane} = $1 AND {hash} = k.hash AND {status} IN ({retry}, {held}, {failed})
      AND {aggregate_type}::text = k.aggregate_type AND {aggregate_id}::text = k.aggregate_id
      AND NOT ({status} = {failed} AND k.aggregate_type = ANY ($4::text[]))
    ORDER BY {lane}, {hash}, {id} LIMIT 1
) first ON true
ORDER BY k.hash
