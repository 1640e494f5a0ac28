-- These still go on, whichever process sees it. $1 which.
UPDATE {relay}.alert SET seen_at = clock_timestamp() WHERE what = ANY ($1)
