-- Lanes with work, without a lock: locking empty lanes would burn transaction ids. An index probe a lane. $1 stopped aggregate
-- types, $2 whether to scan from the start instead of from the lane's position (`below` tells what only that finds), $3 whether
-- to look for due retries, $4 the lanes where to look for what is pending, null for all. What is paused is not work either, or every
-- look would send a worker there.
WITH stopped AS MATERIALIZED (
    SELECT $1::text[] || ARRAY(SELECT aggregate_type FROM {relay}.pause) AS kinds
)
SELECT n.lane, p.id IS NOT NULL AS pending, p.id < least(coalesce(l.position, {lowest}), q.id) AS below, d.due IS NOT NULL AS due
FROM stopped s
CROSS JOIN {relay}.lane n
LEFT JOIN LATERAL (
    SELECT CASE WHEN passed <@ s.kinds THEN position ELSE {lowest} END AS position
    FROM {relay}.batch_log b WHERE b.lane = n.lane ORDER BY b.lane DESC, b.token DESC LIMIT 1
) l ON true
LEFT JOIN LATERAL (SELECT min(id) AS id FROM {relay}.put_back b WHERE b.lane = n.lane) q ON true
LEFT JOIN LATERAL (
    SELECT {id} AS id FROM {outbox}
    WHERE ($4::int[] IS NULL OR n.lane = ANY ($4)) AND {lane} = n.lane AND {status} = {pending}
      AND {id} >= CASE WHEN $2 THEN {lowest} ELSE least(coalesce(l.position, {lowest}), q.id) END
      AND {aggregate_type}::text <> ALL (s.kinds)
    ORDER BY {lane}, {id} LIMIT 1
) p ON true
LEFT JOIN LATERAL (
    SELECT 1 AS due FROM {outbox}
    WHERE $3 AND {lane} = n.lane AND {status} = {retry} AND {next_attempt_at} <= now()
      AND {aggregate_type}::text <> ALL (s.kinds)
    ORDER BY {lane}, {next_attempt_at} LIMIT 1
) d ON true
WHERE (p.id IS NOT NULL OR d.due IS NOT NULL) AND NOT ('' = ANY (s.kinds))
