-- Failed, waiting and skipped events are pending again, as if never tried. $1 ids, $2 whether processed ones too.
UPDATE {outbox}
SET {status} = {pending}, {attempts} = 0, {next_attempt_at} = NULL, {processed_at} = NULL, {last_error} = NULL
WHERE {id} = ANY ($1::bigint[]) AND ({status} IN ({failed}, {retry}, {skipped}) OR ($2 AND {status} = {processed}))
RETURNING {id}::bigint
