-- Who may still commit a row to the outbox with an id drawn already: read the sequence first, then the holders of a lock that
-- a writer takes and keeps until it ends. Prepared transactions hold it too (their virtual transaction names their xid).
SELECT array_agg(DISTINCT coalesce(pid::text, '') || ':' || virtualtransaction) AS holders
FROM pg_locks
WHERE locktype = 'relation' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND relation IN (SELECT {outbox_oid} UNION ALL SELECT inhrelid FROM pg_inherits WHERE inhparent = {outbox_oid})
  AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
  AND granted AND pid IS DISTINCT FROM pg_backend_pid()
