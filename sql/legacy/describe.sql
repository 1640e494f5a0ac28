-- The types of the key's columns and of the aggregate's expression, and whether the rows can be read at all; no row is. Under a
-- left join there is an answer whatever the table holds. Types are named as what has no length (bpchar, "bit"): character and bit
-- alone are character(1) and bit(1), and a cast to them cuts the key without a word.
SELECT ARRAY[{key_types}] AS key_types, pg_typeof(k.relay_aggregate)::text AS aggregate_type
FROM (SELECT 1) AS one
LEFT JOIN (SELECT {key_columns}, ({aggregate_id})::text AS relay_aggregate, to_jsonb(relay_row) AS relay_payload
           FROM {rows} AS relay_row LIMIT 0) AS k ON true
