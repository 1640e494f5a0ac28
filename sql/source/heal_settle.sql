-- The outbox forgot this batch: its events get the outcome that the target tells, whatever their status. By id and event_id
-- both: after a failover the same ids may have been given to other events. $1 ids, $2 event ids, $3 given up.
UPDATE {outbox}
SET {status} = CASE WHEN t.relay_given_up THEN {failed} WHEN NOT t.relay_given_up THEN {processed} ELSE {status} END,
    {processed_at} = CASE WHEN t.relay_given_up THEN NULL ELSE clock_timestamp() END,
    {next_attempt_at} = NULL,
    {last_error} = CASE WHEN t.relay_given_up THEN coalesce({last_error}, 'given up before the source went back in time') ELSE NULL END
FROM unnest($1::bigint[], $2::uuid[], $3::bool[]) AS t (relay_event, relay_event_id, relay_given_up)
WHERE {id} = t.relay_event AND {event_id}::uuid = t.relay_event_id
RETURNING t.relay_event
