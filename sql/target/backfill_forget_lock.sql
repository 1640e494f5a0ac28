-- Copies are to begin anew: once who is noting something of them has committed, what is noted can be forgotten; locked in a statement of its
-- own, for the next one sees what they have written. It reads what only tables of this version have: nothing is forgotten that could not be
-- begun again. $1 entities.
SELECT generation FROM {relay}.backfill WHERE source_id = {source} AND entity = ANY ($1::text[]) ORDER BY entity FOR UPDATE
