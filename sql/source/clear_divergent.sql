-- These aggregates were made right. Only the events that were known when that began: another accident may have added more. $1 event ids.
DELETE FROM {relay}.divergent WHERE event_id = ANY ($1)
