-- Whose these keys are where no row has them: the configured expression over nothing but the key. An error if it needs more than that.
-- $1 and on: the keys, an array for each of their columns.
SELECT k.key, k.aggregate_id, {lane_of_key} AS lane
FROM (
    SELECT ARRAY[{row_texts}]::text[] AS key, {kind}::text AS aggregate_type, ({aggregate_id})::text AS aggregate_id
    FROM (SELECT {given_columns} FROM {keys_only}) AS relay_row
) AS k
