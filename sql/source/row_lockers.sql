-- Who may be in the way of settling: other sessions that have locked rows of the outbox for a while. For people.
SELECT string_agg(DISTINCT format('%s of %s (pid %s, since %s)', coalesce(nullif(a.application_name, ''), 'a session'),
                                  coalesce(a.usename, '?'), a.pid, to_char(a.xact_start, 'HH24:MI:SS')), ', ')
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.relation IN (SELECT {outbox_oid} UNION ALL SELECT inhrelid FROM pg_inherits WHERE inhparent = {outbox_oid})
  AND l.granted AND l.mode NOT IN ('AccessShareLock') AND l.pid <> pg_backend_pid()
  AND a.xact_start < clock_timestamp() - interval '1 second'
