-- The next keys, each with its aggregate and lane, in the order of the key's own index (text in the column's own collation: any
-- other order would sort the whole table). Never by OFFSET. What stands in these rows is read later, under the lane's lock.
-- $1 how many, $2 the key after which to begin, $3 the last one: each compared by {range} if given, else NULL.
SELECT ARRAY[{key_texts}] AS key, k.aggregate_id, {lane_of_key} AS lane
FROM (
    SELECT {key_columns}, {kind}::text AS aggregate_type, ({aggregate_id})::text AS aggregate_id
    FROM {rows} AS relay_row
    WHERE {range}
    ORDER BY {key}
    LIMIT $1
) AS k
ORDER BY {key_order}
