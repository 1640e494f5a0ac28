-- The relay's own tables beside the new service's.
CREATE SCHEMA IF NOT EXISTS {relay};

-- One row: what this installation is.
CREATE TABLE IF NOT EXISTS {relay}.installation (
    only_row      boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    target_id     uuid NOT NULL DEFAULT gen_random_uuid(),
    version       int NOT NULL,
    installed_at  timestamptz NOT NULL DEFAULT now()
);

-- The outboxes that feed this database.
CREATE TABLE IF NOT EXISTS {relay}.source (
    source_id     uuid PRIMARY KEY,
    lanes         int NOT NULL,
    installed_at  timestamptz NOT NULL DEFAULT now()
);

-- Locked, never updated.
CREATE TABLE IF NOT EXISTS {relay}.lane (
    source_id  uuid NOT NULL REFERENCES {relay}.source ON DELETE CASCADE,
    lane       int NOT NULL,
    PRIMARY KEY (source_id, lane)
);

-- Which batches took effect here. Appended in the batch's own transaction, never updated.
CREATE TABLE IF NOT EXISTS {relay}.batch_log (
    source_id        uuid NOT NULL,
    lane             int NOT NULL,
    token            bigint NOT NULL,
    nonce            uuid NOT NULL,
    parent_token     bigint,
    parent_nonce     uuid,
    peer             text NOT NULL,              -- system_identifier/database of the source
    ids              bigint[] NOT NULL,
    event_ids        uuid[] NOT NULL,
    aggregate_types  text[] NOT NULL,
    aggregate_ids    text[] NOT NULL,
    given_up         bool[] NOT NULL,            -- else applied
    applied_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source_id, lane, token)
);
-- Compressing what is deleted after an hour took as long as all else in appending it.
ALTER TABLE {relay}.batch_log
    ALTER COLUMN ids SET STORAGE EXTERNAL, ALTER COLUMN event_ids SET STORAGE EXTERNAL, ALTER COLUMN given_up SET STORAGE EXTERNAL,
    ALTER COLUMN aggregate_types SET STORAGE EXTERNAL, ALTER COLUMN aggregate_ids SET STORAGE EXTERNAL;

-- The mark: older entries, which both sides had, were deleted on purpose.
CREATE TABLE IF NOT EXISTS {relay}.forgotten (
    source_id  uuid NOT NULL,
    lane       int NOT NULL,
    token      bigint NOT NULL,
    until      timestamptz NOT NULL,
    PRIMARY KEY (source_id, lane)
);

-- What verifications found, and when.
CREATE TABLE IF NOT EXISTS {relay}.verify_report (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id    uuid NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at  timestamptz,                    -- NULL: it runs, or was killed
    by           text NOT NULL,                  -- command or run
    mode         text NOT NULL,
    outcome      text,
    report       jsonb
);

CREATE TABLE IF NOT EXISTS {relay}.verify_difference (
    report_id   bigint NOT NULL REFERENCES {relay}.verify_report ON DELETE CASCADE,
    n           bigint GENERATED ALWAYS AS IDENTITY,
    entity      text NOT NULL,
    difference  jsonb NOT NULL,
    PRIMARY KEY (report_id, n)
);

-- What repair and resync changed, row by row, in the transaction of the change.
CREATE TABLE IF NOT EXISTS {relay}.repaired (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id   uuid NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor       text NOT NULL,
    reason      text NOT NULL,
    command     text NOT NULL,                   -- repair or resync
    entity      text NOT NULL,
    key         jsonb NOT NULL,
    action      text NOT NULL,                   -- write or delete
    before      jsonb,
    after       jsonb
);

-- Refuses a row of a mapping with a clear word, inside a statement.
CREATE OR REPLACE FUNCTION {relay}.refuse(code text, message text) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message;
END $$;

