-- What the last verification of each of these entities found; one that was told to end before its end is none. $1 entities,
-- $2 whether samples are meant, or full ones, $3 what one says that was told to end, $4 whether it must have come to an answer.
SELECT v.report_id, v.entity, v.mode, v.finished_at, v.report::text AS report
FROM unnest($1::text[]) AS e (name)
CROSS JOIN LATERAL (
    SELECT * FROM {relay}.verify_entity v
    WHERE v.source_id = {source} AND v.entity = e.name AND (v.mode <> 'full') = $2 AND v.report->>'message' IS DISTINCT FROM $3
        AND NOT ($4 AND v.report->>'outcome' = 'could_not')
    ORDER BY v.report_id DESC LIMIT 1
) AS v
