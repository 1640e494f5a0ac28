-- Takes the telling of an alert that was told before: that it goes on, or that it is over. Only if nobody has told it, and ($5) nobody
-- has seen it, since it was looked at. $1 which, $2 the process, $3 told_at and $5 seen_at as they were, $4 seconds as in alert_begin.
UPDATE {relay}.alert SET claimed_by = $2, claimed_until = clock_timestamp() + $4::float8 * interval '1 second'
WHERE what = $1 AND firing AND claimed_until < clock_timestamp() AND told_at = $3
  AND ($5::timestamptz IS NULL OR seen_at = $5)
RETURNING what