-- Copies of whole tables: how far each has come. If this database goes back in time, so does what it says here.
CREATE TABLE IF NOT EXISTS {relay}.backfill (
    source_id   uuid NOT NULL,
    entity      text NOT NULL,
    after       text,                              -- pages up to this key (JSON) were handed out
    exhausted   boolean NOT NULL DEFAULT false,    -- there are no more
    pages       bigint NOT NULL DEFAULT 0,
    rows        bigint NOT NULL DEFAULT 0,         -- copied, in pages that are done
    rate        float8,                            -- rows a second, lately
    estimate    bigint,                            -- rows in the legacy table, about
    paused      boolean NOT NULL DEFAULT false,
    began_at    timestamptz NOT NULL DEFAULT now(),
    touched_at  timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz,
    PRIMARY KEY (source_id, entity)
);
-- The sequences that were set past the highest value when it ended.
ALTER TABLE {relay}.backfill ADD COLUMN IF NOT EXISTS sequences text[] NOT NULL DEFAULT '{}';
-- Another one each time that it is begun anew: who copies for an older one notes nothing any more.
ALTER TABLE {relay}.backfill ADD COLUMN IF NOT EXISTS generation uuid NOT NULL DEFAULT gen_random_uuid();

-- Pages that were handed out and are not done.
CREATE TABLE IF NOT EXISTS {relay}.backfill_page (
    source_id  uuid NOT NULL,
    entity     text NOT NULL,
    page       bigint NOT NULL,
    after      text,
    until      text NOT NULL,
    PRIMARY KEY (source_id, entity, page)
);

-- The lanes of such a page that are done, each written with its rows in one transaction.
CREATE TABLE IF NOT EXISTS {relay}.backfill_lane (
    source_id  uuid NOT NULL,
    entity     text NOT NULL,
    page       bigint NOT NULL,
    lane       int NOT NULL,
    rows       bigint NOT NULL,
    PRIMARY KEY (source_id, entity, page, lane)
);

-- Rows that were left out: refused by the new table, or with events on their way that bring them.
CREATE TABLE IF NOT EXISTS {relay}.backfill_left (
    source_id  uuid NOT NULL,
    entity     text NOT NULL,
    key        text NOT NULL,                      -- JSON
    lane       int NOT NULL,
    reason     text NOT NULL,                      -- refused, pending, waiting, failed
    event      bigint,                             -- pending: the event that brings it, if it writes the whole row
    code       text,
    message    text,
    at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source_id, entity, key)
);

-- Long pieces of work: who does which, how far it is, what came of it. Whoever does one says so every two seconds.
CREATE TABLE IF NOT EXISTS {relay}.job (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id  uuid NOT NULL,
    kind       text NOT NULL,                      -- backfill, verify, repair, resync
    entities   text[] NOT NULL,
    request    jsonb NOT NULL,                     -- what was asked for
    actor      text NOT NULL,
    reason     text NOT NULL,
    via        text NOT NULL,                      -- command, api, run
    host       text NOT NULL,                      -- and process
    began_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    progress   jsonb,
    stop       boolean NOT NULL DEFAULT false,     -- somebody asked for its end
    ended_at   timestamptz,
    state      text,                               -- done, stopped, failed; NULL: under way, or its process is gone
    code       text,
    message    text,
    result     jsonb
);
CREATE INDEX IF NOT EXISTS job_open ON {relay}.job (source_id, id) WHERE ended_at IS NULL;

-- What the last verifications of each entity found: the part of the report that the metrics and the page show all the time.
CREATE TABLE IF NOT EXISTS {relay}.verify_entity (
    report_id    bigint NOT NULL REFERENCES {relay}.verify_report ON DELETE CASCADE,
    source_id    uuid NOT NULL,
    entity       text NOT NULL,
    mode         text NOT NULL,
    finished_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    report       jsonb NOT NULL,
    PRIMARY KEY (report_id, entity)
);
CREATE INDEX IF NOT EXISTS verify_entity_last ON {relay}.verify_entity (source_id, entity, report_id DESC);
CREATE INDEX IF NOT EXISTS repaired_entity ON {relay}.repaired (source_id, entity, id DESC);
