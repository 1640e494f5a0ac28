-- $1 lane, $2 token, $3 ids, $4 event ids, $5 and $6 aggregates.
INSERT INTO {relay}.divergent (lane, token, id, event_id, aggregate_type, aggregate_id)
SELECT $1, $2, * FROM unnest($3::bigint[], $4::uuid[], $5::text[], $6::text[])
ON CONFLICT (event_id) DO NOTHING
