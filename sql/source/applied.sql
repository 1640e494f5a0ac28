-- Which of these events are seen to be applied. One that is gone may have been, or was skipped, deleted by somebody or lost in a failover:
-- nothing is said of it. $1 ids.
SELECT {id}::bigint AS id FROM {outbox} WHERE {id} = ANY ($1::bigint[]) AND {status} = {processed}
