-- Which of these events ($5) still match, now that their lane is locked. $1 to $7 the filter.
SELECT o.{id}::bigint FROM {outbox} o WHERE o.{id} = ANY ($5::bigint[]) AND o.{status} IN ({wanted}) AND {matches}
