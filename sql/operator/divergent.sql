-- How many events the target knows and the outbox forgot.
SELECT count(*) AS n FROM (SELECT 1 FROM {relay}.divergent LIMIT 100000) d
