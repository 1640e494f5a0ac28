//! Verification beside reladiff (the maintained successor of data-diff), over equal tables: columns of the same names, for reladiff
//! knows no mapping. Then the same through a mapping, and what it costs whoever writes meanwhile.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::Table;
use sqlx::{Connection, PgConnection};

use crate::Scale;
use crate::copy::{ENTITY, LEGACY, SMALL, rows};
use crate::ground::{Done, Ground, Pair, measured};
use crate::shared::figures::{spread, table};
use crate::shared::servers::run;

const SAME: &str = "CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL, city text, version bigint NOT NULL)";
const SAME_ENTITY: &str = "[[entity]]\naggregate_type = \"User\"\ntable = \"users\"\nkey = [\"id\"]\n\
    legacy = { table = \"public.users\", key = [\"id\"] }\n\
    events = { UserCreated = \"upsert\", UserUpdated = \"upsert\", UserDeleted = \"delete\" }\n";

pub(crate) async fn measure(ground: &Ground, scale: Scale) -> Result<Table> {
    let reladiff = if scale.smoke { None } else { reladiff()? };
    let heading = format!("MB at {}", SMALL.min(scale.size));
    let mut table = table(["", "rows/s", "its rate to reladiff's (to be 1.5)", "MB of memory at the peak", &heading]);
    let small = alike(ground, "small", SMALL.min(scale.size)).await?;
    let at_small = small.tell(&["verify", "users"]).await?.peak_mb;
    ground.drop(small).await?;
    let pair = alike(ground, "same", scale.size).await?;
    let (mut theirs, mut ours, mut ratios, mut peak, mut their_peak) =
        (Vec::new(), Vec::new(), Vec::new(), 0.0f64, 0.0f64);
    let rate = |done: &Done| f64::from(scale.size) / done.took.as_secs_f64();
    for _ in 0..scale.rounds {
        let us = pair.tell(&["verify", "users"]).await?;
        ours.push(rate(&us));
        peak = peak.max(us.peak_mb);
        if let Some(program) = &reladiff {
            let them = measured(diff(program, &pair)).await.context("reladiff")?;
            theirs.push(rate(&them));
            ratios.push(rate(&us) / rate(&them));
            their_peak = their_peak.max(them.peak_mb);
            eprintln!(
                "reladiff {:.0} rows/s, verify {:.0} rows/s: {:.2}",
                rate(&them),
                rate(&us),
                rate(&us) / rate(&them)
            );
        }
    }
    if reladiff.is_some() {
        table.add_row([
            "reladiff, 4 threads".to_owned(),
            spread(theirs).told(0),
            String::new(),
            format!("{their_peak:.0}"),
            String::new(),
        ]);
    }
    ensure!(
        peak <= at_small * 1.5,
        "memory grows with the table: {at_small:.0} MB, and {peak:.0} MB for {} rows",
        scale.size
    );
    table.add_row([
        "verify, columns of the same names".to_owned(),
        spread(ours).told(0),
        spread(ratios).told(2),
        format!("{peak:.0}"),
        format!("{at_small:.0}"),
    ]);
    let under_load = under_writes(&pair, scale).await?;
    ground.drop(pair).await?;
    let (mapped, peak) = mapped(ground, scale).await?;
    table.add_row([
        "verify, through a mapping".to_owned(),
        spread(mapped).told(0),
        String::new(),
        format!("{peak:.0}"),
        String::new(),
    ]);
    let [alone, beside, passes] = under_load;
    table.add_row([
        format!("four writers, a relay: {alone:.0} transactions/s alone, {beside:.0} while {passes:.0} passes ran"),
        String::new(),
        String::new(),
        String::new(),
        String::new(),
    ]);
    Ok(table)
}

/// So many rows, as they stand on both sides, or as the mapping makes them of [`rows`].
fn same(size: u32) -> String {
    format!(
        "INSERT INTO users SELECT u, 'Ada' || u % 100 || ' Byron' || u, 'user' || u || '@example.org', 'City' || u % 500, u
         FROM generate_series(1, {size}) u"
    )
}

