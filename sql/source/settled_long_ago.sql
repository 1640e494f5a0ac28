-- Of these batches, which the target has, the newest of each lane that the source has had for some time. $1 lanes, $2 tokens,
-- $3 nonces, $4 seconds.
SELECT b.lane, max(b.token) AS token
FROM unnest($1::int[], $2::bigint[], $3::uuid[]) AS k (lane, token, nonce)
JOIN {relay}.batch_log b ON b.lane = k.lane AND b.token = k.token AND b.nonce = k.nonce
WHERE b.settled_at < now() - make_interval(secs => $4)
GROUP BY b.lane
ORDER BY b.lane
