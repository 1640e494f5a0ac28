-- How far every copy has come.
SELECT b.entity, b.exhausted, b.paused, b.rate, b.estimate, b.began_at, b.touched_at, b.ended_at, b.sequences,
       EXISTS (SELECT FROM {relay}.job j WHERE j.source_id = b.source_id AND j.ended_at IS NULL AND j.kind = 'backfill' AND b.entity = ANY (j.entities)
               AND (b.ended_at IS NULL OR j.progress->>'entity' = b.entity) AND j.beat_at > clock_timestamp() - interval '30 seconds') AS working,
       (b.rows + coalesce((SELECT sum(l.rows) FROM {relay}.backfill_lane l JOIN {relay}.backfill_page p USING (source_id, entity, page)
                           WHERE l.source_id = b.source_id AND l.entity = b.entity), 0))::bigint AS rows,
       l.refused, l.pending, l.waiting
FROM {relay}.backfill b
CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE reason = 'refused') AS refused, count(*) FILTER (WHERE reason = 'pending') AS pending,
                           count(*) FILTER (WHERE reason IN ('waiting', 'failed')) AS waiting
                    FROM {relay}.backfill_left f WHERE f.source_id = b.source_id AND f.entity = b.entity) l
WHERE b.source_id = {source}
ORDER BY b.began_at, b.entity
