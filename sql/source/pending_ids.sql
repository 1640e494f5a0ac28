-- The pending events of the scanned range, claimed or not: asked only when recheck.sql counted more than were claimed.
-- $1 lane, $2 position, $3 highest id claimed, $4 stopped aggregate types.
SELECT {id}::bigint AS id, {aggregate_type}::text AS aggregate_type, {aggregate_id}::text AS aggregate_id
FROM {outbox}
WHERE {lane} = $1 AND {status} = {pending} AND {id} BETWEEN $2 AND $3 AND {aggregate_type}::text <> ALL ($4::text[])
ORDER BY {lane}, {id}
