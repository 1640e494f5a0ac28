-- The new service's own schema, which its migrations would create.
CREATE TABLE users (
  id bigint PRIMARY KEY,
  name text NOT NULL
);
