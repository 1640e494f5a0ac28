-- $1 which order; NULL: any.
UPDATE orders
SET state = least(state + 1, 3)
WHERE id = coalesce($1, (SELECT id FROM orders WHERE id >= (SELECT (random() * max(id))::bigint FROM orders) ORDER BY id LIMIT 1))
RETURNING 'Order' AS aggregate_type, id::text AS aggregate_id, 'OrderUpdated' AS event_type, to_jsonb(orders)::text AS payload
