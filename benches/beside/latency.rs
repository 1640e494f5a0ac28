//! How long an event is under way, and what it costs to wait for one.
//!
//! From commit to commit, as both servers note them (`track_commit_timestamp`): each before it writes its log out, so that one
//! such write is in it, as for a reader of the new database.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use crate::cases::{Scale, spread};
use crate::contender::Contender;
use crate::contender::relay::{Installed, Setup};
use crate::contender::{copy, replication};
use crate::ground::{Effect, Ground, Load, Pair, run, value};
use crate::meter;

const WRITERS: u32 = 8;
/// What is written first is left out: connections, plans and pages are made then.
const WARM_UP: f64 = 2.0;

pub(crate) async fn measure(scale: Scale, relay: &str) -> Result<Table> {
    let ground = Ground::new(&[("track_commit_timestamp", "on")]).await?;
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["", "written/s", "p50 ms", "p99 ms", "highest ms", "CPU µs/event, with the writers'"]);
    let all = [Contender::Relay, Contender::Copy, Contender::Replication];
    for (rate, contenders) in [(1_000, &all[..]), (5_000, &all[..1])] {
        for who in contenders {
            let mut figures: [Vec<f64>; 5] = Default::default();
            for _ in 0..scale.rounds {
                let one = once(&ground, *who, rate, scale.seconds, relay).await?;
                figures.iter_mut().zip(one).for_each(|(all, one)| all.push(one));
            }
            let [written, p50, p99, most, cpu] = figures.map(spread);
            table.add_row([
                format!("{who:?}"),
                format!("{:.0} of {rate}", written.middle),
                p50.told(1),
                p99.told(1),
                most.told(1),
                cpu.told(0),
            ]);
        }
    }
    Ok(table)
}

/// Written a second, median, 99th percentile, highest, processor time.
async fn once(ground: &Ground, who: Contender, rate: u32, seconds: u64, relay: &str) -> Result<[f64; 5]> {
    let pair = ground.pair().await?;
    let mut process = None;
    let mut pipeline = None;
    let installed;
    match who {
        Contender::Relay => {
            let setup = Setup { relay: relay.to_owned(), ..Setup::default() };
            installed = Installed::new(ground, &pair, Effect::Row, &setup)?;
            process = Some(installed.start(&[])?);
        }
        Contender::Copy => {
            copy::prepare(&pair).await?;
            let mut turning = copy::Pipeline::new(&pair.legacy, &pair.new, Effect::Row).await?;
            pipeline = Some(tokio::spawn(async move {
                loop {
                    if turning.turn().await? == 0 {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
                #[expect(unreachable_code, reason = "it gives the loop's errors their type")]
                Ok::<(), anyhow::Error>(())
            }));
        }
        Contender::Replication => {
            replication::subscribe(ground, &pair, Effect::Row).await?;
            replication::enable(&pair, true).await?;
        }
        Contender::Naive => anyhow::bail!("the naive loop is not measured here"),
    }
    run(&pair.legacy, "CREATE TABLE change (event bigint)").await?;
    let before = ground.settled().await?;
    let started = Instant::now();
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write(pair.legacy.clone(), writer, rate, seconds))).collect();
    for writer in writers {
        writer.await??;
    }
    let took = started.elapsed().as_secs_f64();
    let written: i64 = value(&pair.legacy, "SELECT count(*) FROM change").await?;
    let there = Instant::now();
    while value::<i64>(&pair.new, "SELECT count(*) FROM applied").await? < written {
        ensure!(there.elapsed() < Duration::from_secs(60), "{who:?}: not all has arrived");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut cpu = ground.cpu()?.since(before).sum();
    if let Some(process) = &mut process {
        cpu += meter::process(process.id())?;
        process.kill()?;
        process.wait()?;
    }
    if let Some(pipeline) = pipeline {
        ensure!(!pipeline.is_finished(), "the pipeline broke");
        pipeline.abort();
    }
    if who == Contender::Replication {
        replication::unsubscribe(&pair).await?;
    }
    let load = Load { effect: Effect::Row, ..Load::of(u32::try_from(written)?) };
    load.check(&pair).await?;
    let mut delays = delays(&pair).await?;
    ground.drop(pair).await?;
    delays.sort_by(f64::total_cmp);
    let at = |part: f64| delays.get(((delays.len() - 1) as f64 * part) as usize).copied().unwrap_or(f64::NAN) * 1e3;
    Ok([written as f64 / took, at(0.5), at(0.99), at(1.0), cpu * 1e6 / written as f64])
}

/// Events one by one, each in its own transaction, evenly.
async fn write(url: String, writer: u32, rate: u32, seconds: u64) -> Result<()> {
    let mut connection = PgConnection::connect(&url).await?;
    let load = Load::of(1);
    let insert = format!(
        "WITH e AS (INSERT INTO outbox {} RETURNING id) INSERT INTO change SELECT id FROM e",
        load.rows("$1", "$1")
    );
    let each = f64::from(WRITERS) / f64::from(rate);
    let started = Instant::now();
    for turn in 0.. {
        let due = Duration::from_secs_f64(f64::from(turn) * each + each * f64::from(writer) / f64::from(WRITERS));
        if due.as_secs() >= seconds {
            break;
        }
        tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
        let n = i64::from(turn) * i64::from(WRITERS) + i64::from(writer);
        sqlx::query(AssertSqlSafe(insert.clone())).bind(n).execute(&mut connection).await?;
    }
    Ok(connection.close().await?)
}

/// Seconds from commit to commit, but for the first ones.
async fn delays(pair: &Pair) -> Result<Vec<f64>> {
    let mut stamps = Vec::new();
    for (url, table) in [(&pair.legacy, "change"), (&pair.new, "applied")] {
        let mut connection = PgConnection::connect(url).await?;
        let sql = format!("SELECT event, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM {table}");
        let rows = connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        let stamps_here: Result<HashMap<i64, f64>> = rows
            .iter()
            .map(|row| {
                let (event, at): (String, String) = (row.try_get_unchecked(0)?, row.try_get_unchecked(1)?);
                Ok((event.parse()?, at.parse()?))
            })
            .collect();
        stamps.push(stamps_here?);
    }
    let [written, applied] = stamps.as_slice() else { anyhow::bail!("two tables") };
    let first = written.values().copied().fold(f64::INFINITY, f64::min);
    let late = written.iter().filter(|(_, at)| **at > first + WARM_UP.min(1.0));
    late.map(|(event, at)| applied.get(event).map(|there| there - at).context("lost")).collect()
}

/// Processor time while nothing is to be done, as a share of one core.
pub(crate) async fn idle(scale: Scale, relay: &str) -> Result<Table> {
    let ground = Ground::new(&[]).await?;
    let pair = ground.pair().await?;
    let setup = Setup { relay: relay.to_owned(), ..Setup::default() };
    let installed = Installed::new(&ground, &pair, Effect::Upsert, &setup)?;
    let wait = Duration::from_secs(scale.seconds);
    let mut shares = Vec::new();
    let mut process = installed.start(&[])?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for _ in 0..scale.rounds {
        let (servers, relay) = (ground.cpu()?, meter::process(process.id())?);
        let started = Instant::now();
        tokio::time::sleep(wait).await;
        let spent = ground.cpu()?.since(servers).sum() + meter::process(process.id())? - relay;
        shares.push(100.0 * spent / started.elapsed().as_secs_f64());
    }
    process.kill()?;
    process.wait()?;
    ground.drop(pair).await?;
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["", "% of a core, relay and both servers"]);
    table.add_row(["outbox-relay".to_owned(), spread(shares).told(2)]);
    Ok(table)
}
