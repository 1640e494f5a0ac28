-- A type's aggregates that had an event applied in a span of time, as far as the log still knows. $1 source, $2 aggregate type, $3 since,
-- $4 until.
SELECT DISTINCT u.aggregate_id
FROM {relay}.batch_log l, unnest(l.aggregate_types, l.aggregate_ids) AS u (aggregate_type, aggregate_id)
WHERE l.source_id = $1 AND u.aggregate_type = $2 AND l.applied_at BETWEEN $3 AND $4
