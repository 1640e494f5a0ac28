-- A lane's log from a token on, newest first, without the events. $1 source, $2 lane, $3 token.
SELECT token, nonce, applied_at FROM {relay}.batch_log WHERE source_id = $1 AND lane = $2 AND token >= $3
ORDER BY source_id DESC, lane DESC, token DESC
