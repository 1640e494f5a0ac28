-- What came of it, where rows of the new database were changed. $1 id, $2 matched, $3 changed.
UPDATE {relay}.audit SET matched = $2, changed = $3 WHERE id = $1
