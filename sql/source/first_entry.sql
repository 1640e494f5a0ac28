-- The first entry that both logs have. $1 lane, $2 token, $3 nonce, $4 peer.
INSERT INTO {relay}.batch_log (lane, token, nonce, peer, ids) VALUES ($1, $2, $3, $4, '{}')
