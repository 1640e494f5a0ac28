-- The sequences behind a table's columns. $1 the table, quoted.
SELECT a.attname::text AS name, s.name AS sequence
FROM pg_attribute a
CROSS JOIN LATERAL (SELECT pg_get_serial_sequence($1, a.attname::text)) AS s (name)
JOIN pg_sequence q ON q.seqrelid = s.name::regclass AND q.seqincrement > 0
WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
