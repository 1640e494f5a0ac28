-- It was told that this goes on. $1 which, $2 the process that had taken it, $3 how bad.
UPDATE {relay}.alert
SET firing = true, told_at = clock_timestamp(), seen_at = clock_timestamp(), value = $3, claimed_until = '-infinity'
WHERE what = $1 AND claimed_by = $2
