-- Retries whose time has come. $1 lane, $2 stopped aggregate types, $3 events, $4 bytes, $5 highest id that may be taken:
-- above it pending events were not looked at, and one of them might be an earlier event of the same aggregate.
-- An adopted table's columns may be nullable: what is missing there is the event's matter, never the lane's.
WITH locked AS MATERIALIZED (
    SELECT {id} AS id, {event_id} AS event_id, {aggregate_type} AS aggregate_type, {aggregate_id} AS aggregate_id,
           {event_type} AS event_type, {payload} AS payload, {headers} AS headers, {written_at} AS created_at,
           {attempts} AS attempts
    FROM {outbox}
    WHERE {lane} = $1 AND {status} = {retry} AND {next_attempt_at} <= now() AND {id} <= $5
      AND {aggregate_type}::text <> ALL ($2::text[])
    ORDER BY {lane}, {next_attempt_at}
    LIMIT $3
    FOR NO KEY UPDATE SKIP LOCKED
), stored AS (
    SELECT *, coalesce(sum(bytes) OVER w, 0) AS bytes_before, coalesce(sum((bytes > 30000)::int) OVER w, 0) AS large_before,
           count(*) OVER () AS locked
    FROM (SELECT *, pg_column_size(payload)::bigint AS bytes FROM locked) s
    WINDOW w AS (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
), sized AS (
    SELECT *, coalesce(sum(CASE WHEN bytes <= 1500 THEN bytes ELSE octet_length(payload::text) END)
                       OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before
    FROM stored
    WHERE bytes_before < $4 AND large_before < 32
)
SELECT s.id::bigint, s.event_id::uuid, s.aggregate_type::text, s.aggregate_id::text, coalesce(s.event_type::text, '') AS event_type,
       coalesce(s.payload::text, 'null') AS payload, s.headers::text, s.created_at,
       coalesce(s.attempts::int, 0) AS attempts, extract(epoch FROM clock_timestamp() - f.first_at)::float8 AS failing_for, s.locked
FROM sized s
LEFT JOIN {relay}.failure f ON f.id = s.id
WHERE s.before < $4
ORDER BY s.id
