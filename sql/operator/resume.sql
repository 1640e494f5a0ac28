-- $1 aggregate type, or '' for all. No row: it was not paused.
DELETE FROM {relay}.pause WHERE aggregate_type = $1 RETURNING aggregate_type
