-- The id of the event with this event_id ($1). Few outboxes have an index for it: bounded by the statement's timeout.
SELECT {id}::bigint FROM {outbox} WHERE {event_id}::uuid = $1 LIMIT 1
