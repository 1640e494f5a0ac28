-- The newest entry of every lane, for a comparison that is only ever a prompt to look under the locks.
SELECT n.lane, l.token, l.nonce
FROM {relay}.lane n
LEFT JOIN LATERAL (SELECT token, nonce FROM {relay}.batch_log b WHERE b.lane = n.lane ORDER BY b.lane DESC, b.token DESC LIMIT 1) l ON true
ORDER BY n.lane
