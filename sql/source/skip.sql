-- Passed over: failed and waiting events are not applied any more. last_error stays, it tells why. $1 ids.
UPDATE {outbox}
SET {status} = {skipped}, {processed_at} = clock_timestamp(), {next_attempt_at} = NULL
WHERE {id} = ANY ($1::bigint[]) AND {status} IN ({failed}, {retry})
RETURNING {id}::bigint AS id, {aggregate_type}::text AS aggregate_type, {aggregate_id}::text AS aggregate_id
