-- The last row of each of these entities that was repaired, and how many were. $1 entities.
SELECT r.entity, r.at, r.actor, r.reason, r.command, n.written, n.deleted
FROM unnest($1::text[]) AS e (name)
CROSS JOIN LATERAL (
    SELECT * FROM {relay}.repaired r WHERE r.source_id = {source} AND r.entity = e.name ORDER BY r.id DESC LIMIT 1
) AS r
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE action = 'write') AS written, count(*) FILTER (WHERE action = 'delete') AS deleted
    FROM {relay}.repaired a WHERE a.source_id = {source} AND a.entity = e.name
) AS n
