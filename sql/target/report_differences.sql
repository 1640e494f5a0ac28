-- $1 report, $2 entities, $3 differences.
INSERT INTO {relay}.verify_difference (report_id, entity, difference)
SELECT $1, e, d::jsonb FROM unnest($2::text[], $3::text[]) AS u (e, d)
