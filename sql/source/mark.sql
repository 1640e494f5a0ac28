-- Retention's mark in a lane's log. $1 lane.
SELECT token, until FROM {relay}.forgotten WHERE lane = $1
