-- In the transaction of the change, after it: the change holds its row's lock, so the order of ids is the order of changes.
INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ($1, $2, $3, $4::jsonb) RETURNING id
