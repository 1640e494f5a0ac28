SELECT
  payload->>'id' AS id,
  concat_ws(' ', payload->>'first', payload->>'last') AS name
FROM event
