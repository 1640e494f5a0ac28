-- Rows that are left out for now, and why. $1 entity, $2 keys, $3 lanes, $4 reasons, $5 codes, $6 messages, $7 the events that bring them.
-- A row that waits for an event goes on waiting for that one: a later one may always be on its way.
INSERT INTO {relay}.backfill_left AS b (source_id, entity, key, lane, reason, code, message, event)
SELECT DISTINCT ON (l.key) {source}, $1, l.key, l.lane, l.reason, l.code, l.message, l.event
FROM unnest($2::text[], $3::int[], $4::text[], $5::text[], $6::text[], $7::bigint[]) AS l (key, lane, reason, code, message, event)
ORDER BY l.key
ON CONFLICT (source_id, entity, key) DO UPDATE
SET lane = excluded.lane, reason = excluded.reason, code = excluded.code, message = excluded.message, at = now(),
    event = CASE WHEN excluded.reason = 'pending' THEN coalesce(b.event, excluded.event) END
