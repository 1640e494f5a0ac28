-- What waits, by aggregate type and status. Two scans, each over a partial index or the table, as the server sees fit: this is
-- a sample taken now and then, never asked within a request. An event held because its event type is unmapped is told apart.
SELECT w.aggregate_type, w.status, w.unmapped, w.n, extract(epoch FROM clock_timestamp() - w.oldest)::float8 AS oldest_seconds,
       now() AS as_of
FROM (SELECT 1) one
LEFT JOIN (
    SELECT {aggregate_type}::text AS aggregate_type, {pending}::text AS status, false AS unmapped, count(*) AS n,
           min({written_at}) AS oldest
    FROM {outbox}
    WHERE {status} = {pending}
    GROUP BY 1
    UNION ALL
    SELECT {aggregate_type}::text, {status}::text, {status} = {held} AND starts_with(coalesce({last_error}, ''), 'unmapped:'),
           count(*), min({written_at})
    FROM {outbox}
    WHERE {status} IN ({retry}, {held}, {failed})
    GROUP BY 1, 2, 3
) w ON true
