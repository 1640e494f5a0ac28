-- What would have the application's writes fail, or events wrong, once the triggers stand: a sentence each, with what to do. Asked before
-- installing, and again by the script that installs. The function is SECURITY DEFINER: its owner writes the outbox, who stays the same
-- where it is only replaced. A VIRTUAL generated column (Postgres 18) is NULL in whatever a trigger is given. Under a key that is unique
-- only at the end of a statement two rows can change places in one, and the second one's delete would come after the first one's insert.
-- Whether a type has an order is looked up as Postgres does: of a domain by its base, of an array by its element, of a row by its columns.
WITH whose AS (
    SELECT r.oid, r.rolname FROM pg_roles r
    WHERE r.oid = coalesce((SELECT p.proowner FROM pg_proc p WHERE p.oid = to_regproc({function_name})),
                           (SELECT u.oid FROM pg_roles u WHERE u.rolname = current_user))
), missing (grant_sql) AS (
    SELECT format('GRANT USAGE ON SCHEMA %I TO %I;', n.nspname, w.rolname)
    FROM whose w CROSS JOIN pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass({outbox_name}) AND NOT has_schema_privilege(w.oid, n.oid, 'USAGE')
    UNION ALL
    SELECT format('GRANT INSERT (%s) ON %s TO %I;', string_agg(format('%I', a.attname), ', ' ORDER BY a.attnum), {outbox_name}, w.rolname)
    FROM whose w CROSS JOIN pg_attribute a
    WHERE a.attrelid = to_regclass({outbox_name}) AND a.attname = ANY ({filled}) AND NOT a.attisdropped
      AND NOT has_column_privilege(w.oid, a.attrelid, a.attnum, 'INSERT')
    GROUP BY w.rolname
    UNION ALL
    SELECT format('GRANT USAGE ON SEQUENCE %s TO %I;', s.oid::regclass, w.rolname)
    FROM whose w CROSS JOIN pg_attrdef f
    JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
    JOIN pg_class s ON s.oid = d.refobjid
    WHERE f.adrelid = to_regclass({outbox_name})
      AND CASE WHEN s.relkind = 'S' THEN NOT has_sequence_privilege(w.oid, s.oid, 'USAGE, UPDATE') ELSE false END
)
SELECT 1 AS n, format('the role %I, to which the function of the triggers on %s belongs, may not insert into the outbox: every write to that '
                      'table would fail. %s    Then install', w.rolname, {table_shown}, string_agg(m.grant_sql, ' ')) AS what
FROM whose w CROSS JOIN missing m
GROUP BY w.rolname
UNION ALL
SELECT 2, format('%s has VIRTUAL generated columns, which are NULL to a trigger: %s. Every event would say so. Make them STORED, or let the '
                 'application write its events', {table_shown}, string_agg(a.attname::text, ', ' ORDER BY a.attnum))
FROM pg_attribute a
WHERE a.attrelid = to_regclass({table_name}) AND a.attnum > 0 AND a.attgenerated = 'v' AND NOT a.attisdropped
HAVING count(*) > 0
UNION ALL
SELECT 3, format('the key of %1$s is unique by %2$I alone, which is DEFERRABLE: rows can change places within a statement, and the order of '
                 'their events would be wrong. CREATE UNIQUE INDEX CONCURRENTLY ON %3$s (%4$s); beside it, or make it NOT DEFERRABLE. Then '
                 'install', {table_shown}, min(x.relname::text), {table_name}, (SELECT string_agg(format('%I', k), ', ') FROM unnest({key}) k))
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
WHERE i.indrelid = to_regclass({table_name}) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
  AND (SELECT array_agg(a.attname::text) FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n)
       JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum WHERE k.n <= i.indnkeyatts) <@ {key}
HAVING NOT bool_or(i.indimmediate)
UNION ALL
SELECT 4, format('%s of the key of %s is of a type without an order, so that nobody can ask whether two keys are equal: every write that changes '
                 'one would fail. Leave it out of legacy.key. Then install',
                 string_agg(DISTINCT format('%I (%s)', b.name, format_type(b.declared, NULL)), ', '), {table_shown})
FROM (
    WITH RECURSIVE part (name, declared, type) AS (
        SELECT a.attname, a.atttypid, a.atttypid FROM pg_attribute a
        WHERE a.attrelid = to_regclass({table_name}) AND a.attname = ANY ({key}) AND a.attnum > 0 AND NOT a.attisdropped
        UNION
        SELECT p.name, p.declared, n.type FROM part p JOIN pg_type t ON t.oid = p.type CROSS JOIN LATERAL (
            SELECT t.typbasetype AS type WHERE t.typtype = 'd'
            UNION ALL SELECT e.oid FROM pg_type e WHERE e.typarray = t.oid
            UNION ALL SELECT f.atttypid FROM pg_attribute f
                      WHERE t.typtype = 'c' AND f.attrelid = t.typrelid AND f.attnum > 0 AND NOT f.attisdropped
        ) n
    )
    SELECT p.name, p.declared FROM part p JOIN pg_type t ON t.oid = p.type
    WHERE t.typtype = 'b' AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)
      AND NOT EXISTS (
          SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod AND m.amname = 'btree'
          WHERE o.opcdefault AND (o.opcintype = t.oid OR EXISTS (
              SELECT FROM pg_cast c WHERE c.castsource = t.oid AND c.casttarget = o.opcintype AND c.castmethod = 'b' AND c.castcontext = 'i')))
) b
HAVING count(*) > 0
UNION ALL
SELECT 5, format('%s has tables that inherit from it, whose rows its triggers do not see: %s. Make an entity of each, or make it a partitioned '
                 'table', {table_shown}, string_agg(h.inhrelid::regclass::text, ', ' ORDER BY h.inhrelid))
FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent
WHERE h.inhparent = to_regclass({table_name}) AND p.relkind = 'r'
HAVING count(*) > 0
UNION ALL
SELECT 6, format('on %s stand triggers of capture of another name, which write its changes once more, or for nobody: the table, or the aggregate '
                 'type, was called otherwise when they were installed. %s    Then install', {table_shown},
                 string_agg(format('DROP TRIGGER %I ON %s;', t.tgname, {table_name}), ' ' ORDER BY t.tgname))
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE t.tgrelid = to_regclass({table_name}) AND NOT t.tgisinternal AND p.pronamespace = to_regnamespace({relay_name})
  AND p.proname LIKE 'capture\_%' AND p.proname <> ALL ({known})
HAVING count(*) > 0
ORDER BY n
