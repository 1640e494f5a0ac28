-- What was done, newest first. $1 the id below which to begin, $2 how many.
SELECT id, at, actor, action, subject::text AS subject, reason, matched, changed
FROM {relay}.audit WHERE id < $1 ORDER BY id DESC LIMIT $2
