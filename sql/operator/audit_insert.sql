-- What somebody is about to change, in the transaction of the change, or before its first. $1 actor, $2 action, $3 subject,
-- $4 reason, $5 matched, $6 changed.
INSERT INTO {relay}.audit (actor, action, subject, reason, matched, changed) VALUES ($1, $2, $3::text::jsonb, $4, $5, $6) RETURNING id
