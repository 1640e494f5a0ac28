-- Keeps a worker that was frozen and has been overtaken away from the lane until it has read the log anew.
SELECT lane::int AS locked FROM {relay}.lane WHERE source_id = {source} AND lane = {lane_number} FOR UPDATE;
