-- Nothing is left to be handed out or done. Lanes that somebody else did once more are forgotten. $1 entity.
WITH nobodys AS (
    DELETE FROM {relay}.backfill_lane l WHERE l.source_id = {source} AND l.entity = $1
      AND NOT EXISTS (SELECT FROM {relay}.backfill_page p WHERE p.source_id = {source} AND p.entity = $1 AND p.page = l.page)
)
UPDATE {relay}.backfill SET ended_at = coalesce(ended_at, now()), touched_at = now()
WHERE source_id = {source} AND entity = $1 AND exhausted
  AND NOT EXISTS (SELECT FROM {relay}.backfill_page p WHERE p.source_id = {source} AND p.entity = $1)
