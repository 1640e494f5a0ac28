//! The first copy beside a COPY by hand: the rows as JSON from server to server into a temporary table, and one statement that applies
//! the same mapping to all of it. By hand there is no lock, no checkpoint, and nobody may write meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use comfy_table::Table;
use futures_util::StreamExt as _;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::Scale;
use crate::ground::{Ground, Pair};
use crate::shared::figures::{spread, table};
use crate::shared::servers::{run, value};

/// Where memory is compared with that at full size: it is to be the same.
pub(crate) const SMALL: u32 = 100_000;

pub(crate) const LEGACY: &str =
    "CREATE TABLE users (id bigint PRIMARY KEY, first_name text NOT NULL, last_name text NOT NULL, email text NOT NULL,
    address jsonb NOT NULL, version bigint NOT NULL, note text NOT NULL)";

const NEW: &str = "CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL, city text, version bigint NOT NULL)";

/// From payload to row: a name is put together, an address lowered, a city picked from inside.
pub(crate) const TRANSFORM: &str =
    "(payload->>'id')::bigint AS id, (payload->>'first_name') || ' ' || (payload->>'last_name') AS name,
    lower(payload->>'email') AS email, payload->'address'->>'city' AS city, (payload->>'version')::bigint AS version";

pub(crate) const ENTITY: &str = "[[entity]]\naggregate_type = \"User\"\ntable = \"users\"\nkey = [\"id\"]\nmapping = \"user.sql\"\n\
    legacy = { table = \"public.users\", key = [\"id\"] }\n\
    events = { UserCreated = \"upsert\", UserUpdated = \"upsert\", UserDeleted = \"delete\" }\n";

/// So many users of some 330 characters.
pub(crate) fn rows(number: u32) -> String {
    format!(
        "INSERT INTO users SELECT u, 'Ada' || u % 100, 'Byron' || u, 'User' || u || '@Example.org',
             jsonb_build_object('street', u || ' Long Acre', 'city', 'City' || u % 500), u, repeat('x', 130)
         FROM generate_series(1, {number}) u"
    )
}

/// Copied by hand, and by us.
pub(crate) async fn measure(ground: &Ground, scale: Scale) -> Result<Table> {
    let small = memory_at(ground, SMALL.min(scale.size)).await?;
    let pair = prepared(ground, "copy", scale.size).await?;
    let relay = pair.relay()?;
    let (mut hand, mut ours, mut ratios, mut peak) = (Vec::new(), Vec::new(), Vec::new(), 0.0f64);
    for _ in 0..scale.rounds {
        let by_hand = f64::from(scale.size) / emptied(ground, &pair, by_hand(&pair)).await?.as_secs_f64();
        let mut memory = 0.0;
        let backfill = async {
            let done = pair.tell(&["backfill", "--restart", "--yes", "--json"]).await?;
            memory = done.peak_mb;
            Ok(done.took)
        };
        let by_us = f64::from(scale.size) / emptied(ground, &pair, backfill).await?.as_secs_f64();
        peak = peak.max(memory);
        eprintln!("by hand {by_hand:.0} rows/s, backfill {by_us:.0} rows/s: {:.2}; {memory:.0} MB", by_us / by_hand);
        hand.push(by_hand);
        ours.push(by_us);
        ratios.push(by_us / by_hand);
    }
    drop(relay);
    ground.drop(pair).await?;
    ensure!(
        peak <= small * 1.5,
        "memory grows with the table: {small:.0} MB, and {peak:.0} MB for {} rows",
        scale.size
    );
    let at_small = format!("MB at {}", SMALL.min(scale.size));
    let mut table =
        table(["", "rows/s", "its rate to the copy by hand (to be 0.7)", "MB of memory at the peak", &at_small]);
    table.add_row(["COPY by hand".to_owned(), spread(hand).told(0), String::new(), String::new(), String::new()]);
    table.add_row([
        "backfill, a relay running".to_owned(),
        spread(ours).told(0),
        spread(ratios).told(2),
        format!("{peak:.0}"),
        format!("{small:.0}"),
    ]);
    Ok(table)
}

async fn prepared(ground: &Ground, name: &str, size: u32) -> Result<Pair> {
    let pair = ground.pair(name, [LEGACY, NEW], ENTITY).await?;
    run(&pair.legacy, &rows(size)).await?;
    run(&pair.legacy, "VACUUM ANALYZE users").await?;
    pair.tell(&["capture", "install", "users"]).await?;
    Ok(pair)
}

async fn memory_at(ground: &Ground, size: u32) -> Result<f64> {
    let pair = prepared(ground, "small", size).await?;
    let done = pair.tell(&["backfill", "--json"]).await?;
    same(&pair).await?;
    ground.drop(pair).await?;
    Ok(done.peak_mb)
}

/// A copy into the empty table, checked.
async fn emptied(ground: &Ground, pair: &Pair, copy: impl Future<Output = Result<Duration>>) -> Result<Duration> {
    run(&pair.new, "TRUNCATE users").await?;
    ground.settled().await?;
    let took = copy.await?;
    same(pair).await?;
    Ok(took)
}

async fn same(pair: &Pair) -> Result<()> {
    let row = "count(*) || ' ' || sum(hashtextextended(concat_ws('|', id, name, email, city, version), 0))";
    let mapped = format!(
        "SELECT {row} FROM (SELECT {TRANSFORM} FROM (SELECT to_jsonb(u) AS payload FROM users u OFFSET 0) e) m"
    );
    let expected: Option<String> = value(&pair.legacy, &mapped).await?;
    let found: Option<String> = value(&pair.new, &format!("SELECT {row} FROM users")).await?;
    ensure!(expected == found, "void: {expected:?} should have been copied, {found:?} is there");
    Ok(())
}

async fn by_hand(pair: &Pair) -> Result<Duration> {
    let started = Instant::now();
    let mut legacy = PgConnection::connect(&pair.legacy).await?;
    let mut new = PgConnection::connect(&pair.new).await?;
    new.execute("BEGIN; CREATE TEMPORARY TABLE incoming (payload jsonb) ON COMMIT DROP").await?;
    let mut out = legacy.copy_out_raw("COPY (SELECT row_to_json(u) FROM users u) TO STDOUT").await?;
    let mut incoming = new.copy_in_raw("COPY incoming FROM STDIN").await?;
    // As psql in a pipe would: by the buffer, not by the row.
    let mut buffer = Vec::with_capacity(256 << 10);
    while let Some(row) = out.next().await {
        buffer.extend_from_slice(&row?);
        if buffer.len() > 128 << 10 {
            incoming.send(buffer.as_slice()).await?;
            buffer.clear();
        }
    }
    incoming.send(buffer.as_slice()).await?;
    incoming.finish().await?;
    drop(out);
    let apply = format!(
        "INSERT INTO users (id, name, email, city, version) SELECT {TRANSFORM} FROM incoming ORDER BY 1
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email, city = excluded.city, version = excluded.version"
    );
    new.execute(sqlx::raw_sql(AssertSqlSafe(apply))).await?;
    new.execute("COMMIT").await?;
    Ok(started.elapsed())
}
