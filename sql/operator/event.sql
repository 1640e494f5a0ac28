-- One event with all that is known of it. $1 its id.
SELECT {columns}, {lane} AS lane, o.{payload}::text AS payload, o.{headers}::text AS headers,
       f.entity, f.disposition, f.code, f.message, f.constraint_name, f.column_name, f.detail, f.place, f.first_at, f.last_at
FROM {outbox} o
LEFT JOIN LATERAL (
    SELECT f.entity, f.disposition, f.code, f.message, f.constraint_name, f.column_name, f.detail, f.place, f.first_at, f.last_at
    FROM {relay}.failure f WHERE f.id = o.{id} AND o.{status} IN ({retry}, {failed})
) f ON true
WHERE o.{id} = $1
