-- The columns of a table that can be written. $1 schema, $2 table. `type_name` has no length: text is never cut to one.
SELECT a.attname::text AS name, a.atttypid::bigint AS type_oid, format_type(a.atttypid, -1) AS type_name,
       format_type(a.atttypid, a.atttypmod) AS full_type, a.attidentity = 'a' AS always_identity,
       {operators} AS operators,
       -- By which words that differ may be equal; the mapping's own texts know nothing of it.
       (SELECT format('%I.%I', s.nspname, k.collname) FROM pg_collation k JOIN pg_namespace s ON s.oid = k.collnamespace
        WHERE k.oid = a.attcollation AND NOT k.collisdeterministic) AS folding
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'f')
  AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attnum
