-- Deletes a lane's oldest entries together with their processed events, and leaves the mark. Under the lane's lock.
-- $1 lane, $2 seconds: entries and events older than that, $3 entries at the most, $4 and $5 token and nonce of an entry that the
-- target is known to have: none from there on. An entry stays while the one after it is young, or for ever if there is none: at
-- any moment that the target may go back to, the newest batch that it knew is still known here, however quiet the lane was. An
-- event of an old entry that was processed again since (replayed) belongs to a newer entry, and stays.
WITH oldest AS MATERIALIZED (
    SELECT token, ids, settled_at, settled_at < now() - make_interval(secs => $2) AS is_old
    FROM {relay}.batch_log
    WHERE lane = $1
    ORDER BY lane, token
    LIMIT $3 + 1
), old AS (
    SELECT token, ids, settled_at
    FROM (SELECT token, ids, settled_at, lead(token) OVER w AS next,
                 bool_and(is_old) OVER (w ROWS BETWEEN UNBOUNDED PRECEDING AND 1 FOLLOWING) AS and_next_is_old
          FROM oldest WINDOW w AS (ORDER BY token)) o
    WHERE and_next_is_old AND next <= $4
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
