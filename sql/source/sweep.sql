-- Aggregates of a lane whose lowest waiting event is held: nothing blocks it. A loose scan of the index of what waits: one probe
-- an aggregate, however many events wait behind it. $1 lane, $2 and $3 the pairs of aggregate type and event type that are
-- mapped (an unmapped event stays held), $4 aggregate types that pass failed events over.
WITH RECURSIVE first AS (
    (SELECT {hash} AS hash, {id} AS id, {status} = {held} AS is_held, {aggregate_type}::text AS kind,
            {aggregate_id}::text AS aggregate, {event_type}::text AS event_type
     FROM {outbox}
     WHERE {lane} = $1 AND {status} IN ({retry}, {held}, {failed}) AND NOT ({status} = {failed} AND {aggregate_type}::text = ANY ($4::text[]))
     ORDER BY {lane}, {hash}, {id} LIMIT 1)
    UNION ALL
    SELECT n.* FROM first f CROSS JOIN LATERAL (
        SELECT {hash} AS hash, {id} AS id, {status} = {held} AS is_held, {aggregate_type}::text AS kind,
               {aggregate_id}::text AS aggregate, {event_type}::text AS event_type
        FROM {outbox}
        WHERE {lane} = $1 AND {status} IN ({retry}, {held}, {failed}) AND NOT ({status} = {failed} AND {aggregate_type}::text = ANY ($4::text[]))
          AND {hash} > f.hash
        ORDER BY {lane}, {hash}, {id} LIMIT 1) n
)
SELECT kind, aggregate FROM first
WHERE is_held AND (kind, event_type) IN (SELECT * FROM unnest($2::text[], $3::text[]))
