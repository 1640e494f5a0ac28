-- Writes the event of one change of one row, in the transaction that changes it and while the row is locked: so the order of ids is
-- the order of changes. SECURITY DEFINER, because whoever writes the table needs no grant on the outbox for that, and a
-- write that was allowed yesterday must not fail today; so the search path is pinned, and nobody may attach it elsewhere. The
-- other settings pin what a row reads like as JSON. For the same reason {aggregate} is the key's text where the configured
-- expression gives NULL, which no event can have: events of that row keep their order, and none is lost. It is put into a row of
-- the outbox first, for that may have a uuid or a number there, which no text is assigned to; of a row's columns plpgsql asks the types anew where
-- they have changed.
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET TimeZone = 'UTC' SET DateStyle = 'ISO, MDY' SET IntervalStyle = 'postgres' SET bytea_output = 'hex' SET extra_float_digits = 1
AS $capture$
#variable_conflict use_column
DECLARE relay_event {outbox}%ROWTYPE;
BEGIN
    -- Changes that the relay makes itself are no news.
    IF current_setting('outbox_relay.applying', true) = 'on' THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'TRUNCATE' THEN
        RAISE EXCEPTION 'TRUNCATE of {table_text} is refused: outbox-relay captures its changes, and TRUNCATE tells no rows'
            USING ERRCODE = '0A000', HINT = 'DELETE the rows; or SET LOCAL outbox_relay.applying = ''on'' and resync afterwards';
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF OLD OPERATOR(pg_catalog.*=) NEW THEN
            RETURN NULL;
        END IF;
        IF NOT {key_changes} THEN
            relay_event.{aggregate_id} := (SELECT ({aggregate})::text FROM (SELECT NEW.*) AS relay_row);
            INSERT INTO {outbox} ({aggregate_type}, {aggregate_id}, {event_type}, {payload})
            VALUES ({kind}, relay_event.{aggregate_id}, {update}, to_jsonb(NEW));
            RETURN NULL;
        END IF;
    END IF;
    -- A key that changes is one row gone, and another come. Where it is only written otherwise (1.5 and 1.50, citext) these may be one row of
    -- the new table, so both are of one aggregate, whose events keep their order.
    IF TG_OP <> 'INSERT' THEN
        IF TG_OP = 'UPDATE' AND {key_is_equal} THEN
            relay_event.{aggregate_id} := (SELECT ({aggregate})::text FROM (SELECT NEW.*) AS relay_row);
        ELSE
            relay_event.{aggregate_id} := (SELECT ({aggregate})::text FROM (SELECT OLD.*) AS relay_row);
        END IF;
        INSERT INTO {outbox} ({aggregate_type}, {aggregate_id}, {event_type}, {payload})
        VALUES ({kind}, relay_event.{aggregate_id}, {delete}, {deleted});
    END IF;
    IF TG_OP <> 'DELETE' THEN
        relay_event.{aggregate_id} := (SELECT ({aggregate})::text FROM (SELECT NEW.*) AS relay_row);
        INSERT INTO {outbox} ({aggregate_type}, {aggregate_id}, {event_type}, {payload})
        VALUES ({kind}, relay_event.{aggregate_id}, {insert}, to_jsonb(NEW));
    END IF;
    RETURN NULL;
END $capture$;
REVOKE ALL ON FUNCTION {function}() FROM PUBLIC;
COMMENT ON FUNCTION {function}() IS {version};
