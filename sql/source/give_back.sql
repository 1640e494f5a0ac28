-- These events were charged an attempt for what was the operator's error. $1 ids, $2 aggregate types that
-- pass failed events over: a failed one of them is not revived, for a later event of its aggregate may have been applied. Nor is one
-- that healing found to be overtaken.
UPDATE {outbox}
SET {attempts} = greatest({attempts} - 1, 0), {status} = {retry}, {next_attempt_at} = clock_timestamp()
WHERE {id} = ANY ($1::bigint[]) AND ({status} = {retry} OR {status} = {failed} AND {aggregate_type}::text <> ALL ($2::text[]))
  AND NOT EXISTS (SELECT FROM {relay}.failure f WHERE f.id = {outbox}.{id}::bigint AND f.code = 'overtaken')
