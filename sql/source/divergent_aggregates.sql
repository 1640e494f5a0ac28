-- What a type's divergent aggregates are, and by which events. $1 aggregate type.
SELECT aggregate_id, event_id FROM {relay}.divergent WHERE aggregate_type = $1 ORDER BY aggregate_id
