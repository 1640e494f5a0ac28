-- All names are qualified: nobody's operator or function of the same name is called by whoever runs this.
SET LOCAL search_path = pg_catalog, pg_temp;
-- What would have the application's writes fail, or events wrong, is an error before anything stands; the last of it is tried, with a row
-- that is there, and taken back.
DO $guard$
#variable_conflict use_column
DECLARE unfit record; old {table}%ROWTYPE; relay_event {outbox}%ROWTYPE;
BEGIN
    FOR unfit IN
{unfit}
    LOOP
        RAISE EXCEPTION '%', unfit.what;
    END LOOP;
    IF NOT has_table_privilege({table_name}, 'SELECT') THEN
        RETURN;
    END IF;
    SELECT * INTO old FROM {table} LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    BEGIN
        relay_event.{aggregate_id} := (SELECT ({aggregate})::text FROM (SELECT old.*) AS relay_row);
        INSERT INTO {outbox} ({aggregate_type}, {aggregate_id}, {event_type}, {payload})
        VALUES ({kind}, relay_event.{aggregate_id}, {insert}, to_jsonb(old));
        INSERT INTO {outbox} ({aggregate_type}, {aggregate_id}, {event_type}, {payload})
        VALUES ({kind}, relay_event.{aggregate_id}, {update}, to_jsonb(old));
        INSERT INTO {outbox} ({aggregate_type}, {aggregate_id}, {event_type}, {payload})
        VALUES ({kind}, relay_event.{aggregate_id}, {delete}, {deleted});
        SET CONSTRAINTS ALL IMMEDIATE;
        RAISE EXCEPTION USING ERRCODE = 'OR000';
    EXCEPTION
        -- That there is such an event already says nothing of the next one.
        WHEN SQLSTATE 'OR000' OR unique_violation THEN NULL;
        -- Nor does who holds a lock just now: it is tried again.
        WHEN lock_not_available OR deadlock_detected OR serialization_failure OR insufficient_resources THEN RAISE;
        WHEN OTHERS THEN
            RAISE EXCEPTION 'the outbox does not take what capture would write of {table_text}, so that every write of it would fail: % (%)', SQLERRM, SQLSTATE;
    END;
END $guard$;
SET LOCAL search_path TO DEFAULT;
