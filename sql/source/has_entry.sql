-- Whether the log still has this very batch: a row, or none. $1 lane, $2 token, $3 nonce.
SELECT FROM {relay}.batch_log WHERE lane = $1 AND token = $2 AND nonce = $3
