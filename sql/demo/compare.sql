-- Every row that the mapping makes of the legacy table (pg_temp.expected), beside every row of the new one; where they
-- differ. As jsonb, in which 1.5 equals 1.50. Columns that the mapping does not yield are not compared.
SELECT coalesce(e.row ->> {key}, f.row ->> {key}) AS key, e.row::text AS expected, f.row::text AS found
FROM (SELECT row::jsonb FROM pg_temp.expected) e
FULL JOIN (SELECT to_jsonb(t) AS row FROM {table} t) f ON e.row -> {key} = f.row -> {key}
WHERE e.row IS NULL OR f.row IS NULL OR NOT f.row @> e.row
ORDER BY 1
