-- A lane of a page is done: in the transaction that wrote its last rows. The lock keeps the copy from being begun anew until then; no row: it
-- was. $1 entity, $2 generation, $3 page, $4 lane, $5 rows.
WITH this AS MATERIALIZED (
    SELECT true AS is FROM {relay}.backfill WHERE source_id = {source} AND entity = $1 AND generation = $2 FOR KEY SHARE
), done AS (
    INSERT INTO {relay}.backfill_lane (source_id, entity, page, lane, rows) SELECT {source}, $1, $3, $4, $5 FROM this
    ON CONFLICT (source_id, entity, page, lane) DO NOTHING
)
SELECT this.is FROM this
