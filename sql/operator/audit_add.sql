-- So many more, in the transaction that changed them. $1 id, $2 changed.
UPDATE {relay}.audit SET changed = changed + $2 WHERE id = $1
