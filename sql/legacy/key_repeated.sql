-- A key that several rows of a query have. Reads all of them; what only reads by keys meets such a row by itself.
SELECT ARRAY[{key_texts}]::text[] AS key
FROM (SELECT {key_columns} FROM {rows} AS relay_row) AS k
GROUP BY {key_order}
HAVING count(*) > 1
LIMIT 1
