-- What the last verification of each of these entities found. $1 entities, $2 whether samples count.
SELECT v.report_id, v.entity, v.mode, v.finished_at, v.report::text AS report
FROM unnest($1::text[]) AS e (name)
CROSS JOIN LATERAL (
    SELECT * FROM {relay}.verify_entity v
    WHERE v.source_id = {source} AND v.entity = e.name AND ($2 OR v.mode = 'full') ORDER BY v.report_id DESC LIMIT 1
) AS v
