-- Deletes a lane's entries below one that both sides have had for longer than any replica lags, and leaves the mark. That one
-- stays: whichever side goes back, both remember it. $1 source, $2 lanes, $3 the token that stays in each.
WITH gone AS (
    DELETE FROM {relay}.batch_log b
    USING unnest($2::int[], $3::bigint[]) AS k (lane, token)
    WHERE b.source_id = $1 AND b.lane = k.lane AND b.token < k.token
    RETURNING b.lane, b.token, b.applied_at
)
INSERT INTO {relay}.forgotten (source_id, lane, token, until)
SELECT $1, lane, max(token), max(applied_at) FROM gone GROUP BY lane ORDER BY lane
ON CONFLICT (source_id, lane) DO UPDATE SET token = excluded.token, until = excluded.until
