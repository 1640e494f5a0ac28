-- A row of NULLs in the place of what a query yields, of which no row is read: its columns tell of which table the key's are, and every
-- table that the query reads is locked by this transaction from here on. Under a left join there is a row whatever it yields.
SELECT {key} FROM (SELECT 1) AS one LEFT JOIN (SELECT * FROM {rows} AS relay_row LIMIT 0) AS relay_row ON true
