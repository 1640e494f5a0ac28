-- $1 source, $2 lane, $3 token, $4 nonce, $5 parent token, $6 parent nonce, $7 peer, $8 ids, $9 event ids, $10 and $11
-- aggregates, $12 given up. Onto the newest entry only, and only with a higher token; no row: somebody else was here.
INSERT INTO {relay}.batch_log
    (source_id, lane, token, nonce, parent_token, parent_nonce, peer, ids, event_ids, aggregate_types, aggregate_ids, given_up)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12
WHERE ($5::bigint, $6::uuid) =
      (SELECT token, nonce FROM {relay}.batch_log WHERE source_id = $1 AND lane = $2
       ORDER BY source_id DESC, lane DESC, token DESC LIMIT 1)
  AND $3 > $5
