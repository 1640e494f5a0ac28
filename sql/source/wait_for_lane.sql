-- An operator's turn: waits for the lane, where lock_lane.sql passes on. Within lock_timeout, which is set back afterwards so that
-- a row that somebody else has locked is not waited for as long.
SELECT lane::int AS locked FROM {relay}.lane WHERE lane = {lane_number} FOR UPDATE; SET LOCAL lock_timeout = 2000;
