-- The token of the newest entry but $3 of a lane's log. $1 source, $2 lane.
SELECT token FROM {relay}.batch_log WHERE source_id = $1 AND lane = $2
ORDER BY source_id DESC, lane DESC, token DESC OFFSET $3 LIMIT 1
