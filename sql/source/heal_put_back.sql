-- The target forgot this batch: what it processed becomes pending again. $1 ids, in one statement with how many of them are
-- still in the outbox at all.
WITH back AS (
    UPDATE {outbox}
    SET {status} = {pending}, {processed_at} = NULL
    WHERE {id} = ANY ($1::bigint[]) AND {status} = {processed}
    RETURNING {id} AS id
)
SELECT (SELECT count(*) FROM back) AS put_back, (SELECT min(id) FROM back)::bigint AS lowest,
       (SELECT count(*) FROM {outbox} WHERE {id} = ANY ($1::bigint[])) AS present
