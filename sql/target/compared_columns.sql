-- How the values of a table's columns are compared: their type below any domains, with and without its length or precision; whether it
-- is an enum (compared as its word); whether every Postgres has it; whether they may be NULL. $1 schema, $2 table.
WITH RECURSIVE base (column_number, type, typmod) AS (
    SELECT a.attnum, a.atttypid, a.atttypmod
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT b.column_number, t.typbasetype, t.typtypmod FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype = 'd'
)
SELECT a.attname::text AS name, format_type(b.oid, -1) AS base_type, b.oid::bigint AS base_oid,
       format_type(b.oid, s.typmod) AS full_type, b.typtype = 'e' AS is_enum, b.oid::bigint < 16384 AS is_builtin, s.typmod AS typmod,
       NOT a.attnotnull AS may_be_null
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN base s ON s.column_number = a.attnum
JOIN pg_type b ON b.oid = s.type AND b.typtype <> 'd'
WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
