-- Retention "0s": settled events leave at once. $1 ids, $2 and $3 the times between which they were created.
WITH forgotten AS (
    DELETE FROM {relay}.failure WHERE id = ANY ($1::bigint[])
)
DELETE FROM {outbox} WHERE {id} = ANY ($1::bigint[]) AND {within}
