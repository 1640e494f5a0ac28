-- Lanes that hold an event. The states are named twice, for the partial index: a probe a lane.
SELECT n.lane
FROM {relay}.lane n
WHERE EXISTS (SELECT FROM {outbox}
              WHERE {lane} = n.lane AND {status} = {held} AND {status} IN ({retry}, {held}, {failed}))
ORDER BY n.lane
