-- The sequences behind a table's columns of numbers: an identity's, one that a column owns, and whatever a column's default draws from. Of
-- what is not a number ('ORD-' || nextval(…)) nobody can tell how far the sequence is.
-- $1 the table, quoted.
SELECT DISTINCT a.attnum, a.attname::text AS name, format('%I.%I', n.nspname, s.relname) AS sequence
FROM pg_attribute a
LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
JOIN pg_depend d ON (d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid
                     AND d.refobjsubid = a.attnum AND d.deptype IN ('a', 'i'))
                 OR (d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass)
JOIN pg_class s ON s.relkind = 'S' AND s.oid = CASE WHEN d.classid = 'pg_attrdef'::regclass THEN d.refobjid ELSE d.objid END
JOIN pg_namespace n ON n.oid = s.relnamespace
JOIN pg_sequence q ON q.seqrelid = s.oid AND q.seqincrement > 0
WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped
  AND (WITH RECURSIVE base (type) AS (
           SELECT a.atttypid UNION ALL SELECT t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype = 'd'
       )
       SELECT bool_or(b.type IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype)) FROM base b)
ORDER BY a.attnum, sequence
