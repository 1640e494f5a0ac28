-- $1 ids, $2 and $3 the times between which they were created. Only columns that must change. What had failed, also before a replay, no longer does.
WITH forgotten AS (
    DELETE FROM {relay}.failure WHERE id = ANY ($1::bigint[])
)
UPDATE {outbox}
SET {status} = {processed}, {processed_at} = clock_timestamp(), {next_attempt_at} = NULL, {last_error} = NULL
WHERE {id} = ANY ($1::bigint[]) AND {within}
