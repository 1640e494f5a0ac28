-- Events of one rare status, oldest first, over the index (status, id). A range instead of an equality, so that the order asked
-- for is the index's own and no plan walks the primary key past millions of processed events.
-- $1 to $7 the filter, $8 the id after which to begin, $9 how many.
SELECT {columns}
FROM {outbox} o
WHERE o.{status} IN ({retry}, {held}, {failed}, {skipped})
  AND (o.{status}, o.{id}) > ({wanted}, $8::bigint) AND o.{status} <= {wanted} AND {matches}
ORDER BY o.{status}, o.{id}
LIMIT $9
