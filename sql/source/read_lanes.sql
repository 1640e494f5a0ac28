-- What a worker must know of each of several lanes that it holds, $1; see read_lane.sql.
SELECT n.lane, nextval({tokens})::bigint AS drawn, l.token, l.nonce::text AS nonce, l.peer, l.position,
       array_to_json(l.passed)::text AS passed, l.mark, array_to_json(l.mark_holders)::text AS mark_holders,
       extract(epoch FROM clock_timestamp() - l.marked_at)::float8 AS mark_age,
       (SELECT min(id) FROM {relay}.put_back b WHERE b.lane = n.lane)::bigint AS put_back,
       i.identity, i.paused
FROM (SELECT {identity} AS identity, (SELECT json_agg(aggregate_type) FROM {relay}.pause)::text AS paused) i
CROSS JOIN unnest($1::int[]) AS n (lane)
LEFT JOIN LATERAL (SELECT * FROM {relay}.batch_log b WHERE b.lane = n.lane ORDER BY b.lane DESC, b.token DESC LIMIT 1) l ON true
