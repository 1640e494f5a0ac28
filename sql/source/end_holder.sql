-- The holder of a lane's lock is the lane row's xmax, as pg_locks knows it. $1 lane, $2 seconds that no honest batch takes.
SELECT l.pid
FROM {relay}.lane n
JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = n.xmax AND l.granted AND l.mode = 'ExclusiveLock'
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE n.lane = $1 AND a.xact_start < clock_timestamp() - make_interval(secs => $2) AND pg_terminate_backend(l.pid)
