-- Whoever copies these sees it before its next rows. $1 entities, $2 whether they rest.
UPDATE {relay}.backfill SET paused = $2 WHERE source_id = {source} AND entity = ANY ($1::text[]) AND paused <> $2
RETURNING entity
