-- A credit is a difference, not a state: it has to take effect exactly once, which is what the relay promises.
UPDATE customers
SET balance = balance + (event.payload->>'cents')::numeric / 100
FROM event
WHERE customers.id = (event.payload->>'id')::bigint
