-- Over before it was told, or told to be over while this database did not answer. $1 which.
DELETE FROM {relay}.alert WHERE what = $1 AND claimed_until < clock_timestamp()
