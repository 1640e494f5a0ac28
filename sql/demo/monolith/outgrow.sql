-- A change that is fine here, and too much for the new database. $1 total_cents, $2 note; NULL leaves each as it is.
UPDATE orders
SET total_cents = coalesce($1, total_cents), note = coalesce($2, note)
WHERE id = (SELECT id FROM orders WHERE id >= (SELECT (random() * max(id))::bigint FROM orders) ORDER BY id LIMIT 1)
RETURNING 'Order' AS aggregate_type, id::text AS aggregate_id, 'OrderUpdated' AS event_type, to_jsonb(orders)::text AS payload
