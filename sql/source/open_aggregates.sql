-- Which of these aggregates have events that are not applied yet, under the lane's lock. First row: how many pending events of the
-- type were looked at; as many as asked for: there may be more. $1 lane, $2 aggregate type, $3 aggregate ids, $4 pending at most.
WITH pending AS MATERIALIZED (
    SELECT {aggregate_id}::text AS aggregate_id
    FROM {outbox}
    WHERE {lane} = $1 AND {status} = {pending} AND {aggregate_type}::text = $2
    ORDER BY {lane}, {id} LIMIT $4
)
SELECT NULL::text AS aggregate_id, false AS waits, count(*) AS pending FROM pending
UNION ALL
SELECT k.aggregate_id, b.id IS NOT NULL, NULL
FROM (SELECT $2::text AS aggregate_type, unnest($3::text[]) AS aggregate_id) AS k
LEFT JOIN LATERAL (
    SELECT {id} AS id
    FROM {outbox}
    WHERE {lane} = $1 AND {hash} = {hash_of_key} AND {status} IN ({retry}, {held}, {failed})
      AND {aggregate_type}::text = k.aggregate_type AND {aggregate_id}::text = k.aggregate_id
    ORDER BY {lane}, {hash}, {id} LIMIT 1
) b ON true
WHERE b.id IS NOT NULL OR k.aggregate_id IN (SELECT aggregate_id FROM pending)
