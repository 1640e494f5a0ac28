-- The types of the key's columns and of the aggregate's expression, and whether the rows can be read at all; no row is. Under a
-- left join there is an answer whatever the table holds. Types are named as what has no length (bpchar, "bit"): character and bit
-- alone are character(1) and bit(1), and a cast to them cuts the key without a word. With the schema of each type's own operators:
-- without it an extension's type (citext) is compared as what it can be cast to, in another order than its index has.
SELECT ARRAY[{key_types}] AS key_types, pg_typeof(k.relay_aggregate)::text AS aggregate_type,
       (WITH RECURSIVE base (part, type) AS (
            SELECT u.part, u.type FROM unnest(ARRAY[{key_oids}]::oid[]) WITH ORDINALITY AS u (type, part)
            UNION ALL
            SELECT b.part, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype = 'd'
        )
        SELECT array_agg(coalesce(n.nspname::text, 'pg_catalog') ORDER BY b.part)
        FROM base b
        JOIN pg_type t ON t.oid = b.type AND t.typtype <> 'd'
        LEFT JOIN pg_opclass c ON c.opcintype = t.oid AND c.opcdefault AND c.opcmethod = (SELECT oid FROM pg_am WHERE amname = 'btree')
        LEFT JOIN pg_amop o ON o.amopfamily = c.opcfamily AND o.amopstrategy = 3 AND o.amoplefttype = t.oid AND o.amoprighttype = t.oid
        LEFT JOIN pg_operator p ON p.oid = o.amopopr
        LEFT JOIN pg_namespace n ON n.oid = p.oprnamespace) AS key_schemas
FROM (SELECT 1) AS one
LEFT JOIN (SELECT {key_columns}, ({aggregate_id})::text AS relay_aggregate, to_jsonb(relay_row) AS relay_payload
           FROM {rows} AS relay_row LIMIT 0) AS k ON true
