-- Held events that nothing blocks any more, lowest first, at most $4 an aggregate. $1 lane, $2 and $3 the aggregates,
-- $5 aggregate types that pass failed events over. Held events behind another retry or failed one stay.
UPDATE {outbox}
SET {status} = {pending}
WHERE {id} IN (
    SELECT f.id
    FROM unnest($2::text[], $3::text[]) AS k (aggregate_type, aggregate_id)
    CROSS JOIN LATERAL (
        SELECT b.id, count(*) FILTER (WHERE NOT b.is_held) OVER (ORDER BY b.id) AS blockers
        FROM (SELECT {id} AS id, {status} = {held} AS is_held
              FROM {outbox}
              WHERE {lane} = $1 AND {hash} = {hash_of_key} AND {status} IN ({retry}, {held}, {failed})
                AND {aggregate_type}::text = k.aggregate_type AND {aggregate_id}::text = k.aggregate_id
                AND NOT ({status} = {failed} AND k.aggregate_type = ANY ($5::text[]))
              ORDER BY {lane}, {hash}, {id}
              LIMIT $4) b
    ) f
    WHERE f.blockers = 0)
  AND {status} = {held}
RETURNING {id}::bigint
