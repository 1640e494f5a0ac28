-- A report, begun; those of a year ago go. $1 source, $2 by, $3 mode.
WITH old AS (DELETE FROM {relay}.verify_report WHERE started_at < now() - interval '365 days')
INSERT INTO {relay}.verify_report (source_id, by, mode) VALUES ($1, $2, $3) RETURNING id, started_at
