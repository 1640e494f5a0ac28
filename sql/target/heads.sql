-- The newest entry of every lane.
SELECT n.lane, l.token, l.nonce
FROM {relay}.lane n
LEFT JOIN LATERAL (SELECT token, nonce FROM {relay}.batch_log b WHERE b.source_id = n.source_id AND b.lane = n.lane
                   ORDER BY b.source_id DESC, b.lane DESC, b.token DESC LIMIT 1) l ON true
WHERE n.source_id = {source}
ORDER BY n.lane
