-- Whoever does it is asked to end it. $1 id.
UPDATE {relay}.job SET stop = true WHERE source_id = {source} AND id = $1 AND ended_at IS NULL AND NOT stop RETURNING id
