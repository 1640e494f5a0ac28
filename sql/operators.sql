(
    -- The schema of the own operators of the type of column `a`, below any domains; NULL: the type has none. Without it an extension's type
    -- (citext) off the search path is compared as text.
    WITH RECURSIVE base (type) AS (
        SELECT a.atttypid
        UNION ALL
        SELECT t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype = 'd'
    )
    SELECT s.nspname::text
    FROM base b
    JOIN pg_opclass p ON p.opcintype = b.type AND p.opcdefault AND p.opcmethod = (SELECT oid FROM pg_am WHERE amname = 'btree')
    JOIN pg_amop o ON o.amopfamily = p.opcfamily AND o.amopstrategy = 3 AND o.amoplefttype = b.type AND o.amoprighttype = b.type
    JOIN pg_operator q ON q.oid = o.amopopr
    JOIN pg_namespace s ON s.oid = q.oprnamespace
)
