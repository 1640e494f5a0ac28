-- The key after so many others: where a chunk ends. A walk along the key's index, nothing else. $1 how many, $2 the key after which to
-- begin, $3 the last one: each compared by {range} if given, else NULL.
SELECT ARRAY[{key_texts}]::text[] AS key
FROM (SELECT {key_columns} FROM {rows} AS relay_row WHERE {range} ORDER BY {key} OFFSET $1 LIMIT 1) AS k
