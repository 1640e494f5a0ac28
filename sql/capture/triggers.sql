-- Waits for transactions that have written the table: none of their rows is missed.
DROP TRIGGER IF EXISTS {earlier_trigger} ON {table};
CREATE OR REPLACE TRIGGER {row_trigger} AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {function}();
CREATE OR REPLACE TRIGGER {truncate_trigger} BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {function}();
