UPDATE users
SET email = split_part(name, ' ', 2) || floor(random() * 1000) || '@Example.org'
WHERE id = (SELECT id FROM users WHERE id >= (SELECT (random() * max(id))::bigint FROM users) ORDER BY id LIMIT 1)
RETURNING 'User' AS aggregate_type, id::text AS aggregate_id, 'UserUpdated' AS event_type, to_jsonb(users)::text AS payload
