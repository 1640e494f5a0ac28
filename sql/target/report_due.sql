-- Whether the report that goes on by itself is due; asked under a lock, in a statement after it. $1 source, $2 seconds between two of them.
SELECT NOT EXISTS (
    SELECT FROM {relay}.verify_report
    WHERE source_id = $1 AND by = 'run' AND started_at > clock_timestamp() - $2::float8 * interval '1 second'
) AS due
