-- An entity's legacy rows within a range of keys, as the relation that its mapping is evaluated over; it stands within the comparison's
-- statement. OFFSET 0: a row becomes JSON once, not at each place where the mapping reads the payload (a quarter of the time). $2 the key after which to begin, $3 the last one: each compared by {range} if given, else NULL.
SELECT 0::bigint AS id, '00000000-0000-0000-0000-000000000000'::uuid AS event_id, {kind}::text AS aggregate_type,
       ({aggregate_id})::text AS aggregate_id, {event_type}::text AS event_type, to_jsonb(relay_row) AS payload,
       NULL::jsonb AS headers, now() AS created_at, ARRAY[{row_texts}]::text[] AS relay_key
FROM {rows} AS relay_row
WHERE {range}
OFFSET 0
