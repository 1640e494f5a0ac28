-- Lanes whose oldest entry is old enough. $1 seconds.
SELECT n.lane
FROM {relay}.lane n
CROSS JOIN LATERAL (SELECT settled_at FROM {relay}.batch_log b WHERE b.lane = n.lane ORDER BY b.lane, b.token LIMIT 1) oldest
WHERE oldest.settled_at < now() - make_interval(secs => $1)
  AND (SELECT count(*) FROM (SELECT FROM {relay}.batch_log b WHERE b.lane = n.lane LIMIT 2) two) = 2
ORDER BY n.lane
