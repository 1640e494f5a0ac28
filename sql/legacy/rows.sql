-- The rows that have these keys, to be read in the transaction that holds their lane's lock. $1 payload bytes: what comes after them
-- has no payload, but for the first row, which passes whatever its size. $2 and on: the keys, an array for each of its columns.
-- The target reads the payload as jsonb whatever it is here: json is half the work of to_jsonb, and what jsonb cannot have is then
-- one row that the target refuses, and no error of the whole statement. Some hundred rows come as one: what a row of an answer costs its
-- reader is more than what it costs to put them together. `asked`: the number of the key that a row was asked by, from 1; then its
-- key as it is, an array for each column.
SELECT array_agg(k.relay_asked::int) AS asked, array_agg(k.aggregate_id) AS aggregate_id, array_agg({lane_of_key}) AS lane,
       array_agg(CASE WHEN k.bytes <= $1 OR k.bytes = octet_length(k.payload) THEN k.payload END) AS payload, {key_arrays}
FROM (
    SELECT r.*, sum(octet_length(r.payload)) OVER (ROWS UNBOUNDED PRECEDING) AS bytes
    FROM (
        SELECT relay_key.relay_asked, {kind}::text AS aggregate_type, ({aggregate_id})::text AS aggregate_id,
               row_to_json(relay_row)::text AS payload, {key_parts}
        FROM {keys_given} JOIN {rows} AS relay_row ON {key_is_given}
        OFFSET 0
    ) AS r
) AS k
GROUP BY k.bytes / 65536
