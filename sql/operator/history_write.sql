-- What one process did in a minute, as far as it has gone. $1 minutes since 1970, $2 the process and $3 its name, $4 seconds of the
-- minute that it was there, $5 events applied, $6 events not applied in the whole outbox, $7 lags by bucket, $8 batches by lane.
INSERT INTO {relay}.history (minute, instance, name, seconds, processed, unapplied, lags, batches)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (minute, instance) DO UPDATE
SET seconds = excluded.seconds, processed = excluded.processed, unapplied = excluded.unapplied, lags = excluded.lags,
    batches = excluded.batches
