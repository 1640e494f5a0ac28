-- Deletes a lane's oldest entries together with their processed events, and leaves the mark. Under the lane's lock.
-- $1 lane, $2 seconds: entries and events older than that, $3 entries at the most, $4 and $5 token and nonce of the newest entry
-- that the target is seen to have, $6 events at the most, or one entry: an entry has one event while they trickle, and thousands of a
-- backlog. One that is old enough, and that the target has, always stays: whatever healing puts back or
-- settles above it, both sides remember that one. Always a prefix of the log, whatever a failover did to the clock. An event of an
-- old entry that was processed again since (replayed) belongs to a newer entry, and stays.
WITH oldest AS MATERIALIZED (
    SELECT token, ids, settled_at, sum(cardinality(ids)) OVER (ORDER BY token) - cardinality(ids) AS before,
           bool_and(settled_at < now() - make_interval(secs => $2)) OVER (ORDER BY token) AS is_old
    FROM (SELECT * FROM {relay}.batch_log WHERE lane = $1 ORDER BY lane, token LIMIT $3 + 1) b
), old AS MATERIALIZED (
    SELECT token, ids, settled_at FROM oldest
    WHERE before < $6 AND token < (SELECT max(token) FROM oldest WHERE is_old AND token <= $4)
      AND EXISTS (SELECT FROM {relay}.batch_log WHERE lane = $1 AND token = $4 AND nonce = $5)
), ids AS MATERIALIZED (
    SELECT unnest(ids) AS id FROM old
), events AS (
    DELETE FROM {outbox}
    WHERE {id} = ANY (ARRAY(SELECT id FROM ids)) AND {status} = {processed} AND {processed_at} < now() - make_interval(secs => $2)
    RETURNING 1
), attempts AS (
    DELETE FROM {relay}.attempt WHERE id = ANY (ARRAY(SELECT id FROM ids)) AND at < now() - make_interval(secs => $2)
), entries AS (
    DELETE FROM {relay}.batch_log b USING old WHERE b.lane = $1 AND b.token = old.token
), mark AS (
    INSERT INTO {relay}.forgotten (lane, token, until)
    SELECT $1, max(token), max(settled_at) FROM old HAVING count(*) > 0
    ON CONFLICT (lane) DO UPDATE SET token = excluded.token, until = excluded.until
)
SELECT (SELECT count(*) FROM events) AS events, (SELECT count(*) FROM old) AS entries
