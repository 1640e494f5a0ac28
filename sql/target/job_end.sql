-- It has ended. $1 id, $2 state, $3 code, $4 message, $5 result, $6 progress.
UPDATE {relay}.job
SET ended_at = clock_timestamp(), beat_at = clock_timestamp(), state = $2, code = $3, message = $4, result = $5::text::jsonb,
    progress = coalesce($6::text::jsonb, progress)
WHERE id = $1
