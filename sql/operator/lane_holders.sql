-- Who holds lanes just now: a lane row's xmax, as pg_locks knows it, whichever process it is. No lock is taken.
SELECT n.lane, l.pid, coalesce(host(a.client_addr), 'this host') AS client,
       greatest(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 AS seconds
FROM {relay}.lane n
JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = n.xmax AND l.granted AND l.mode = 'ExclusiveLock'
JOIN pg_stat_activity a ON a.pid = l.pid
ORDER BY n.lane
