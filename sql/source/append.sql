-- $1 lane, $2 token, $3 nonce, $4 parent token, $5 parent nonce, $6 peer, $7 ids, $8 position, $9 passed, $10 mark,
-- $11 holders, $12 the mark's age in seconds. Appends onto the newest entry only; no row: it is not the newest any more.
INSERT INTO {relay}.batch_log
    (lane, token, nonce, parent_token, parent_nonce, peer, ids, position, passed, mark, mark_holders, marked_at)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, clock_timestamp() - make_interval(secs => $12)
WHERE ($4::bigint, $5::uuid) =
      (SELECT token, nonce FROM {relay}.batch_log WHERE lane = $1 ORDER BY lane DESC, token DESC LIMIT 1)
  AND $2 > $4
RETURNING clock_timestamp()
