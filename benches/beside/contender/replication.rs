//! Postgres' own logical replication of the outbox. On the other side a trigger transforms each row as it comes and keeps the
//! outbox's row itself out, which is the cheapest that can be done there. As durable as the others, or by a subscription's own default, which does not
//! wait for the log (`synchronous_commit = off`), for all can be sent anew.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sqlx::{Connection, PgConnection};

use super::{Drain, OUTBOX};
use crate::ground::{Effect, Ground, Load, Pair, TRANSFORM, run};

/// The last event, of a user that no other is of.
const LAST: &str = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
    VALUES ('User', '0', 'UserChanged', '{\"id\": 0, \"version\": 0, \"first_name\": \"\", \"last_name\": \"\", \"email\": \"\"}')";

/// Publication, subscription and trigger; nothing flows yet. `waits`: for the log, as the others do.
pub(crate) async fn subscribe(ground: &Ground, pair: &Pair, effect: Effect, waits: bool) -> Result<()> {
    run(&pair.legacy, OUTBOX).await?;
    run(&pair.new, OUTBOX).await?;
    let slot = &pair.name;
    run(&pair.legacy, "CREATE PUBLICATION events FOR TABLE outbox WITH (publish = 'insert')").await?;
    let on_conflict = "ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email, city = excluded.city, version = excluded.version";
    let upsert = format!(
        "INSERT INTO public.users (id, name, email, city, version) SELECT {TRANSFORM} FROM (SELECT NEW.payload) e {on_conflict}"
    );
    let note = "INSERT INTO public.applied (event, aggregate, version) VALUES (NEW.id, NEW.aggregate_id, (NEW.payload->>'version')::bigint)";
    let body = match effect {
        Effect::Upsert => format!("{upsert};"),
        Effect::Row => format!("{note};"),
        Effect::Counts => format!("{note}; {upsert}, changes = public.users.changes + 1;"),
    };
    run(
        &pair.new,
        &format!(
            "CREATE FUNCTION take() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NULL; END $$;
             CREATE TRIGGER take BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION take();
             ALTER TABLE outbox ENABLE ALWAYS TRIGGER take;"
        ),
    )
    .await?;
    let address =
        format!("host={} port={} user=postgres dbname={}", ground.sockets[0], ground.legacy.port(), pair.name);
    run(&pair.legacy, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await?;
    run(
        &pair.new,
        &format!(
            "CREATE SUBSCRIPTION {slot} CONNECTION '{address}' PUBLICATION events
             WITH (create_slot = false, slot_name = '{slot}', copy_data = false, enabled = false, binary = true,
                   synchronous_commit = '{}')",
            if waits { "on" } else { "off" }
        ),
    )
    .await
}

/// Lets it flow, or no longer.
pub(crate) async fn enable(pair: &Pair, on: bool) -> Result<()> {
    run(&pair.new, &format!("ALTER SUBSCRIPTION {} {}", pair.name, if on { "ENABLE" } else { "DISABLE" })).await
}

pub(crate) async fn unsubscribe(pair: &Pair) -> Result<()> {
    enable(pair, false).await?;
    run(&pair.new, &format!("ALTER SUBSCRIPTION {} SET (slot_name = NONE)", pair.name)).await?;
    run(&pair.new, &format!("DROP SUBSCRIPTION {}", pair.name)).await?;
    // The sender takes a moment to notice.
    for attempt in 0.. {
        let gone = run(&pair.legacy, &format!("SELECT pg_drop_replication_slot('{}')", pair.name)).await;
        match gone {
            Err(error) if attempt == 100 => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Ok(()) => break,
        }
    }
    Ok(())
}

/// From the moment it is let flow until the last event is there.
pub(super) async fn drain(ground: &Ground, pair: &Pair, load: Load, waits: bool) -> Result<Drain> {
    subscribe(ground, pair, load.effect, waits).await?;
    load.write(&pair.legacy).await?;
    run(&pair.legacy, LAST).await?;
    let before = ground.settled().await?;
    let mut new = PgConnection::connect(&pair.new).await?;
    let started = Instant::now();
    enable(pair, true).await?;
    let last = match load.effect {
        Effect::Row => "SELECT EXISTS (SELECT FROM applied WHERE aggregate = '0')",
        _ => "SELECT EXISTS (SELECT FROM users WHERE id = 0)",
    };
    while !sqlx::query_scalar::<_, bool>(last).fetch_one(&mut new).await? {
        ensure!(started.elapsed() < Duration::from_secs(300), "replication has not arrived");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = started.elapsed();
    let cpu = ground.cpu()?.since(before);
    unsubscribe(pair).await?;
    Ok(Drain { events: load.events, took, cpu, memory_mb: None })
}
