//! What capture costs whoever writes: single rows inserted, updated by their key and deleted, each in a transaction of its own, by eight
//! clients at once; with the triggers and without, by turns on the same table, so that a ratio is of neighbours.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use comfy_table::Table;
use sqlx::{Connection, PgConnection};

use crate::Scale;
use crate::copy::{ENTITY, LEGACY, rows};
use crate::ground::{Ground, Pair};
use crate::shared::figures::{spread, table};
use crate::shared::servers::{run, value};

const CLIENTS: i64 = 8;
/// A client's keys: nobody waits for another one's row.
const SPAN: i64 = 1_000_000;

/// What a client does again and again.
const WRITES: [(&str, &str); 4] = [
    (
        "insert",
        "INSERT INTO users SELECT $1::bigint, 'Ada', 'Byron', 'ada@example.org', '{\"street\": \"1 Long Acre\", \"city\": \"London\"}'::jsonb, 1, repeat('x', 130)",
    ),
    ("update by key", "UPDATE users SET version = version + 1 WHERE id = $1"),
    ("update that changes nothing", "UPDATE users SET version = version WHERE id = $1"),
    ("delete", "DELETE FROM users WHERE id = $1"),
];

/// Writes without the triggers, and with them.
pub(crate) async fn measure(ground: &Ground, scale: Scale) -> Result<Table> {
    let pair = ground.pair("capture", [LEGACY, NEW], ENTITY).await?;
    run(&pair.legacy, &rows(scale.size.min(100_000))).await?;
    run(&pair.legacy, "VACUUM ANALYZE users").await?;
    // Each its share of the time, with and without.
    let span = Duration::from_secs_f64(scale.seconds as f64 / WRITES.len() as f64);
    let mut figures: Vec<[Vec<f64>; 3]> = WRITES.iter().map(|_| Default::default()).collect();
    for round in 0..scale.rounds {
        let mut rates = [[0.0; WRITES.len()]; 2];
        // Whoever is first has the warmer, or the colder, table: they take turns at that too.
        let order = if round % 2 == 0 { [false, true] } else { [true, false] };
        for captured in order {
            pair.tell(&["capture", if captured { "install" } else { "remove" }, "users"]).await?;
            run(&pair.legacy, "VACUUM users").await?;
            ground.settled().await?;
            let before: i64 = value(&pair.legacy, "SELECT count(*) FROM outbox").await?;
            let written = written(&pair, span).await?;
            let after: i64 = value(&pair.legacy, "SELECT count(*) FROM outbox").await?;
            let changes: u64 = [0, 1, 3].iter().map(|n| written[*n].0).sum();
            let expected = if captured { changes } else { 0 };
            ensure!(
                after - before == i64::try_from(expected)?,
                "void: {expected} events expected, {} came",
                after - before
            );
            rates[usize::from(captured)] = written.map(|(rows, took)| rows as f64 / took.as_secs_f64());
            run(&pair.legacy, "TRUNCATE outbox").await?;
        }
        for (n, (name, _)) in WRITES.iter().enumerate() {
            let [without, with] = [rates[0][n], rates[1][n]];
            eprintln!("{name}: {without:.0}/s without, {with:.0}/s with capture: {:.2}", with / without);
            figures[n][0].push(without);
            figures[n][1].push(with);
            figures[n][2].push(with / without);
        }
    }
    ground.drop(pair).await?;
    let mut table =
        table(["8 clients, a row a transaction", "a second without capture", "with it", "its rate to that without"]);
    for ((name, _), [without, with, ratios]) in WRITES.iter().zip(figures) {
        table.add_row([(*name).to_owned(), spread(without).told(0), spread(with).told(0), spread(ratios).told(2)]);
    }
    Ok(table)
}

const NEW: &str = "CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL, city text, version bigint NOT NULL)";

/// Rows that all clients wrote in each way, and how long that took: what was inserted is updated, and then deleted.
async fn written(pair: &Pair, span: Duration) -> Result<[(u64, Duration); WRITES.len()]> {
    let mut written = [(0, Duration::ZERO); WRITES.len()];
    let mut inserted = 0;
    for (n, (_, sql)) in WRITES.iter().enumerate() {
        let began = Instant::now();
        let limit = if n == 0 { i64::MAX } else { inserted };
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|client| tokio::spawn(client_writes(pair.legacy.clone(), sql, client * SPAN, limit, n == 3, span)))
            .collect();
        let mut rows = Vec::new();
        for client in clients {
            rows.push(client.await??);
        }
        written[n] = (rows.iter().sum(), began.elapsed());
        if n == 0 {
            // As many as each of them has.
            inserted = i64::try_from(rows.into_iter().min().unwrap_or_default())?;
        }
    }
    // Those that are left are no client's.
    let rest = format!("BEGIN; SET LOCAL outbox_relay.applying = 'on'; DELETE FROM users WHERE id >= {SPAN}; COMMIT");
    run(&pair.legacy, &rest).await?;
    Ok(written)
}

/// Round and round its rows; `once`: until there are none left.
async fn client_writes(
    url: String,
    sql: &'static str,
    from: i64,
    rows: i64,
    once: bool,
    span: Duration,
) -> Result<u64> {
    let mut connection = PgConnection::connect(&url).await?;
    let (mut written, began) = (0u64, Instant::now());
    while began.elapsed() < span {
        let n = i64::try_from(written)?;
        if once && n >= rows {
            break;
        }
        let done = sqlx::query(sql).bind(from + n % rows.max(1)).execute(&mut connection).await?;
        ensure!(done.rows_affected() == 1, "void: {} rows instead of one: {sql}", done.rows_affected());
        written += 1;
    }
    connection.close().await?;
    Ok(written)
}
