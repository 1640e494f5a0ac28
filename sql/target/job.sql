-- One piece of work. $1 id.
SELECT {job_columns}
FROM {relay}.job WHERE source_id = {source} AND id = $1
