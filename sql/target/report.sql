-- One report. $1 its number.
SELECT id, started_at, finished_at, by, mode, outcome, report::text AS report FROM {relay}.verify_report
WHERE source_id = {source} AND id = $1
