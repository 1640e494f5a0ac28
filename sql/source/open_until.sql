-- What of a type's events up to a mark is not applied yet: on its way, and stuck. $1 aggregate type, $2 the mark.
SELECT EXISTS (SELECT FROM {outbox} WHERE {status} = {pending} AND {aggregate_type}::text = $1 AND {id} <= $2) AS pending,
       EXISTS (SELECT FROM {outbox} WHERE {status} IN ({retry}, {held}, {failed}) AND {aggregate_type}::text = $1 AND {id} <= $2) AS stuck
