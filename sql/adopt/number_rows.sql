-- Gives the rows that were there before the ordering column their numbers: below all that the sequence hands out, the newest
-- first and downwards, so that an interrupted run goes on where it stopped. Commits every 10,000 rows.
DO $relay$
DECLARE
    place record;
    next bigint := least((SELECT min({id}) FROM {outbox}), {first});
    done bigint := 0;
BEGIN
    FOR place IN SELECT {keys} FROM {outbox} WHERE {id} IS NULL ORDER BY {order} LOOP
        next := next - 1;
        UPDATE {outbox} SET {id} = next WHERE {same} AND {id} IS NULL;
        done := done + 1;
        IF done % 10000 = 0 THEN
            COMMIT;
        END IF;
    END LOOP;
END $relay$;
