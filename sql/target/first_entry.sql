-- The first entry that both logs have. $1 lane, $2 token, $3 nonce, $4 peer.
INSERT INTO {relay}.batch_log (source_id, lane, token, nonce, peer, ids, event_ids, aggregate_types, aggregate_ids, given_up)
VALUES ({source}, $1, $2, $3, $4, '{}', '{}', '{}', '{}', '{}')
