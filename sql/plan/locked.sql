-- The tables that this transaction has locked, because what it asked reads them: whether or not the planner has use for each. In a
-- view's place the tables that it is made of, in a partition's the table that it is a part of. `relation` is what is locked.
SELECT l.relation::bigint AS relation, n.nspname::text AS schema_name, c.relname::text AS table_name
FROM pg_locks l
JOIN pg_class c ON c.oid = coalesce(pg_partition_root(l.relation::regclass)::oid, l.relation)
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE l.locktype = 'relation' AND l.pid = pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
ORDER BY 2, 3, 1
