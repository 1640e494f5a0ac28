-- Retention "0s": settled events leave at once. $1 ids.
DELETE FROM {outbox} WHERE {id} = ANY ($1::bigint[])
