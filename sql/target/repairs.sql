-- Rows that were repaired, newest first. $1 the id below which to begin, $2 how many, $3 an entity, or NULL for all.
SELECT id, at, actor, reason, command, entity, key::text AS key, action, before::text AS before, after::text AS after
FROM {relay}.repaired WHERE source_id = {source} AND id < $1 AND ($3::text IS NULL OR entity = $3) ORDER BY id DESC LIMIT $2
