-- Work, newest first. $1 the id below which to begin, $2 how many.
SELECT id, kind, entities, request::text AS request, actor, reason, via, host, began_at, beat_at, progress::text AS progress, stop, ended_at,
       CASE WHEN ended_at IS NOT NULL THEN state WHEN beat_at > clock_timestamp() - interval '30 seconds' THEN 'running' ELSE 'lost' END AS state,
       code, message, result::text AS result
FROM {relay}.job WHERE source_id = {source} AND id < $1 ORDER BY id DESC LIMIT $2
