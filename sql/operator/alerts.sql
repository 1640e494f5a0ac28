-- Which alerts were told, or are being told.
SELECT what, firing, since, value, told_at, seen_at,
       greatest(extract(epoch FROM clock_timestamp() - told_at), 0)::float8 AS told_ago,
       greatest(extract(epoch FROM clock_timestamp() - seen_at), 0)::float8 AS seen_ago
FROM {relay}.alert
