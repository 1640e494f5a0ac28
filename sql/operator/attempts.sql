-- The history of an event's failed attempts, the newest hundred, oldest first. $1 its id.
SELECT at, attempts, disposition, cause, code, message
FROM (SELECT * FROM {relay}.attempt WHERE id = $1 ORDER BY at DESC LIMIT 100) newest
ORDER BY at
