-- Rows that are left out for now, and why. $1 entity, $2 generation, $3 keys, $4 lanes, $5 reasons, $6 codes, $7 messages, $8 the events that
-- bring them. The lock keeps the copy from being begun anew until this is committed; no row: it was.
-- The time is that of now, not of the transaction: a verification that begins after it looks after the row was read.
-- A row that waits for an event goes on waiting for that one: a later one may always be on its way.
WITH this AS MATERIALIZED (
    SELECT true AS is FROM {relay}.backfill WHERE source_id = {source} AND entity = $1 AND generation = $2 FOR KEY SHARE
), lefts AS (
    INSERT INTO {relay}.backfill_left AS b (source_id, entity, key, lane, reason, code, message, event, at)
    SELECT DISTINCT ON (l.key) {source}, $1, l.key, l.lane, l.reason, l.code, l.message, l.event, clock_timestamp()
    FROM this CROSS JOIN unnest($3::text[], $4::int[], $5::text[], $6::text[], $7::text[], $8::bigint[])
         AS l (key, lane, reason, code, message, event)
    ORDER BY l.key
    ON CONFLICT (source_id, entity, key) DO UPDATE
    SET lane = excluded.lane, reason = excluded.reason, code = excluded.code, message = excluded.message, at = excluded.at,
        event = CASE WHEN excluded.reason = 'pending' THEN coalesce(b.event, excluded.event) END
)
SELECT this.is FROM this