/// Two tables with equal rows, or ones that are equal through the entity's mapping.
async fn filled(ground: &Ground, pair: &Pair, [legacy, new]: [&str; 2]) -> Result<()> {
    for (url, rows) in [(&pair.legacy, legacy), (&pair.new, new)] {
        run(url, rows).await?;
        run(url, "VACUUM ANALYZE users").await?;
    }
    ground.settled().await
}

async fn alike(ground: &Ground, name: &str, size: u32) -> Result<Pair> {
    let pair = ground.pair(name, [SAME, SAME], SAME_ENTITY).await?;
    filled(ground, &pair, [&same(size), &same(size)]).await?;
    Ok(pair)
}

async fn mapped(ground: &Ground, scale: Scale) -> Result<(Vec<f64>, f64)> {
    let pair = ground.pair("mapped", [LEGACY, SAME], ENTITY).await?;
    filled(ground, &pair, [&rows(scale.size), &same(scale.size)]).await?;
    let (mut rates, mut peak) = (Vec::new(), 0.0f64);
    for _ in 0..scale.rounds {
        let done = pair.tell(&["verify", "users"]).await?;
        rates.push(f64::from(scale.size) / done.took.as_secs_f64());
        peak = peak.max(done.peak_mb);
    }
    ground.drop(pair).await?;
    Ok((rates, peak))
}

/// Transactions a second of four writers whose changes are captured and relayed: alone, and while it is verified again and again.
/// A false alarm ends it.
async fn under_writes(pair: &Pair, scale: Scale) -> Result<[f64; 3]> {
    pair.tell(&["capture", "install", "users"]).await?;
    let relay = pair.relay()?;
    let (written, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (0..4u64)
        .map(|writer| tokio::spawn(write(pair.legacy.clone(), writer, scale.size, written.clone(), over.clone())))
        .collect();
    let span = Duration::from_secs(scale.seconds);
    let rate =
        |from: u64, began: Instant| (written.load(Ordering::Relaxed) - from) as f64 / began.elapsed().as_secs_f64();
    let (from, began) = (written.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(span).await;
    let alone = rate(from, began);
    let (from, began) = (written.load(Ordering::Relaxed), Instant::now());
    let mut passes = 0.0;
    while began.elapsed() < span {
        pair.tell(&["verify", "users"]).await.context("a false alarm?")?;
        passes += 1.0;
    }
    let beside = rate(from, began);
    over.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await??;
    }
    drop(relay);
    Ok([alone, beside, passes])
}

async fn write(url: String, writer: u64, size: u32, written: Arc<AtomicU64>, over: Arc<AtomicBool>) -> Result<()> {
    let mut connection = PgConnection::connect(&url).await?;
    let mut n = writer;
    while !over.load(Ordering::SeqCst) {
        n += 4;
        let id = i64::try_from(n.wrapping_mul(2_654_435_761) % u64::from(size))? + 1;
        sqlx::query("UPDATE users SET version = version + 1 WHERE id = $1").bind(id).execute(&mut connection).await?;
        written.fetch_add(1, Ordering::Relaxed);
    }
    Ok(connection.close().await?)
}

/// The program, installed into a folder of the build; `None`, and said, where it cannot be had.
fn reladiff() -> Result<Option<String>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/reladiff");
    let done = Command::new(script).stderr(Stdio::inherit()).output().context("scripts/reladiff")?;
    if !done.status.success() {
        eprintln!("reladiff cannot be had here: skipped");
        return Ok(None);
    }
    Ok(Some(String::from_utf8(done.stdout)?.trim().to_owned()))
}

/// By key, all columns, checksums in the databases, four threads for each.
fn diff(program: &str, pair: &Pair) -> Command {
    let url = |url: &str| url.replacen("postgres://", "postgresql://", 1);
    let mut command = Command::new(program);
    command.args([&url(&pair.legacy), "users", &url(&pair.new), "users", "-k", "id", "-j", "4"]);
    command.args(["-c", "name", "-c", "email", "-c", "city", "-c", "version"]).stdout(Stdio::null());
    command
}
