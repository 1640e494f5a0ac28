-- All events that a call for many means, with their lanes. Read without a lock; each is looked at again under its lane's.
-- $1 to $7 the filter.
SELECT o.{id}::bigint AS id, {lane} AS lane
FROM {outbox} o
WHERE o.{status} IN ({wanted}) AND {matches}
ORDER BY 1
