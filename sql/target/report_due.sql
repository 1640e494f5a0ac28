-- Whether the report that goes on by itself is due; asked under a lock, in a statement after it. A pass may take longer than there is
-- between two: nobody begins another one beside it, unless its process has said nothing for half a minute. $1 source, $2 seconds between
-- two of them.
SELECT NOT EXISTS (
    SELECT FROM {relay}.verify_report
    WHERE source_id = $1 AND by = 'run' AND started_at > clock_timestamp() - $2::float8 * interval '1 second'
) AND NOT EXISTS (
    SELECT FROM {relay}.job
    WHERE source_id = $1 AND kind = 'verify' AND via = 'run' AND ended_at IS NULL AND beat_at > clock_timestamp() - interval '30 seconds'
) AS due
