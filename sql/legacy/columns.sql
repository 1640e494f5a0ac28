-- The columns of a table, and what their types are. $1 schema, $2 table.
SELECT a.attname::text AS name, a.atttypid::bigint AS type
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped
