-- What is paused.
SELECT aggregate_type, reason, actor, at FROM {relay}.pause ORDER BY aggregate_type
