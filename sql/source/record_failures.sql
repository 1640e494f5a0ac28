-- Why these events failed, now and in their history. $1 lane; arrays: $2 id, $3 entity, $4 aggregate type, $5 cause,
-- $6 disposition, $7 code, $8 message, $9 constraint, $10 column, $11 detail, $12 place, $13 attempts.
WITH now_failing AS (
    SELECT * FROM unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
                         $10::text[], $11::text[], $12::text[], $13::int[])
        AS f (id, entity, aggregate_type, cause, disposition, code, message, constraint_name, column_name, detail, place, attempts)
), history AS (
    INSERT INTO {relay}.attempt (id, attempts, disposition, cause, code, message)
    SELECT id, attempts, disposition, cause, code, message FROM now_failing
)
INSERT INTO {relay}.failure AS f
    (id, lane, entity, aggregate_type, cause, disposition, code, message, constraint_name, column_name, detail, place, first_at, last_at)
SELECT id, $1, entity, aggregate_type, cause, disposition, code, message, constraint_name, column_name, detail, place,
       clock_timestamp(), clock_timestamp()
FROM now_failing
ON CONFLICT (id) DO UPDATE
SET entity = excluded.entity, cause = excluded.cause, disposition = excluded.disposition, code = excluded.code,
    message = excluded.message, constraint_name = excluded.constraint_name, column_name = excluded.column_name,
    detail = excluded.detail, place = excluded.place, last_at = excluded.last_at
