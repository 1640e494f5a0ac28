-- About how many rows a table has, with all its partitions, to take a sample of them; of those that were never analysed by their size, as
-- rows of 250 bytes: too few rather than too many, for then more of it is read. $1 the table, quoted.
SELECT coalesce(sum(CASE WHEN c.reltuples >= 0 THEN c.reltuples ELSE pg_relation_size(c.oid) / 250 END), 0)::float8 AS rows
FROM pg_class c
WHERE c.relkind <> 'p' AND c.oid IN (SELECT to_regclass($1)::oid UNION ALL SELECT relid FROM pg_partition_tree(to_regclass($1)))
