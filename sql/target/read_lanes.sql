-- In a later statement than the locks: the newest entry of each of these lanes' logs, a row each; who this server is.
SELECT n.lane, l.token, l.nonce::text AS nonce, l.peer, i.identity
FROM (SELECT {identity} AS identity) i
CROSS JOIN unnest({lane_numbers}) AS n (lane)
LEFT JOIN LATERAL (SELECT * FROM {relay}.batch_log b WHERE b.source_id = {source} AND b.lane = n.lane
                   ORDER BY b.source_id DESC, b.lane DESC, b.token DESC LIMIT 1) l ON true;
