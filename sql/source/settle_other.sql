-- Everything but processed. The column in the CASE gives it its type (an enum, in an adopted table). $1 ids, $2 and $3 the times between which
-- they were created, $4 status words, $5 attempts, $6 seconds until the next attempt or NULL, $7 error or NULL.
UPDATE {outbox}
SET {status} = CASE n.relay_status WHEN 'retry' THEN {retry} WHEN 'held' THEN {held} WHEN 'failed' THEN {failed} ELSE {status} END,
    {attempts} = n.relay_attempts,
    {next_attempt_at} = clock_timestamp() + make_interval(secs => n.relay_seconds),
    {last_error} = n.relay_error
FROM unnest($1::bigint[], $4::text[], $5::int[], $6::float8[], $7::text[]) AS n (relay_event, relay_status, relay_attempts, relay_seconds, relay_error)
WHERE {id} = n.relay_event AND {within}
