-- How busy this server is: sessions that run something, and how far the slowest replica is behind (NULL: none, or not to be seen).
SELECT (SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()) AS active,
       (SELECT extract(epoch FROM max(replay_lag))::float8 FROM pg_stat_replication) AS replica_lag
