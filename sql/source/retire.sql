-- Deletes a lane's oldest entries together with their processed events, and leaves the mark. Under the lane's lock.
-- $1 lane, $2 seconds: entries and events older than that, $3 entries at the most. Never the newest entry. An event of an old
-- entry that was processed again since (replayed) belongs to a newer entry, and stays.
WITH old AS (
    SELECT token, ids, settled_at FROM {relay}.batch_log
    WHERE lane = $1 AND settled_at < now() - make_interval(secs => $2)
      AND token < (SELECT token FROM {relay}.batch_log WHERE lane = $1 ORDER BY lane DESC, token DESC LIMIT 1)
    ORDER BY lane, token
    LIMIT $3
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
