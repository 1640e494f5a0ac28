-- A lane's whole log, newest first, without the ids. $1 lane.
SELECT token, nonce, settled_at FROM {relay}.batch_log WHERE lane = $1 ORDER BY lane DESC, token DESC
