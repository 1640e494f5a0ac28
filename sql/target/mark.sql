-- The mark of what was forgotten on purpose in a lane's log. $1 source, $2 lane.
SELECT token, until FROM {relay}.forgotten WHERE source_id = $1 AND lane = $2
