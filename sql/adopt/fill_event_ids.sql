-- Gives the rows that were there before a random event_id. Commits every 10,000 rows.
DO $relay$
DECLARE
    place record;
    done bigint := 0;
BEGIN
    FOR place IN SELECT {keys} FROM {outbox} WHERE {event_id} IS NULL LOOP
        UPDATE {outbox} SET {event_id} = gen_random_uuid() WHERE {same} AND {event_id} IS NULL;
        done := done + 1;
        IF done % 10000 = 0 THEN
            COMMIT;
        END IF;
    END LOOP;
END $relay$;
