-- Rows that a first copy had left out before a verification began that found both databases equal: they are left out no longer. Who copies
-- some of them at this moment notes them himself, and is not waited for. $1 the report, $2 entities that it has read wholly.
DELETE FROM {relay}.backfill_left WHERE (source_id, entity, key) IN (
    SELECT l.source_id, l.entity, l.key FROM {relay}.backfill_left l JOIN {relay}.verify_report r ON r.id = $1 AND r.source_id = l.source_id
    WHERE l.source_id = {source} AND l.entity = ANY ($2::text[]) AND l.at < r.started_at FOR UPDATE OF l SKIP LOCKED
)
