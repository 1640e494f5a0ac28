-- A lane's whole log, newest first, without the events. $1 source, $2 lane.
SELECT token, nonce, applied_at FROM {relay}.batch_log WHERE source_id = $1 AND lane = $2
ORDER BY source_id DESC, lane DESC, token DESC
