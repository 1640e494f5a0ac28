-- The orders' events first, as their rows go first.
WITH gone AS MATERIALIZED (
    SELECT id FROM users
    WHERE id = (SELECT id FROM users WHERE id >= (SELECT (random() * max(id))::bigint FROM users) ORDER BY id LIMIT 1)
    FOR UPDATE
), their_orders AS (
    DELETE FROM orders WHERE user_id IN (SELECT id FROM gone)
    RETURNING id, to_jsonb(orders) AS payload
), deleted AS (
    DELETE FROM users WHERE id IN (SELECT id FROM gone)
    RETURNING id, to_jsonb(users) AS payload
)
SELECT 'Order' AS aggregate_type, id::text AS aggregate_id, 'OrderDeleted' AS event_type, payload::text FROM their_orders
UNION ALL
SELECT 'User', id::text, 'UserDeleted', payload::text FROM deleted
