-- $1 aggregate type, or '' for all; $2 reason, $3 actor. No row: it was paused already.
INSERT INTO {relay}.pause (aggregate_type, reason, actor) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING aggregate_type
