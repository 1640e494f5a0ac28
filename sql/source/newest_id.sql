-- A mark behind every event that is committed now.
SELECT coalesce(max({id}), 0)::bigint FROM {outbox}
