-- What the partitions of an outbox that is partitioned by time hold: whether the events of tomorrow have a place, and whose time is
-- over by a day; `bound` as ATTACH PARTITION takes it. A default partition has no bounds, and takes whatever has no other. $1 the outbox's name, quoted.
SELECT b.name, b.bound, b.upper < now() - interval '1 day' AS over,
       coalesce(b.lower <= now() + interval '1 day', true) AND coalesce(b.upper > now() + interval '1 day', true) AS takes_tomorrow
FROM (
    SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name,
           pg_get_expr(c.relpartbound, c.oid) AS bound,
           substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM \(''([^'']+)''\)')::timestamptz AS lower,
           substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''([^'']+)''\)')::timestamptz AS upper
    FROM pg_inherits h
    JOIN pg_class c ON c.oid = h.inhrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE h.inhparent = to_regclass($1)
) b
ORDER BY b.upper NULLS LAST
