-- Whoever does it is there, and has come so far; whether somebody asked for its end. $1 id, $2 progress.
UPDATE {relay}.job SET beat_at = clock_timestamp(), progress = coalesce($2::text::jsonb, progress) WHERE id = $1 RETURNING stop
