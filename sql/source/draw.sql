-- Draws $1 tokens at once, for a sequence that a failover has set back; the highest.
SELECT max(drawn)::bigint FROM (SELECT nextval({tokens}) AS drawn FROM generate_series(1, $1)) d
