-- What stands there, and what would stand in the way. $1 the table, $2 the function without parentheses, $5 the outbox, each quoted;
-- $3 the triggers, $4 what the first of them was called before; $6 the columns of the outbox that capture fills.
SELECT to_regclass($1) IS NOT NULL AS has_table,
       (SELECT obj_description(p.oid, 'pg_proc') FROM pg_proc p WHERE p.oid = to_regproc($2)) AS version,
       (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = to_regclass($1) AND t.tgname = ANY ($3::text[]) AND t.tgenabled IN ('O', 'A')) AS enabled,
       (SELECT count(*) FROM pg_trigger t
        WHERE t.tgrelid = to_regclass($1) AND t.tgname = ANY ($3::text[] || $4::text) AND t.tgenabled NOT IN ('O', 'A')) AS disabled,
       EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = to_regclass($1) AND t.tgname = $4) AS has_earlier,
       (SELECT string_agg(a.attname::text, ', ') FROM pg_attribute a
        WHERE a.attrelid = to_regclass($5) AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull AND NOT a.atthasdef
          AND a.attidentity = '' AND a.attname <> ALL ($6::text[])) AS unfilled,
       current_user::text AS role
