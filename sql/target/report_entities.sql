-- What a report says of each entity, beside it. $1 report, $2 entities, $3 what it says of them.
INSERT INTO {relay}.verify_entity (report_id, source_id, entity, mode, report)
SELECT r.id, r.source_id, u.entity, r.mode, u.report::jsonb
FROM {relay}.verify_report r, unnest($2::text[], $3::text[]) AS u (entity, report) WHERE r.id = $1
ON CONFLICT (report_id, entity) DO NOTHING
