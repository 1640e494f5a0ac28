-- These events are no longer failing. $1 ids.
DELETE FROM {relay}.failure WHERE id = ANY ($1::bigint[])
