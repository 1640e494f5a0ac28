-- Work begins. Those of three months ago go, and those whose process has been gone for an hour are closed. $1 kind, $2 entities,
-- $3 what was asked for, $4 actor, $5 reason, $6 via, $7 host.
WITH old AS (
    DELETE FROM {relay}.job WHERE ended_at < now() - interval '90 days'
), gone AS (
    UPDATE {relay}.job SET ended_at = beat_at, state = 'lost' WHERE ended_at IS NULL AND beat_at < now() - interval '1 hour'
)
INSERT INTO {relay}.job (source_id, kind, entities, request, actor, reason, via, host)
VALUES ({source}, $1, $2, $3::text::jsonb, $4, $5, $6, $7) RETURNING id
