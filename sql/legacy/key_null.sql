-- The first column of the key that is NULL in some row, counted from 0: no page comes to such a row. By the index that pages need,
-- if the rows are a query's.
SELECT array_position(ARRAY[{key_nulls}], true) - 1 AS part
FROM {rows} AS relay_row
WHERE {key_is_null}
LIMIT 1
