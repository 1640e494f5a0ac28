-- What the demo's new service would like to have instead. The narrow column and the limit are what events will fail on.
CREATE TABLE customers (
    id              bigint PRIMARY KEY,
    full_name       text NOT NULL,
    mail            text NOT NULL,
    balance         numeric(12,2) NOT NULL,
    customer_since  date NOT NULL
);
CREATE TABLE order_status (name text PRIMARY KEY);
INSERT INTO order_status VALUES ('placed'), ('paid'), ('shipped'), ('delivered');
-- No foreign key to customers: a customer and an order are two aggregates, whose events may overtake each other.
CREATE TABLE orders (
    id           bigint PRIMARY KEY,
    customer_id  bigint NOT NULL,
    status       text NOT NULL REFERENCES order_status,
    total        numeric(12,2) NOT NULL CONSTRAINT total_within_limit CHECK (total <= 5000),
    comment      varchar(40),
    placed_at    timestamptz NOT NULL
);
