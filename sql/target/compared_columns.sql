-- How the values of a table's columns are compared: their type below any domain, with and without its length or precision; whether it
-- is an enum (compared as its word); whether every Postgres has it; whether they may be NULL. $1 schema, $2 table.
SELECT a.attname::text AS name, format_type(b.oid, -1) AS base_type, b.oid::bigint AS base_oid,
       format_type(b.oid, CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END) AS full_type,
       b.typtype = 'e' AS is_enum, b.oid::bigint < 16384 AS is_builtin, CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END AS typmod,
       NOT a.attnotnull AS may_be_null
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
