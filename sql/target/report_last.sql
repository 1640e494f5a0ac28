-- The last report that was finished. $1 source.
SELECT id FROM {relay}.verify_report WHERE source_id = $1 AND finished_at IS NOT NULL ORDER BY id DESC LIMIT 1
