-- Work that has not ended, newest first.
SELECT {job_columns}
FROM {relay}.job WHERE source_id = {source} AND ended_at IS NULL ORDER BY id DESC LIMIT 100
