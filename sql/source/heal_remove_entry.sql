-- $1 lane, $2 token, $3 nonce. Leaves word where the next scan must start, at the latest: the entry's own position and the
-- lowest id put back ($4, may be NULL); the previous entry's position holds by itself.
WITH gone AS (
    DELETE FROM {relay}.batch_log WHERE lane = $1 AND token = $2 AND nonce = $3 RETURNING position, ids
)
INSERT INTO {relay}.put_back (lane, id)
SELECT $1, least(position, $4, (SELECT min(i) FROM unnest(ids) i)) FROM gone
