-- The oldest pending events of several locked lanes. $1 lanes, $2 their positions, $3 stopped aggregate types, $4 events of a lane,
-- $5 bytes of all, as stored. Like claim.sql, but all of a lane or nothing: a lane with a large event has one row without an id, and so
-- has each lane where all are too large together. They are claimed one by one.
WITH locked AS MATERIALIZED (
    SELECT n.at, e.*
    FROM unnest($1::int[], $2::bigint[]) WITH ORDINALITY AS n (lane, position, at)
    CROSS JOIN LATERAL (
        SELECT {id} AS id, {event_id} AS event_id, {aggregate_type} AS aggregate_type, {aggregate_id} AS aggregate_id,
               {event_type} AS event_type, {payload} AS payload, {headers} AS headers, {written_at} AS created_at,
               {attempts} AS attempts, pg_column_size({payload})::bigint AS bytes
        FROM {outbox}
        WHERE {lane} = n.lane AND {status} = {pending} AND {id} >= n.position
          AND {aggregate_type}::text <> ALL ($3::text[])
        ORDER BY {lane}, {id}
        LIMIT $4
        FOR NO KEY UPDATE SKIP LOCKED
    ) e
), large AS MATERIALIZED (
    SELECT at FROM locked GROUP BY at
    HAVING max(bytes) > 30000 OR (SELECT sum(bytes) FROM locked WHERE bytes <= 30000) > $5
)
SELECT at, NULL::bigint AS id, NULL::uuid AS event_id, NULL::text AS aggregate_type, NULL::text AS aggregate_id,
       NULL::text AS event_type, NULL::text AS payload, NULL::text AS headers, NULL::timestamptz AS created_at, NULL::int AS attempts,
       NULL::float8 AS failing_for
FROM large
UNION ALL
SELECT at, id::bigint, event_id::uuid, aggregate_type::text, aggregate_id::text, coalesce(event_type::text, ''),
       coalesce(payload::text, 'null'), headers::text, created_at, coalesce(attempts::int, 0), NULL
FROM locked
WHERE at NOT IN (SELECT at FROM large)
