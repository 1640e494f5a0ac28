-- $1 ids. Only columns that must change.
UPDATE {outbox}
SET {status} = {processed}, {processed_at} = clock_timestamp(), {next_attempt_at} = NULL, {last_error} = NULL
WHERE {id} = ANY ($1::bigint[])
