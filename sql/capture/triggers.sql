-- Waits for transactions that have written the table: none of their rows is missed. Triggers that fire for replicated changes too, as a DBA
-- made them, go on to.
DO $triggers$
DECLARE
    row_always boolean := EXISTS (
        SELECT FROM pg_trigger WHERE tgrelid = to_regclass({table_name}) AND tgname = ANY ({row_triggers}) AND tgenabled = 'A'
    );
    truncate_always boolean := EXISTS (
        SELECT FROM pg_trigger WHERE tgrelid = to_regclass({table_name}) AND tgname = {truncate_name} AND tgenabled = 'A'
    );
BEGIN
    DROP TRIGGER IF EXISTS {earlier_trigger} ON {table};
    CREATE OR REPLACE TRIGGER {row_trigger} AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {function}();
    CREATE OR REPLACE TRIGGER {truncate_trigger} BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {function}();
    IF row_always THEN
        ALTER TABLE {table} ENABLE ALWAYS TRIGGER {row_trigger};
    END IF;
    IF truncate_always THEN
        ALTER TABLE {table} ENABLE ALWAYS TRIGGER {truncate_trigger};
    END IF;
END $triggers$;
