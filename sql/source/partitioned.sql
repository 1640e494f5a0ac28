-- Whether the outbox is partitioned by ranges of created_at alone. $1 that column, $2 the outbox's name, quoted.
SELECT EXISTS (
    SELECT FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = ANY (p.partattrs)
    WHERE p.partrelid = to_regclass($2) AND p.partstrat = 'r' AND p.partnatts = 1 AND a.attname = $1)
