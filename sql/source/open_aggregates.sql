-- Which of these aggregates have events that are not applied yet, under the lane's lock; `waits_for`: the first in retry, held or failed;
-- `brings`: the newest pending one of a type that writes a whole row, and `brings_key`: of which row. First row: how many pending events of the aggregate type
-- were looked at; as many as asked for: there may be more. $1 lane, $2 aggregate type, $3 aggregate ids, $4 pending at most, $5 those types,
-- $6 the key's columns.
WITH pending AS MATERIALIZED (
    SELECT {aggregate_id}::text AS aggregate_id, {id}::bigint AS id, {event_type}::text = ANY ($5::text[]) AS whole
    FROM {outbox}
    WHERE {lane} = $1 AND {status} = {pending} AND {aggregate_type}::text = $2
    ORDER BY {lane}, {id} LIMIT $4
), open AS MATERIALIZED (
    SELECT p.aggregate_id, max(p.id) FILTER (WHERE p.whole) AS brings
    FROM pending p WHERE p.aggregate_id = ANY ($3::text[]) GROUP BY p.aggregate_id
)
SELECT NULL::text AS aggregate_id, NULL::bigint AS waits_for, false AS failed, NULL::bigint AS brings, NULL::text[] AS brings_key, count(*) AS pending FROM pending
UNION ALL
SELECT k.aggregate_id, b.id, coalesce(b.failed, false), o.brings, p.key, NULL
FROM (SELECT $2::text AS aggregate_type, unnest($3::text[]) AS aggregate_id) AS k
LEFT JOIN open o ON o.aggregate_id = k.aggregate_id
LEFT JOIN LATERAL (
    SELECT ARRAY(SELECT {payload}::jsonb ->> c.name FROM unnest($6::text[]) WITH ORDINALITY AS c (name, n) ORDER BY c.n) AS key
    FROM {outbox} WHERE {id} = o.brings
) p ON true
LEFT JOIN LATERAL (
    SELECT {id}::bigint AS id, {status} = {failed} AS failed
    FROM {outbox}
    -- Where nothing of the lane waits, which is nearly always, no aggregate is looked for.
    WHERE (SELECT EXISTS (SELECT FROM {outbox} WHERE {lane} = $1 AND {status} IN ({retry}, {held}, {failed})))
      AND {lane} = $1 AND {hash} = {hash_of_key} AND {status} IN ({retry}, {held}, {failed})
      AND {aggregate_type}::text = k.aggregate_type AND {aggregate_id}::text = k.aggregate_id
    ORDER BY {lane}, {hash}, {id} LIMIT 1
) b ON true
WHERE b.id IS NOT NULL OR o.aggregate_id IS NOT NULL
