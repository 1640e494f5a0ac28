-- The outbox as a table. A unique index of a partitioned one holds the partitions' key besides: that no id comes twice, its sequence
-- sees to. $1 its name, quoted; $2 the id column; $3 the status column. One row, or none where it is not there.
SELECT c.relkind::text AS kind,
       ARRAY(SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
             WHERE i.indrelid = c.oid AND i.indisprimary) AS primary_key,
       EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
               WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND (i.indnkeyatts = 1 OR c.relkind = 'p') AND i.indpred IS NULL
                 AND a.attname = $2) AS unique_ids,
       ARRAY(SELECT x.relname::text FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
             WHERE i.indrelid = c.oid AND i.indisvalid) AS valid_indexes,
       ARRAY(SELECT x.relname::text FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
             WHERE i.indrelid = c.oid AND NOT i.indisvalid) AS invalid_indexes,
       ARRAY(SELECT k.conname::text FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'c') AS checks,
       ARRAY(SELECT k.conname::text FROM pg_constraint k
             WHERE k.conrelid = c.oid AND k.contype = 'c' AND NOT k.convalidated) AS unvalidated
FROM pg_class c
WHERE c.oid = to_regclass($1)
