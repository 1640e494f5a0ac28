-- The relay's own tables beside the outbox. Nothing here is ever written by the application.
CREATE SCHEMA IF NOT EXISTS {relay};

-- One row: what this installation is.
CREATE TABLE IF NOT EXISTS {relay}.installation (
    only_row      boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    source_id     uuid NOT NULL DEFAULT gen_random_uuid(),
    target_id     uuid,
    version       int NOT NULL,
    outbox        text NOT NULL,
    lanes         int NOT NULL CHECK (lanes > 0),
    test_lanes    int[] NOT NULL,         -- lanes of a few test keys: the hash must give the same for ever
    installed_at  timestamptz NOT NULL DEFAULT now()
);

-- The lease: locked, never updated.
CREATE TABLE IF NOT EXISTS {relay}.lane (lane int PRIMARY KEY);

CREATE SEQUENCE IF NOT EXISTS {relay}.token;

-- Which batches were settled here. Appended, never updated.
CREATE TABLE IF NOT EXISTS {relay}.batch_log (
    lane          int NOT NULL,
    token         bigint NOT NULL,
    nonce         uuid NOT NULL,
    parent_token  bigint,
    parent_nonce  uuid,
    peer          text NOT NULL,            -- system_identifier/database of the target
    ids           bigint[] NOT NULL,
    position      bigint NOT NULL DEFAULT {lowest}, -- where the next scan may start: all ids below are decided
    passed        text[] NOT NULL DEFAULT '{}', -- but for events of these aggregate types, stopped at the time
    mark          bigint,                   -- the sequence's value when mark_holders were read
    mark_holders  text[] NOT NULL DEFAULT '{}', -- transactions that could still commit an id up to mark
    marked_at     timestamptz,
    settled_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (lane, token)
);
-- To compress numbers costs more than it saves.
ALTER TABLE {relay}.batch_log ALTER COLUMN ids SET STORAGE EXTERNAL;

-- Retention's mark: entries up to this token were deleted on purpose.
CREATE TABLE IF NOT EXISTS {relay}.forgotten (
    lane   int PRIMARY KEY,
    token  bigint NOT NULL,
    until  timestamptz NOT NULL
);

-- Events that somebody put back below a lane's position; the next batch of the lane starts there.
CREATE TABLE IF NOT EXISTS {relay}.put_back (
    lane  int NOT NULL,
    id    bigint NOT NULL,
    at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS put_back_lane ON {relay}.put_back (lane, id);

-- Why an event in retry or failed is there. One row an event, gone when it is processed or skipped.
CREATE TABLE IF NOT EXISTS {relay}.failure (
    id               bigint PRIMARY KEY,
    lane             int NOT NULL,
    entity           text NOT NULL,
    aggregate_type   text NOT NULL,
    cause            text NOT NULL,
    disposition      text NOT NULL,
    code             text NOT NULL,
    message          text NOT NULL,
    constraint_name  text,
    column_name      text,
    detail           text,
    place            text,
    first_at         timestamptz NOT NULL,
    last_at          timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS failure_cause ON {relay}.failure (cause, id);

-- Every attempt that failed.
CREATE TABLE IF NOT EXISTS {relay}.attempt (
    id           bigint NOT NULL,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts     int NOT NULL,
    disposition  text NOT NULL,
    cause        text NOT NULL,
    code         text NOT NULL,
    message      text NOT NULL
);
CREATE INDEX IF NOT EXISTS attempt_id ON {relay}.attempt (id, at);

-- Events that the target knows and the outbox forgot (the source went back in time). Their aggregates need a resync.
CREATE TABLE IF NOT EXISTS {relay}.divergent (
    lane            int NOT NULL,
    token           bigint NOT NULL,
    id              bigint NOT NULL,
    event_id        uuid NOT NULL,
    aggregate_type  text NOT NULL,
    aggregate_id    text NOT NULL,
    at              timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (event_id)
);

-- What is paused: an aggregate type, or all of it ('').
CREATE TABLE IF NOT EXISTS {relay}.pause (
    aggregate_type  text PRIMARY KEY,
    reason          text NOT NULL,
    actor           text NOT NULL,
    at              timestamptz NOT NULL DEFAULT now()
);

-- The last hour for the page: a row a minute and process, forgotten after it.
CREATE TABLE IF NOT EXISTS {relay}.history (
    minute     bigint NOT NULL,             -- since 1970
    instance   uuid NOT NULL,
    name       text NOT NULL,               -- host and process
    seconds    float8 NOT NULL,             -- of the minute, while it was there
    processed  bigint NOT NULL,
    unapplied  bigint,                      -- in the whole outbox
    lags       bigint[] NOT NULL,           -- events by bucket
    batches    bigint[] NOT NULL,           -- by lane
    PRIMARY KEY (minute, instance)
);

-- Which alerts were told to the webhook, so that of several processes one tells them, and a restart does not tell them again.
CREATE TABLE IF NOT EXISTS {relay}.alert (
    what           text PRIMARY KEY,
    firing         boolean NOT NULL DEFAULT false, -- told; before that somebody is about to
    since          timestamptz NOT NULL,
    value          float8 NOT NULL,                -- how bad it was when it was told
    seen_at        timestamptz NOT NULL DEFAULT clock_timestamp(), -- by any process
    told_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    claimed_by     uuid NOT NULL,                  -- the process that tells it
    claimed_until  timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS {relay}.audit (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor    text NOT NULL,
    action   text NOT NULL,
    subject  jsonb NOT NULL,
    reason   text NOT NULL,
    matched  bigint NOT NULL DEFAULT 0,
    changed  bigint NOT NULL DEFAULT 0
);
