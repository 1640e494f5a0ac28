-- What keeps a drain from being over. $1 stopped aggregate types; what is paused waits for an operator as well. Existence only:
-- an index probe each.
WITH stopped AS MATERIALIZED (
    SELECT $1::text[] || ARRAY(SELECT aggregate_type FROM {relay}.pause) AS kinds
)
SELECT NOT ('' = ANY (s.kinds))
       AND EXISTS (SELECT FROM {outbox} WHERE {status} = {pending} AND {aggregate_type}::text <> ALL (s.kinds)) AS pending,
       NOT ('' = ANY (s.kinds))
       AND EXISTS (SELECT FROM {outbox} WHERE {status} = {retry} AND {aggregate_type}::text <> ALL (s.kinds)) AS retry,
       EXISTS (SELECT FROM {outbox}
               WHERE {status} IN ({pending}, {retry}) AND ('' = ANY (s.kinds) OR {aggregate_type}::text = ANY (s.kinds))) AS stopped,
       EXISTS (SELECT FROM {outbox} WHERE {status} = {failed}) AS failed,
       EXISTS (SELECT FROM {outbox} WHERE {status} = {held}) AS held
FROM stopped s
