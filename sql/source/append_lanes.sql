-- An entry for each of several lanes; see append.sql. $1 lanes, $2 tokens, $3 nonces, $4 parent tokens, $5 parent nonces, $6 peer,
-- $7 all ids, lane after lane, $8 how many of them lie before each lane's, $9 how many each lane has, $10 positions, $11 passed,
-- $12 marks, $13 the marks' holders as JSON, $14 the marks' ages in seconds. A lane without a row: its parent is not the newest any more.
INSERT INTO {relay}.batch_log
    (lane, token, nonce, parent_token, parent_nonce, peer, ids, position, passed, mark, mark_holders, marked_at)
SELECT n.lane, n.token, n.nonce, n.parent_token, n.parent_nonce, $6, ($7::bigint[])[n.skipped + 1 : n.skipped + n.ids],
       n.position, $11::text[], n.mark, ARRAY(SELECT json_array_elements_text(n.holders::json)),
       clock_timestamp() - make_interval(secs => n.mark_age)
FROM unnest($1::int[], $2::bigint[], $3::uuid[], $4::bigint[], $5::uuid[], $8::int[], $9::int[], $10::bigint[], $12::bigint[],
            $13::text[], $14::float8[])
     AS n (lane, token, nonce, parent_token, parent_nonce, skipped, ids, position, mark, holders, mark_age)
WHERE (n.parent_token, n.parent_nonce) =
      (SELECT b.token, b.nonce FROM {relay}.batch_log b WHERE b.lane = n.lane ORDER BY b.lane DESC, b.token DESC LIMIT 1)
  AND n.token > n.parent_token
RETURNING clock_timestamp()
