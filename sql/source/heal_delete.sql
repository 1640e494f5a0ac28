-- Retention "0s": what healing settles leaves at once, too. $1 ids; when they were created nobody knows any more.
DELETE FROM {outbox} WHERE {id} = ANY ($1::bigint[])
