-- Work of these kinds that is under way for one of these entities, and whose process is there; asked under a lock where it is decided what
-- begins. A dry run is in nobody's way. $1 kinds, $2 entities.
SELECT {job_columns}
FROM {relay}.job
WHERE source_id = {source} AND ended_at IS NULL AND kind = ANY ($1::text[]) AND entities && $2::text[]
  AND request->>'dry_run' IS DISTINCT FROM 'true'
  AND beat_at > clock_timestamp() - interval '30 seconds'
ORDER BY id
