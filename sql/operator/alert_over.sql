-- It was told that this is over. $1 which, $2 the process that had taken it.
DELETE FROM {relay}.alert WHERE what = $1 AND claimed_by = $2
