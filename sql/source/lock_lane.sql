-- The lease. In a statement of its own: what is read about the lane is read in a later one, or it would be as of before the lock.
SELECT lane::int AS locked FROM {relay}.lane WHERE lane = {lane_number} FOR UPDATE SKIP LOCKED;
