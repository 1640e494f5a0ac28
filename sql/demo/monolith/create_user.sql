INSERT INTO users (name, email)
SELECT first || ' ' || last, first || '.' || last || '@Example.com'
FROM (SELECT (ARRAY['Ada', 'Alan', 'Barbara', 'Donald', 'Edsger', 'Grace', 'Radia', 'Tony'])[1 + floor(random() * 8)] AS first,
             (ARRAY['Byron', 'Dijkstra', 'Hoare', 'Hopper', 'Knuth', 'Liskov', 'Perlman', 'Turing'])[1 + floor(random() * 8)] AS last) n
RETURNING 'User' AS aggregate_type, id::text AS aggregate_id, 'UserCreated' AS event_type, to_jsonb(users)::text AS payload
