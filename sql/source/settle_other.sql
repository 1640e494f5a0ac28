-- Everything but processed. The column in the CASE gives it its type (an enum, in an adopted table). $1 ids, $2 status words, $3 attempts, $4 seconds until the next attempt or NULL, $5 error or NULL.
UPDATE {outbox}
SET {status} = CASE n.relay_status WHEN 'retry' THEN {retry} WHEN 'held' THEN {held} WHEN 'failed' THEN {failed} ELSE {status} END,
    {attempts} = n.relay_attempts,
    {next_attempt_at} = clock_timestamp() + make_interval(secs => n.relay_seconds),
    {last_error} = n.relay_error
FROM unnest($1::bigint[], $2::text[], $3::int[], $4::float8[], $5::text[]) AS n (relay_event, relay_status, relay_attempts, relay_seconds, relay_error)
WHERE {id} = n.relay_event
