-- Whether a unique index over nothing but columns of the key stands on the table, and a column of the key that may be NULL.
-- $1 schema, $2 table, $3 the key's columns.
SELECT EXISTS (
           SELECT FROM pg_index i
           WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
             AND (SELECT array_agg(a.attname::text) FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n)
                  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum WHERE k.n <= i.indnkeyatts) <@ $3::text[]
       ) AS is_unique,
       (SELECT min(a.attname::text) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attname = ANY ($3::text[]) AND NOT a.attnotnull) AS nullable
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2
