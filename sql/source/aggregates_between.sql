-- A page of the outbox, and which of a type's aggregates had an event written in a span of time, as far as the outbox still knows. No index
-- serves that, and one statement over all of it may take longer than any may. `last`: the id that the next page begins after; NULL: there
-- is nothing more. $1 aggregate type, $2 since, $3 until, $4 the id after which to begin, $5 how many.
SELECT max(p.id) AS last,
       array_agg(DISTINCT p.aggregate_id)
           FILTER (WHERE p.aggregate_type = $1 AND p.created_at BETWEEN $2 AND $3 AND p.aggregate_id IS NOT NULL) AS aggregate_ids
FROM (
    SELECT o.{id}::bigint AS id, o.{aggregate_type}::text AS aggregate_type, o.{aggregate_id}::text AS aggregate_id,
           o.{created_at} AS created_at
    FROM {outbox} o WHERE o.{id} > $4 ORDER BY o.{id} LIMIT $5
) AS p
