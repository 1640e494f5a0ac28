-- The leases of several lanes, as far as nobody else has them; see lock_lane.sql.
SELECT lane::int AS locked FROM {relay}.lane WHERE lane = ANY ({lane_numbers}) FOR UPDATE SKIP LOCKED;
