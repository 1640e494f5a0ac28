-- $1 lane, $2 how many there are.
WITH known AS (
    INSERT INTO {relay}.source (source_id, lanes) VALUES ({source}, $2) ON CONFLICT DO NOTHING
)
INSERT INTO {relay}.lane (source_id, lane) VALUES ({source}, $1) ON CONFLICT DO NOTHING
