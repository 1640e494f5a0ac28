-- Events that stayed unapplied although a later one of their aggregate was settled: they are never applied by themselves.
-- $1 lane, $2 and $3 aggregates, $4 the highest id settled as applied for each, $5 aggregate types that pass failed events over;
-- of the others a failed one is told of too, for nothing but an operator's force may revive it now. Pending and waiting events
-- stand in different indexes; asked together, neither is used, and the whole outbox is read.
WITH k AS MATERIALIZED (
    SELECT * FROM unnest($2::text[], $3::text[], $4::bigint[]) AS k (aggregate_type, aggregate_id, settled)
), low AS MATERIALIZED (
    SELECT {id} AS id, {aggregate_type}::text AS aggregate_type, {aggregate_id}::text AS aggregate_id
    FROM {outbox}
    WHERE {lane} = $1 AND {status} = {pending} AND {id} < (SELECT max(settled) FROM k)
), stale AS MATERIALIZED (
    SELECT low.id, k.aggregate_type
    FROM low JOIN k ON low.aggregate_type = k.aggregate_type AND low.aggregate_id = k.aggregate_id AND low.id < k.settled
    UNION ALL
    SELECT b.id, k.aggregate_type
    FROM k CROSS JOIN LATERAL (
        SELECT {id} AS id FROM {outbox}
        WHERE {lane} = $1 AND {hash} = {hash_of_key} AND {status} IN ({retry}, {held}, {failed})
          AND NOT ({status} = {failed} AND k.aggregate_type = ANY ($5::text[]))
          AND {id} < k.settled AND {aggregate_type}::text = k.aggregate_type AND {aggregate_id}::text = k.aggregate_id
    ) b
)
UPDATE {outbox}
SET {status} = {failed}, {next_attempt_at} = NULL, {last_error} = 'overtaken: a later event of its aggregate was applied before the source went back in time'
FROM stale
WHERE {outbox}.{id} = stale.id
RETURNING {outbox}.{id}::bigint, stale.aggregate_type
