-- The minutes of all processes from $1 on. A bound, should hundreds of processes have come and gone in that hour.
SELECT minute, instance, name, seconds, processed, unapplied, lags, batches
FROM {relay}.history WHERE minute >= $1 ORDER BY minute, instance LIMIT 20000
