-- Whether the lane has a held event: a row, or none. $1 lane. The states are named twice, for the partial index.
SELECT FROM {outbox}
WHERE {lane} = $1 AND {status} = {held} AND {status} IN ({retry}, {held}, {failed})
LIMIT 1
