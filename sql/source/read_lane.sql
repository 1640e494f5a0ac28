-- What a worker must know of a lane that it holds: a new token, the newest entry of the log, who this server is.
SELECT nextval({tokens})::bigint AS drawn, l.token, l.nonce::text AS nonce, l.peer, l.position,
       array_to_json(l.passed)::text AS passed, l.mark, array_to_json(l.mark_holders)::text AS mark_holders,
       extract(epoch FROM clock_timestamp() - l.marked_at)::float8 AS mark_age,
       (SELECT min(id) FROM {relay}.put_back WHERE lane = {lane_number})::bigint AS put_back,
       {identity} AS identity,
       (SELECT json_agg(aggregate_type) FROM {relay}.pause)::text AS paused
FROM (SELECT 1) one
LEFT JOIN LATERAL (SELECT * FROM {relay}.batch_log WHERE lane = {lane_number} ORDER BY lane DESC, token DESC LIMIT 1) l ON true;
