-- It could not be told: whoever comes next may try. $1 which, $2 the process that had taken it.
UPDATE {relay}.alert SET claimed_until = '-infinity' WHERE what = $1 AND claimed_by = $2
