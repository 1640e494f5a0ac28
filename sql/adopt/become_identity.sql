-- From a default to an identity, which needs no grant on its sequence.
DO $relay$
DECLARE
    next bigint;
BEGIN
    LOCK TABLE {outbox} IN ACCESS EXCLUSIVE MODE;
    SELECT nextval({sequence_text}::regclass) INTO next;
    ALTER TABLE {outbox} ALTER COLUMN {id} DROP DEFAULT;
    EXECUTE format({alter}, next);
    DROP SEQUENCE {sequence};
END $relay$;
