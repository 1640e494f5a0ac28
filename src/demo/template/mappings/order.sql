-- A row of legacy "orders" becomes a row of the new "orders": words for codes, money for cents.
SELECT
  payload->>'id'                            AS id,
  payload->>'user_id'                       AS customer_id,
  CASE (payload->>'state')::int
    WHEN 0 THEN 'placed'
    WHEN 1 THEN 'paid'
    WHEN 2 THEN 'shipped'
    WHEN 3 THEN 'delivered'
  END                                       AS status,
  (payload->>'total_cents')::numeric / 100  AS total,
  payload->>'note'                          AS comment,
  payload->>'placed_at'                     AS placed_at
FROM event
