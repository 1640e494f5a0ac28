-- Deletes what both sides have had for longer than any replica lags, never the newest entry, and leaves the mark. Always a
-- prefix of the log, whatever a failover did to the clock: healing must not find holes above the mark.
-- $1 source, $2 lane, $3 the newest token that both sides are known to have, $4 seconds.
WITH gone AS (
    DELETE FROM {relay}.batch_log
    WHERE source_id = $1 AND lane = $2 AND token < $3
      AND token < (SELECT coalesce(min(token), $3) FROM {relay}.batch_log
                   WHERE source_id = $1 AND lane = $2 AND applied_at >= now() - make_interval(secs => $4))
    RETURNING token, applied_at
)
INSERT INTO {relay}.forgotten (source_id, lane, token, until)
SELECT $1, $2, max(token), max(applied_at) FROM gone HAVING count(*) > 0
ON CONFLICT (source_id, lane) DO UPDATE SET token = excluded.token, until = excluded.until
