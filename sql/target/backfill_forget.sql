-- A copy is to begin anew. $1 entity.
WITH page AS (DELETE FROM {relay}.backfill_page WHERE source_id = {source} AND entity = $1),
     lane AS (DELETE FROM {relay}.backfill_lane WHERE source_id = {source} AND entity = $1),
     lefts AS (DELETE FROM {relay}.backfill_left WHERE source_id = {source} AND entity = $1)
DELETE FROM {relay}.backfill WHERE source_id = {source} AND entity = $1
