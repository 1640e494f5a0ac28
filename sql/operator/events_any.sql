-- As events_by_id.sql, of whatever status, also of a word that nobody claims.
SELECT {columns}
FROM {outbox} o
WHERE o.{id} > $8 AND {matches}
ORDER BY o.{id}
LIMIT $9
