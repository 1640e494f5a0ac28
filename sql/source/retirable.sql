-- Lanes whose second oldest entry is old enough: then the oldest may go (see retire.sql). $1 seconds.
SELECT n.lane
FROM {relay}.lane n
CROSS JOIN LATERAL (SELECT settled_at FROM {relay}.batch_log b WHERE b.lane = n.lane ORDER BY b.lane, b.token OFFSET 1 LIMIT 1) second
WHERE second.settled_at < now() - make_interval(secs => $1)
ORDER BY n.lane
