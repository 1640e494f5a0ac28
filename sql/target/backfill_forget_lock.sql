-- A copy is to begin anew: once who is noting something of it has committed, what is noted can be forgotten; locked in a statement of its own,
-- for the next one sees what they have written. $1 entity.
SELECT FROM {relay}.backfill WHERE source_id = {source} AND entity = $1 FOR UPDATE
