-- Why events wait or were given up, by cause. Only what is in retry or failed now: a row of the relay's table may outlive a
-- change made by hand.
SELECT f.cause, min(f.entity) AS entity, min(f.aggregate_type) AS aggregate_type, min(f.code) AS code,
       (array_agg(f.disposition ORDER BY f.last_at DESC))[1] AS disposition,
       (array_agg(f.message ORDER BY f.last_at DESC))[1] AS message,
       (array_agg(f.place ORDER BY f.last_at DESC))[1] AS place,
       count(*) AS count, count(*) FILTER (WHERE o.{status} = {failed}) AS failed, count(*) FILTER (WHERE o.{status} = {retry}) AS retry,
       min(f.first_at) AS first_at, max(f.last_at) AS last_at, (array_agg(f.id ORDER BY f.id))[1:5] AS sample_ids
FROM {relay}.failure f
JOIN {outbox} o ON o.{id} = f.id AND o.{status} IN ({retry}, {failed})
GROUP BY f.cause
ORDER BY count(*) DESC, f.cause
LIMIT 1000
