-- What stands in the outbox unapplied, from its small partial indexes, and how long the last two hundred took. `lag` is in
-- seconds: the oldest that still waits counts, when it has waited longer than those took.
SELECT (SELECT count(*) FROM outbox WHERE status = 'pending') AS pending,
       (SELECT count(*) FROM outbox WHERE status = 'retry') AS retry,
       (SELECT count(*) FROM outbox WHERE status = 'held') AS held,
       (SELECT count(*) FROM outbox WHERE status = 'failed') AS failed,
       (SELECT count(*) FROM outbox WHERE status = 'pending' AND aggregate_type = 'User') AS pending_users,
       greatest((SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM processed_at - created_at))
                 FROM (SELECT processed_at, created_at FROM outbox WHERE status = 'processed' ORDER BY id DESC LIMIT 200) r),
                (SELECT extract(epoch FROM clock_timestamp() - min(created_at)) FROM outbox WHERE status = 'pending')
               )::float8 AS lag
