-- A table's columns with their types, and their place in its primary key; and whether it is partitioned. $1 schema, $2 table.
-- What a key's index has besides (INCLUDE) is no part of it.
-- `operators` is the schema of its type's own operators: without it an extension's type (citext) off the search path is compared as text.
SELECT a.attname::text AS name, format_type(a.atttypid, -1) AS type_name,
       array_position((i.indkey::int2[])[0:i.indnkeyatts - 1], a.attnum)::int AS place, c.relkind = 'p' AS partitioned,
       coalesce((WITH RECURSIVE base (type) AS (
            SELECT a.atttypid
            UNION ALL
            SELECT t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype = 'd'
        )
        SELECT s.nspname::text
        FROM base b
        JOIN pg_opclass p ON p.opcintype = b.type AND p.opcdefault AND p.opcmethod = (SELECT oid FROM pg_am WHERE amname = 'btree')
        JOIN pg_amop o ON o.amopfamily = p.opcfamily AND o.amopstrategy = 3 AND o.amoplefttype = b.type AND o.amoprighttype = b.type
        JOIN pg_operator q ON q.oid = o.amopopr
        JOIN pg_namespace s ON s.oid = q.oprnamespace), 'pg_catalog') AS operators
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
