-- A lane's log from a token on, newest first, without the ids. $1 lane, $2 token.
SELECT token, nonce, settled_at FROM {relay}.batch_log WHERE lane = $1 AND token >= $2 ORDER BY lane DESC, token DESC
