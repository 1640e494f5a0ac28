-- The newest events whose payload names a row's key, and whose aggregate is not the one that the expression gives for that row.
SELECT e.relay_id AS id, e.relay_said AS said, ({aggregate_id})::text AS given
FROM (
    SELECT {id}::bigint AS relay_id, {aggregate_id_column}::text AS relay_said, {payload}::jsonb AS relay_payload
    FROM {outbox}
    WHERE {aggregate_type}::text = {kind}
    ORDER BY {id} DESC LIMIT 100
) AS e
JOIN {rows} AS relay_row ON {key_is_payloads}
WHERE ({aggregate_id})::text IS DISTINCT FROM e.relay_said
ORDER BY e.relay_id DESC LIMIT 1
