-- Rows that a repair has found right or made right, under their lane's lock, are no longer left out by a first copy. Who copies some of them
-- at this moment notes them himself, and is not waited for. $1 entity, $2 legacy keys.
DELETE FROM {relay}.backfill_left WHERE (source_id, entity, key) IN (
    SELECT source_id, entity, key FROM {relay}.backfill_left
    WHERE source_id = {source} AND entity = $1 AND key = ANY ($2::text[]) FOR UPDATE SKIP LOCKED
)
