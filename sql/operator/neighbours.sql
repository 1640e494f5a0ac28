-- What an event waits behind and what waits behind it. $1 lane, $2 and $3 its aggregate, $4 its id. Counts to a hundred thousand.
SELECT (SELECT {id} FROM {outbox}
        WHERE {lane} = $1 AND {hash} = {hash_of_key} AND {status} IN ({retry}, {held}, {failed})
          AND {aggregate_type}::text = k.aggregate_type AND {aggregate_id}::text = k.aggregate_id AND {id} < $4
        ORDER BY {lane}, {hash}, {id} LIMIT 1)::bigint AS held_behind,
       (SELECT count(*) FROM (
            SELECT 1 FROM {outbox}
            WHERE {lane} = $1 AND {hash} = {hash_of_key} AND {status} = {held} AND {status} IN ({retry}, {held}, {failed})
              AND {aggregate_type}::text = k.aggregate_type AND {aggregate_id}::text = k.aggregate_id AND {id} > $4
            LIMIT 100000) behind) AS holds_back
FROM (SELECT $2::text AS aggregate_type, $3::text AS aggregate_id) k
