-- What stands in the outbox already. $1 its name, quoted. `base` is the type below any domain; an index over a value's text is
-- possible only where the type's output is immutable (an enum's is not).
SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS full_type, format_type(b.oid, NULL) AS base,
       b.typtype = 'e' AS is_enum, a.attnotnull AS not_null, a.attidentity <> '' AS is_identity,
       a.atthasdef AS has_default, o.provolatile = 'i' AS output_immutable,
       CASE WHEN b.typname IN ('varchar', 'bpchar') AND a.atttypmod > 4 THEN a.atttypmod - 4 END AS length,
       col_description(a.attrelid, a.attnum) AS comment
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
JOIN pg_proc o ON o.oid = b.typoutput
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
