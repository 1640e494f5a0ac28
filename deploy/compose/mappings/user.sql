-- The monolith keeps two names, the new service one.
SELECT
  (payload->>'id')::bigint AS id,
  concat_ws(' ', payload->>'first', payload->>'last') AS name
FROM event
