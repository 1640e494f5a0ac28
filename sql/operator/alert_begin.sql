-- Takes the telling of an alert that was not told yet; one process gets a row, and the others none. One that took it and was not
-- done within $5 seconds has died. $1 which, $2 the process, $3 since when, $4 how bad.
INSERT INTO {relay}.alert AS a (what, since, value, claimed_by, claimed_until)
VALUES ($1, $3, $4, $2, clock_timestamp() + $5::float8 * interval '1 second')
ON CONFLICT (what) DO UPDATE SET claimed_by = excluded.claimed_by, claimed_until = excluded.claimed_until
WHERE NOT a.firing AND a.claimed_until < clock_timestamp()
RETURNING what
