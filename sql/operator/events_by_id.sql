-- Events in order of their ids, over the primary key: for all of them, and for processed ones, which lie close together.
-- $1 to $7 the filter, $8 the id after which to begin, $9 how many.
SELECT {columns}
FROM {outbox} o
WHERE o.{id} > $8 AND o.{status} IN ({wanted}) AND {matches}
ORDER BY o.{id}
LIMIT $9
