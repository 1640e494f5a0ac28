-- What the demo's monolith has grown into: codes for words, cents for money. `init` adds the outbox.
CREATE TABLE users (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name           text NOT NULL,
    email          text NOT NULL,
    credit_cents   bigint NOT NULL DEFAULT 0,
    registered_at  timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE orders (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id      bigint NOT NULL REFERENCES users,
    state        smallint NOT NULL DEFAULT 0,   -- 0 placed, 1 paid, 2 shipped, 3 delivered
    total_cents  bigint NOT NULL,
    note         text,
    placed_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON orders (user_id);
