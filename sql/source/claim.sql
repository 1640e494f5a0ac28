-- The oldest pending events of a locked lane. $1 lane, $2 position, $3 stopped aggregate types, $4 events, $5 bytes.
-- Ordered by the index's own columns, so that no plan sorts the lane's backlog. Bytes are counted without detoasting what is
-- small, and what is large is first cut by its stored size: to unpack 1,000 events of 5 MB takes longer than any deadline. The
-- first event passes whatever its size. Where all are small and fit together, as nearly always, nothing is counted row by row:
-- that took a third of the statement's time. In no order that can be relied on: the caller sorts. An adopted table's columns may be nullable: what is missing there is the event's
-- matter, never the lane's.
WITH locked AS MATERIALIZED (
    SELECT {id} AS id, {event_id} AS event_id, {aggregate_type} AS aggregate_type, {aggregate_id} AS aggregate_id,
           {event_type} AS event_type, {payload} AS payload, {headers} AS headers, {written_at} AS created_at,
           {attempts} AS attempts, pg_column_size({payload})::bigint AS bytes
    FROM {outbox}
    WHERE {lane} = $1 AND {status} = {pending} AND {id} >= $2
      AND {aggregate_type}::text <> ALL ($3::text[])
    ORDER BY {lane}, {id}
    LIMIT $4
    FOR NO KEY UPDATE SKIP LOCKED
), whole AS MATERIALIZED (
    SELECT count(*) AS locked, coalesce(max(bytes) <= 1500 AND sum(bytes) < $5, true) AS fits FROM locked
), stored AS (
    SELECT *, coalesce(sum(bytes) OVER w, 0) AS bytes_before, coalesce(sum((bytes > 30000)::int) OVER w, 0) AS large_before
    FROM locked
    WHERE NOT (SELECT fits FROM whole)
    WINDOW w AS (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
), sized AS (
    SELECT *, coalesce(sum(CASE WHEN bytes <= 1500 THEN bytes ELSE octet_length(payload::text) END)
                       OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before
    FROM stored
    WHERE bytes_before < $5 AND large_before < 32
), taken AS (
    SELECT id, event_id, aggregate_type, aggregate_id, event_type, payload, headers, created_at, attempts
    FROM locked
    WHERE (SELECT fits FROM whole)
    UNION ALL
    SELECT id, event_id, aggregate_type, aggregate_id, event_type, payload, headers, created_at, attempts
    FROM sized
    WHERE before < $5
)
SELECT id::bigint, event_id::uuid, aggregate_type::text, aggregate_id::text, coalesce(event_type::text, '') AS event_type,
       coalesce(payload::text, 'null') AS payload, headers::text, created_at,
       coalesce(attempts::int, 0) AS attempts, NULL::float8 AS failing_for, (SELECT locked FROM whole) AS locked
FROM taken
