-- Read after the claim, in a later statement, for SKIP LOCKED on rows breaks order. $1 lane, $2 position, $3 highest id
-- claimed, $4 stopped aggregate types, $5 and $6 the aggregates claimed, $7 aggregate types that pass failed events over,
-- $8 due retries claimed. First row: how many pending events lie in the scanned range, claimed or not. Then, for each
-- aggregate that has any, its lowest event that blocks (retry, held or failed): a probe each, unless the whole lane has none.
SELECT NULL::bigint AS id, NULL::text AS aggregate_type, NULL::text AS aggregate_id, NULL::text AS status,
       (SELECT count(*) FROM {outbox}
        WHERE {lane} = $1 AND {status} = {pending} AND {id} BETWEEN $2 AND $3 AND {aggregate_type}::text <> ALL ($4::text[])) AS pending
UNION ALL
SELECT b.id, k.aggregate_type, k.aggregate_id, b.status, NULL
FROM unnest($5::text[], $6::text[]) AS k (aggregate_type, aggregate_id)
CROSS JOIN LATERAL (
    SELECT {id} AS id, {status}::text AS status
    FROM {outbox}
    WHERE {lane} = $1 AND {hash} = {hash_of_key} AND {status} IN ({retry}, {held}, {failed})
      AND {aggregate_type}::text = k.aggregate_type AND {aggregate_id}::text = k.aggregate_id
      AND NOT ({status} = {failed} AND k.aggregate_type = ANY ($7::text[]))
      AND {id} <> ALL ($8::bigint[])
    ORDER BY {lane}, {hash}, {id}
    LIMIT 1
) b
WHERE EXISTS (SELECT FROM {outbox} WHERE {lane} = $1 AND {status} IN ({retry}, {held}, {failed}))
