-- Whether a table has a foreign key to itself. $1 the table, quoted.
SELECT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND conrelid = to_regclass($1) AND confrelid = conrelid) AS is
