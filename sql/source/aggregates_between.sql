-- A type's aggregates that had an event written in a span of time, as far as the outbox still knows. $1 aggregate type, $2 since, $3 until.
SELECT DISTINCT {aggregate_id}::text AS aggregate_id FROM {outbox}
WHERE {aggregate_type}::text = $1 AND {created_at} BETWEEN $2 AND $3
