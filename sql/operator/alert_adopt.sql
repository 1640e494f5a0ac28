-- Told by a process alone, while this database did not answer. $1 which, $2 the process, $3 since when, $4 how bad.
INSERT INTO {relay}.alert AS a (what, since, value, firing, claimed_by, claimed_until)
VALUES ($1, $3, $4, true, $2, '-infinity')
ON CONFLICT (what) DO UPDATE SET firing = true, seen_at = clock_timestamp(), told_at = clock_timestamp()
