DROP TRIGGER IF EXISTS {row_trigger} ON {table};
DROP TRIGGER IF EXISTS {earlier_trigger} ON {table};
DROP TRIGGER IF EXISTS {truncate_trigger} ON {table};
DROP FUNCTION IF EXISTS {function}();
