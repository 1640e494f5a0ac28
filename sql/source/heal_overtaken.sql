-- Events that stayed unapplied although a later one of their aggregate was settled: they are never applied by themselves.
-- $1 lane, $2 and $3 aggregates, $4 the highest id settled as applied for each.
UPDATE {outbox}
SET {status} = {failed}, {next_attempt_at} = NULL, {last_error} = 'overtaken: a later event of its aggregate was applied before the source went back in time'
FROM unnest($2::text[], $3::text[], $4::bigint[]) AS k (relay_type, relay_aggregate, relay_settled)
WHERE {lane} = $1 AND {status} IN ({pending}, {retry}, {held}) AND {outbox}.{id} < k.relay_settled
  AND {outbox}.{aggregate_type}::text = k.relay_type AND {outbox}.{aggregate_id}::text = k.relay_aggregate
RETURNING {outbox}.{id}::bigint, k.relay_type
