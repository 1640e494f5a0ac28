-- Read after claim_lanes.sql, in a later statement, as recheck.sql is after claim.sql: in which of the lanes something is the matter,
-- so that what was claimed there may not just be applied. `blocked`: an aggregate has an event in retry, held or failed; else an event
-- below the last one claimed was locked, or has come since. $1 lanes, $2 where their scans began, $3 the highest ids claimed, $4 how
-- many were, $5 stopped aggregate types, $6 the lanes of the aggregates claimed, $7 and $8 these aggregates, $9 aggregate types that
-- pass failed events over.
SELECT n.lane, d.blocked
FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[]) AS n (lane, first, last, claimed)
CROSS JOIN LATERAL (
    SELECT (SELECT count(*) FROM {outbox}
            WHERE {lane} = n.lane AND {status} = {pending} AND {id} BETWEEN n.first AND n.last
              AND {aggregate_type}::text <> ALL ($5::text[])) <> n.claimed AS others,
           EXISTS (SELECT FROM {outbox} WHERE {lane} = n.lane AND {status} IN ({retry}, {held}, {failed}))
           AND EXISTS (
               SELECT
               FROM unnest($6::int[], $7::text[], $8::text[]) AS k (lane, aggregate_type, aggregate_id)
               CROSS JOIN LATERAL (
                   SELECT FROM {outbox}
                   WHERE {lane} = n.lane AND {hash} = {hash_of_key} AND {status} IN ({retry}, {held}, {failed})
                     AND {aggregate_type}::text = k.aggregate_type AND {aggregate_id}::text = k.aggregate_id
                     AND NOT ({status} = {failed} AND k.aggregate_type = ANY ($9::text[]))
                   LIMIT 1
               ) b
               WHERE k.lane = n.lane) AS blocked
) d
WHERE d.others OR d.blocked
