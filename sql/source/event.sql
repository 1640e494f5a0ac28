-- One event, whatever its status. $1 id.
SELECT {event_id}::uuid AS event_id, coalesce({aggregate_type}::text, '') AS aggregate_type,
       coalesce({aggregate_id}::text, '') AS aggregate_id, coalesce({event_type}::text, '') AS event_type,
       coalesce({payload}::text, 'null') AS payload, {headers}::text AS headers,
       {written_at} AS created_at
FROM {outbox} WHERE {id} = $1
