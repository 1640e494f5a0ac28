-- Retention "0s": settled events leave at once. $1 ids.
WITH forgotten AS (
    DELETE FROM {relay}.failure WHERE id = ANY ($1::bigint[])
)
DELETE FROM {outbox} WHERE {id} = ANY ($1::bigint[])
