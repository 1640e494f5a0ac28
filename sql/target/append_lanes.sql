-- An entry for each of several lanes; see append.sql. $1 source, $2 lanes, $3 tokens, $4 nonces, $5 parent tokens, $6 parent nonces,
-- $7 peer, $8 to $11 the events of all, lane after lane, $12 how many of them lie before each lane's, $13 how many each lane has.
INSERT INTO {relay}.batch_log
    (source_id, lane, token, nonce, parent_token, parent_nonce, peer, ids, event_ids, aggregate_types, aggregate_ids, given_up)
SELECT $1, n.lane, n.token, n.nonce, n.parent_token, n.parent_nonce, $7,
       ($8::bigint[])[n.skipped + 1 : n.skipped + n.ids], ($9::uuid[])[n.skipped + 1 : n.skipped + n.ids],
       ($10::text[])[n.skipped + 1 : n.skipped + n.ids], ($11::text[])[n.skipped + 1 : n.skipped + n.ids],
       array_fill(false, ARRAY[n.ids])
FROM unnest($2::int[], $3::bigint[], $4::uuid[], $5::bigint[], $6::uuid[], $12::int[], $13::int[])
     AS n (lane, token, nonce, parent_token, parent_nonce, skipped, ids)
WHERE (n.parent_token, n.parent_nonce) =
      (SELECT b.token, b.nonce FROM {relay}.batch_log b WHERE b.source_id = $1 AND b.lane = n.lane
       ORDER BY b.source_id DESC, b.lane DESC, b.token DESC LIMIT 1)
  AND n.token > n.parent_token
