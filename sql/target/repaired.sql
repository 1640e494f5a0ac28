-- What was changed, row by row. $1 source, $2 actor, $3 reason, $4 command, then an array each: $5 entities, $6 keys, $7 actions, $8 before,
-- $9 after.
INSERT INTO {relay}.repaired (source_id, actor, reason, command, entity, key, action, before, after)
SELECT $1, $2, $3, $4, e, k::jsonb, a, b::jsonb, f::jsonb
FROM unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::text[]) AS u (e, k, a, b, f)
