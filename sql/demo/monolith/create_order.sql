INSERT INTO orders (user_id, total_cents, note)
SELECT id, 100 + floor(random() * 50000)::bigint, CASE WHEN random() < 0.3 THEN 'Please ring twice' END
FROM users WHERE id >= (SELECT (random() * max(id))::bigint FROM users) ORDER BY id LIMIT 1
RETURNING 'Order' AS aggregate_type, id::text AS aggregate_id, 'OrderCreated' AS event_type, to_jsonb(orders)::text AS payload
