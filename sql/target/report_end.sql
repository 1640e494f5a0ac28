-- $1 report, $2 outcome, $3 the report.
UPDATE {relay}.verify_report SET finished_at = clock_timestamp(), outcome = $2, report = $3::text::jsonb WHERE id = $1
