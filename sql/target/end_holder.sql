-- Ends the holder of a lane's lock: the lane row's xmax, as pg_locks knows it. $1 lane, $2 seconds that no honest batch takes.
-- Found first, ended then, and MATERIALIZED: as a condition of the join, pg_terminate_backend depends on pg_locks alone, and
-- the planner asks it there, of every transaction that writes anything.
WITH holder AS MATERIALIZED (
    SELECT l.pid
    FROM {relay}.lane n
    JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = n.xmax AND l.granted AND l.mode = 'ExclusiveLock'
    JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE n.source_id = {source} AND n.lane = $1 AND a.xact_start < clock_timestamp() - make_interval(secs => $2)
)
SELECT pid FROM holder WHERE pg_terminate_backend(pid)
