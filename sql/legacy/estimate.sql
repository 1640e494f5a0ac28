-- About how many rows a table has, as the planner believes; NULL before its first ANALYZE. $1 the table, quoted.
SELECT (SELECT sum(c.reltuples) FILTER (WHERE c.reltuples >= 0)::bigint FROM pg_class c
        WHERE c.relkind <> 'p' AND c.oid IN (SELECT to_regclass($1)::oid UNION ALL SELECT relid FROM pg_partition_tree(to_regclass($1)))) AS rows
