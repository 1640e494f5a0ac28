-- What keeps a drain from being over. $1 stopped aggregate types. Existence only: an index probe each.
SELECT EXISTS (SELECT FROM {outbox} WHERE {status} = {pending} AND {aggregate_type}::text <> ALL ($1::text[])) AS pending,
       EXISTS (SELECT FROM {outbox} WHERE {status} = {retry} AND {aggregate_type}::text <> ALL ($1::text[])) AS retry,
       EXISTS (SELECT FROM {outbox} WHERE {status} IN ({pending}, {retry}) AND {aggregate_type}::text = ANY ($1::text[])) AS stopped,
       EXISTS (SELECT FROM {outbox} WHERE {status} = {failed}) AS failed,
       EXISTS (SELECT FROM {outbox} WHERE {status} = {held}) AS held
