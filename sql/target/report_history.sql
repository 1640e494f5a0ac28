-- The last reports. $1 source, $2 the number below which to begin, $3 how many.
SELECT id, started_at, finished_at, by, mode, outcome,
       (SELECT sum((e->>'missing_in_new')::bigint + (e->>'missing_in_legacy')::bigint + (e->>'differing')::bigint + (e->>'refused')::bigint)
        FROM jsonb_array_elements(report->'entities') AS e)::bigint AS differences
FROM {relay}.verify_report WHERE source_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3
