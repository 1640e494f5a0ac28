-- These events were charged an attempt for what was the operator's error. $1 ids.
UPDATE {outbox}
SET {attempts} = greatest({attempts} - 1, 0), {status} = {retry}, {next_attempt_at} = clock_timestamp()
WHERE {id} = ANY ($1::bigint[]) AND {status} IN ({retry}, {failed})
