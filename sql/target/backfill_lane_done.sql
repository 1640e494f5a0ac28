-- A lane of a page is done: in the transaction that wrote its last rows. $1 entity, $2 page, $3 lane, $4 rows.
INSERT INTO {relay}.backfill_lane (source_id, entity, page, lane, rows) VALUES ({source}, $1, $2, $3, $4)
ON CONFLICT (source_id, entity, page, lane) DO NOTHING
