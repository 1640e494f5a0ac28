DELETE FROM orders
WHERE id = (SELECT id FROM orders WHERE id >= (SELECT (random() * max(id))::bigint FROM orders) ORDER BY id LIMIT 1)
RETURNING 'Order' AS aggregate_type, id::text AS aggregate_id, 'OrderDeleted' AS event_type, to_jsonb(orders)::text AS payload
