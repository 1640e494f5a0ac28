-- An entity's legacy rows within a range of keys, where they need no mapping; it stands within the comparison's statement.
-- $2 the key after which to begin, $3 the last one: each compared by {range} if given, else NULL.
SELECT {columns}, ARRAY[{row_texts}]::text[] AS relay_key
FROM {rows} AS relay_row
WHERE {range}
