-- A row of legacy "users" becomes a row of "customers".
SELECT
  payload->>'id'                            AS id,
  payload->>'name'                          AS full_name,
  lower(payload->>'email')                  AS mail,
  (payload->>'credit_cents')::numeric / 100 AS balance,
  left(payload->>'registered_at', 10)       AS customer_since
FROM event
