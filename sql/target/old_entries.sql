-- The oldest entries of every lane, as far as they are old. $1 source, $2 seconds, $3 entries of a lane at the most.
SELECT n.lane, l.token, l.nonce
FROM {relay}.lane n
CROSS JOIN LATERAL (SELECT token, nonce, applied_at FROM {relay}.batch_log b WHERE b.source_id = n.source_id AND b.lane = n.lane
                    ORDER BY b.source_id, b.lane, b.token LIMIT $3) l
WHERE n.source_id = $1 AND l.applied_at < now() - make_interval(secs => $2)
