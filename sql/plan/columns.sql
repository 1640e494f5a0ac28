-- A table's columns with their types, and their place in its primary key; and whether it is partitioned. $1 schema, $2 table.
-- What a key's index has besides (INCLUDE) is no part of it.
SELECT a.attname::text AS name, format_type(a.atttypid, -1) AS type_name,
       array_position((i.indkey::int2[])[0:i.indnkeyatts - 1], a.attnum)::int AS place, c.relkind = 'p' AS partitioned,
       coalesce({operators}, 'pg_catalog') AS operators
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
