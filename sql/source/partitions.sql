-- The outbox's partitions: which of the outbox's indexes each has, and which of its own are whole. $1 the outbox's name, quoted.
SELECT n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind,
       ARRAY(SELECT o.relname::text FROM pg_index i JOIN pg_inherits x ON x.inhrelid = i.indexrelid JOIN pg_class o ON o.oid = x.inhparent
             WHERE i.indrelid = c.oid) AS attached,
       ARRAY(SELECT x.relname::text FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
             WHERE i.indrelid = c.oid AND i.indisvalid) AS valid_indexes,
       ARRAY(SELECT x.relname::text FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
             WHERE i.indrelid = c.oid AND NOT i.indisvalid) AS invalid_indexes
FROM pg_inherits h
JOIN pg_class c ON c.oid = h.inhrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class p ON p.oid = h.inhparent AND p.relkind = 'p'
WHERE p.oid = to_regclass($1)
ORDER BY c.oid
