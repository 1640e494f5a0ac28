-- Pending events, oldest first: the first few of every lane over the index that claims use, merged; of one lane if the aggregate
-- is known. $1 to $7 the filter ($1 and $2 the aggregate), $8 the id after which to begin, $9 how many.
SELECT p.*
FROM (SELECT $1::text AS aggregate_type, $2::text AS aggregate_id) k
JOIN {relay}.lane n ON k.aggregate_type IS NULL OR k.aggregate_id IS NULL OR n.lane = {lane_of_key}
CROSS JOIN LATERAL (
    SELECT {columns}
    FROM {outbox} o
    WHERE {lane} = n.lane AND o.{status} = {pending} AND o.{id} > $8 AND {matches}
    ORDER BY {lane}, o.{id}
    LIMIT $9
) p
ORDER BY p.id
LIMIT $9
