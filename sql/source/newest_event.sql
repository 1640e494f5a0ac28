-- The newest event of an aggregate type: backwards along the ids, so it ends at the first one. $1 aggregate type.
SELECT {id}::bigint FROM {outbox} WHERE {aggregate_type}::text = $1 ORDER BY {id} DESC LIMIT 1
