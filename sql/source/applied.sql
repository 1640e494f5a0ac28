-- Which of these events are seen to be applied, and of which row each is: after a failover of the legacy database its id may be another
-- one's. One that is gone may have been applied, or was skipped, deleted by somebody or lost: nothing is said of it. $1 ids, $2 aggregate type,
-- $3 event types that write or delete a whole row, $4 the key's columns.
SELECT {id}::bigint AS id, ARRAY(SELECT {payload}::jsonb ->> c.name FROM unnest($4::text[]) WITH ORDINALITY AS c (name, n) ORDER BY c.n) AS key
FROM {outbox}
WHERE {id} = ANY ($1::bigint[]) AND {status} = {processed} AND {aggregate_type}::text = $2 AND {event_type}::text = ANY ($3::text[])
