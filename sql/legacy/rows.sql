-- The rows that have these keys, to be read in the transaction that holds their lane's lock. $1 payload bytes: what comes after them
-- has no payload, but for the first row, which passes whatever its size. $2 and on: the keys, an array for each of its columns.
-- The target reads the payload as jsonb whatever it is here: json is half the work of to_jsonb, and what jsonb cannot have is then
-- one row that the target refuses, and no error of the whole statement.
SELECT r.relay_asked AS asked, r.key, r.aggregate_id, r.lane, CASE WHEN r.n = 1 OR r.bytes <= $1 THEN r.payload END AS payload
FROM (
    SELECT k.relay_asked, k.key, k.aggregate_id, {lane_of_key} AS lane, k.payload,
           row_number() OVER seen AS n, sum(octet_length(k.payload)) OVER seen AS bytes
    FROM (
        SELECT relay_key.relay_asked, ARRAY[{row_texts}] AS key, {kind}::text AS aggregate_type, ({aggregate_id})::text AS aggregate_id,
               row_to_json(relay_row)::text AS payload
        FROM {keys_given} JOIN {rows} AS relay_row ON {key_is_given}
        OFFSET 0
    ) AS k
    WINDOW seen AS (ROWS UNBOUNDED PRECEDING)
) AS r
