-- CHECK constraints on the status column alone. $1 the outbox, quoted; $2 the status column.
SELECT k.conname::text AS name, pg_get_expr(k.conbin, k.conrelid) AS expression
FROM pg_constraint k
JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attname = $2
WHERE k.conrelid = to_regclass($1) AND k.contype = 'c' AND k.conkey = ARRAY[a.attnum]
ORDER BY k.conname
