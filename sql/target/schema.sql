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

-- Refuses a row of a mapping with a clear word, inside a statement.
CREATE OR REPLACE FUNCTION {relay}.refuse(code text, message text) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message;
END $$;
