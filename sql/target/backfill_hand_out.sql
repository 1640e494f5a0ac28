-- Notes a page before its first row is copied, so that it can be found again. $1 entity, $2 page, $3 after, $4 its last key (NULL:
-- there is no page any more), $5 whether it is the last one.
WITH page AS (
    INSERT INTO {relay}.backfill_page (source_id, entity, page, after, until)
    SELECT {source}, $1, $2, $3, $4 WHERE $4::text IS NOT NULL
)
UPDATE {relay}.backfill SET after = coalesce($4, after), exhausted = $5, pages = $2, touched_at = now()
WHERE source_id = {source} AND entity = $1
