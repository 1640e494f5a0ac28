-- A copy begins or, if it had begun, goes on: of which generation. $1 entity, $2 about how many rows.
INSERT INTO {relay}.backfill (source_id, entity, estimate) VALUES ({source}, $1, $2)
ON CONFLICT (source_id, entity) DO UPDATE SET touched_at = now(), estimate = coalesce(excluded.estimate, backfill.estimate)
RETURNING generation
