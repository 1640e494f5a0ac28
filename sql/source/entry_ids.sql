-- The events that an entry of the log settled. $1 lane, $2 token.
SELECT ids FROM {relay}.batch_log WHERE lane = $1 AND token = $2
