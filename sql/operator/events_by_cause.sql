-- Events that are failing for one cause, oldest first. $1 to $7 the filter ($4 the cause), $8 the id after which to begin,
-- $9 how many.
SELECT {columns}
FROM {relay}.failure c
JOIN {outbox} o ON o.{id} = c.id
WHERE c.cause = $4 AND c.id > $8 AND o.{status} IN ({wanted}) AND {matches}
ORDER BY c.cause, c.id
LIMIT $9
