-- The outbox as the contract has it, for those who have none yet.
CREATE TABLE IF NOT EXISTS {outbox} (
    {id}               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    {event_id}         uuid NOT NULL DEFAULT gen_random_uuid(),
    {aggregate_type}   text NOT NULL,
    {aggregate_id}     text NOT NULL,
    {event_type}       text NOT NULL,
    {payload}          jsonb NOT NULL,
    {headers}          jsonb,
    {created_at}       timestamptz NOT NULL DEFAULT now(),
    {status}           text NOT NULL DEFAULT {pending}
                       CHECK ({status} IN ({pending}, {retry}, {held}, {processed}, {failed}, {skipped})),
    {attempts}         int NOT NULL DEFAULT 0 CHECK ({attempts} >= 0),
    {next_attempt_at}  timestamptz,
    {processed_at}     timestamptz,
    {last_error}       text
);
