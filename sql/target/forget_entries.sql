-- Deletes what both sides have had for longer than any replica lags, and leaves the mark. Of what is that old the newest entry
-- stays: the source may go back to when it was the newest, however quiet the lane was. Always a prefix of a lane's log, whatever
-- a failover did to the clock: healing must not find holes above the mark.
-- $1 source, $2 lanes, $3 the newest token of each that both sides are known to have, $4 seconds.
WITH known AS (
    SELECT k.lane, (SELECT max(b.token) FROM {relay}.batch_log b
                    WHERE b.source_id = $1 AND b.lane = k.lane AND b.token <= k.token
                      AND b.token < coalesce((SELECT min(young.token) FROM {relay}.batch_log young
                                              WHERE young.source_id = $1 AND young.lane = k.lane
                                                AND young.applied_at >= now() - make_interval(secs => $4)),
                                             9223372036854775807)) AS below
    FROM unnest($2::int[], $3::bigint[]) AS k (lane, token)
), gone AS (
    DELETE FROM {relay}.batch_log b
    USING known
    WHERE b.source_id = $1 AND b.lane = known.lane AND b.token < known.below
    RETURNING b.lane, b.token, b.applied_at
)
INSERT INTO {relay}.forgotten (source_id, lane, token, until)
SELECT $1, lane, max(token), max(applied_at) FROM gone GROUP BY lane ORDER BY lane
ON CONFLICT (source_id, lane) DO UPDATE SET token = excluded.token, until = excluded.until
