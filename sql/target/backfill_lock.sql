-- How far pages were handed out; nobody else hands one out meanwhile, nor begins the copy anew. Who notes that a lane is done is not kept
-- waiting. No row: it was begun anew. $1 entity, $2 generation.
SELECT after, exhausted, pages FROM {relay}.backfill WHERE source_id = {source} AND entity = $1 AND generation = $2 FOR NO KEY UPDATE
