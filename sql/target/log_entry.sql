-- One entry of the log, whole. $1 source, $2 lane, $3 token.
SELECT token, nonce, parent_token, parent_nonce, ids, event_ids, aggregate_types, aggregate_ids, given_up
FROM {relay}.batch_log WHERE source_id = $1 AND lane = $2 AND token = $3
