-- Pending events, oldest first: the first few of every lane over the index that claims use, merged.
-- $1 to $7 the filter, $8 the id after which to begin, $9 how many.
SELECT p.*
FROM {relay}.lane n
CROSS JOIN LATERAL (
    SELECT {columns}
    FROM {outbox} o
    WHERE {lane} = n.lane AND o.{status} = {pending} AND o.{id} > $8 AND {matches}
    ORDER BY {lane}, o.{id}
    LIMIT $9
) p
ORDER BY p.id
LIMIT $9
