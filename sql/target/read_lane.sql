-- In a later statement than the lock: the newest entry of this lane's log, who this server is.
SELECT l.token, l.nonce::text AS nonce, l.peer,
       {identity} AS identity
FROM (SELECT 1) one
LEFT JOIN LATERAL (SELECT * FROM {relay}.batch_log WHERE source_id = {source} AND lane = {lane_number}
                   ORDER BY source_id DESC, lane DESC, token DESC LIMIT 1) l ON true;
