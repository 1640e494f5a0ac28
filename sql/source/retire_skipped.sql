-- Skipped events older than $1 seconds, at most $2; rows that an operator's call has locked are for the next time.
DELETE FROM {outbox}
WHERE {id} = ANY (ARRAY(
    SELECT {id} FROM {outbox}
    WHERE {status} = {skipped} AND {processed_at} < now() - make_interval(secs => $1)
    ORDER BY {status}, {id} LIMIT $2
    FOR UPDATE SKIP LOCKED))
  AND {status} = {skipped}
RETURNING {id}
