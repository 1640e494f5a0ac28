-- The same for several lanes, as far as nobody else has them: what a frozen worker still holds must not make the others wait.
SELECT lane::int AS locked FROM {relay}.lane WHERE source_id = {source} AND lane = ANY ({lane_numbers}) FOR UPDATE SKIP LOCKED;
