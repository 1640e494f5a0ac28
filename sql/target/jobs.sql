-- Work, newest first. $1 the id below which to begin, $2 how many.
SELECT {job_columns}
FROM {relay}.job WHERE source_id = {source} AND id < $1 ORDER BY id DESC LIMIT $2
