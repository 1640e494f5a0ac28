-- The event tells the difference, not the state: applied twice, or not at all, it would show for ever.
WITH amount AS (SELECT 1 + floor(random() * 5000)::bigint AS cents)
UPDATE users
SET credit_cents = credit_cents + cents
FROM amount
WHERE id = (SELECT id FROM users WHERE id >= (SELECT (random() * max(id))::bigint FROM users) ORDER BY id LIMIT 1)
RETURNING 'User' AS aggregate_type, id::text AS aggregate_id, 'UserCredited' AS event_type,
          jsonb_build_object('id', id, 'cents', cents)::text AS payload
