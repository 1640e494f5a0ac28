-- Which events keep these aggregates from being compared, under the lane's lock. $1 lane, $2 aggregate type, $3 aggregate ids.
SELECT k.aggregate_id, b.id, b.status
FROM (SELECT $2::text AS aggregate_type, unnest($3::text[]) AS aggregate_id) AS k
CROSS JOIN LATERAL (
    SELECT {id} AS id, {status}::text AS status
    FROM {outbox}
    WHERE {lane} = $1 AND {hash} = {hash_of_key} AND {status} IN ({retry}, {held}, {failed})
      AND {aggregate_type}::text = k.aggregate_type AND {aggregate_id}::text = k.aggregate_id
    ORDER BY {lane}, {hash}, {id} LIMIT 1
) b
