-- Nothing is left to be handed out or done, and the sequences are set. Lanes that somebody else did once more are forgotten. No row: the copy was begun anew meanwhile.
-- $1 entity, $2 generation.
WITH this AS (
    SELECT exhausted FROM {relay}.backfill WHERE source_id = {source} AND entity = $1 AND generation = $2
), nobodys AS (
    DELETE FROM {relay}.backfill_lane l WHERE l.source_id = {source} AND l.entity = $1 AND EXISTS (SELECT FROM this)
      AND NOT EXISTS (SELECT FROM {relay}.backfill_page p WHERE p.source_id = {source} AND p.entity = $1 AND p.page = l.page)
), ended AS (
    UPDATE {relay}.backfill SET ended_at = coalesce(ended_at, now()), touched_at = now()
    WHERE source_id = {source} AND entity = $1 AND generation = $2 AND exhausted
      AND NOT EXISTS (SELECT FROM {relay}.backfill_page p WHERE p.source_id = {source} AND p.entity = $1)
)
SELECT true FROM this
