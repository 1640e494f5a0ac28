-- Which of these events are not applied. One that is not in the outbox any more was: retention takes nothing else. $1 ids.
SELECT {id}::bigint AS id FROM {outbox} WHERE {id} = ANY ($1::bigint[]) AND {status} <> {processed}
