-- Copies are to begin anew. $1 entities.
WITH page AS (DELETE FROM {relay}.backfill_page WHERE source_id = {source} AND entity = ANY ($1::text[])),
     lane AS (DELETE FROM {relay}.backfill_lane WHERE source_id = {source} AND entity = ANY ($1::text[])),
     lefts AS (DELETE FROM {relay}.backfill_left WHERE source_id = {source} AND entity = ANY ($1::text[]))
DELETE FROM {relay}.backfill WHERE source_id = {source} AND entity = ANY ($1::text[])
