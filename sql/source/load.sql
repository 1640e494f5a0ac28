-- How busy this server is: sessions but the relay's own that run something, how far the slowest replica is behind (NULL: there is none), and
-- whether this role is shown either.
SELECT (SELECT count(*) FROM pg_stat_activity
        WHERE state = 'active' AND backend_type = 'client backend' AND application_name <> 'outbox-relay') AS active,
       (SELECT extract(epoch FROM max(replay_lag))::float8 FROM pg_stat_replication) AS replica_lag,
       pg_has_role('pg_read_all_stats', 'USAGE') AS is_shown
