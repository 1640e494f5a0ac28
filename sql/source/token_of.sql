-- The token of the newest entry but $2 of a lane's log. $1 lane.
SELECT token FROM {relay}.batch_log WHERE lane = $1 ORDER BY lane DESC, token DESC OFFSET $2 LIMIT 1
