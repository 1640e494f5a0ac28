//! Events written at an even rate, and how long each is under way.
//!
//! From commit to commit, as both servers note them (`track_commit_timestamp`): each before it writes its log out, so that one
//! such write is in it, as for a reader of the new database.

use std::collections::HashMap;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tokio::task::JoinHandle;

use crate::contender::relay::{Installed, Setup};
use crate::contender::{Contender, copy, replication};
use crate::ground::{Effect, Ground, Load, Pair, run, value};
use crate::meter;

/// How many events a second a session writes at most, and how many sessions there are at most: a commit waits for the disk, and those that wait
/// together are written together.
const OF_A_SESSION: u32 = 125;
const SESSIONS: u32 = 32;
/// What is written first is left out: connections, plans and pages are made then.
const WARM_UP: f64 = 1.0;

/// What flows, and amid what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) who: Contender,
    /// Events a second, each in a transaction of its own.
    pub(crate) rate: u32,
    pub(crate) seconds: u64,
    /// So many events were processed before.
    pub(crate) before: u32,
    /// Whether a transaction is open on the legacy server from the start to the end.
    pub(crate) open: bool,
}

/// What came of it.
pub(crate) struct Flowed {
    /// Events written a second.
    pub(crate) written: f64,
    /// Events a second from the first one's coming to the last one's arrival.
    pub(crate) applied: f64,
    /// Processor time, µs an event, the writers' in it.
    pub(crate) cpu_us: f64,
    /// When it was written, in seconds from the first one, and how long it was under way; in that order.
    delays: Vec<(f64, f64)>,
}

impl Flowed {
    /// Milliseconds under way: this part of all events arrived sooner.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        quantile(&self.delays, part)
    }

    /// The same for each third of the time.
    pub(crate) fn quantile_by_thirds(&self, part: f64) -> [f64; 3] {
        self.by_thirds(|third| quantile(third, part))
    }

    /// Events a second of each third, from its first one's arrival to its last one's.
    pub(crate) fn rate_by_thirds(&self) -> [f64; 3] {
        self.by_thirds(rate)
    }

    fn by_thirds(&self, told: impl Fn(&[(f64, f64)]) -> f64) -> [f64; 3] {
        let third = self.delays.len().div_ceil(3).max(1);
        let mut thirds = self.delays.chunks(third).map(told);
        [(); 3].map(|()| thirds.next().unwrap_or(f64::NAN))
    }
}

/// Events that arrived a second, from the first one's arrival to the last one's.
fn rate(delays: &[(f64, f64)]) -> f64 {
    let arrivals = delays.iter().map(|(written, delay)| written + delay);
    let (first, last) =
        arrivals.fold((f64::INFINITY, f64::NEG_INFINITY), |(first, last), at| (at.min(first), at.max(last)));
    (delays.len() as f64 - 1.0) / (last - first)
}

fn quantile(delays: &[(f64, f64)], part: f64) -> f64 {
    let mut delays: Vec<f64> = delays.iter().map(|(_, delay)| *delay).collect();
    delays.sort_by(f64::total_cmp);
    delays.get((delays.len().saturating_sub(1) as f64 * part) as usize).map_or(f64::NAN, |delay| delay * 1e3)
}

/// Whoever carries the events over.
enum Carrier {
    Relay(Child, #[expect(dead_code, reason = "its configuration is there for as long as it runs")] Installed),
    Pipeline(JoinHandle<Result<()>>),
    Replication,
}

impl Carrier {
    async fn start(flow: Flow, ground: &Ground, pair: &Pair, relay: &str) -> Result<Carrier> {
        Ok(match flow.who {
            Contender::Relay => {
                let setup = Setup { relay: relay.to_owned(), ..Setup::default() };
                let installed = Installed::new(ground, pair, Effect::Row, &setup).await?;
                if flow.before > 0 {
                    Load { effect: Effect::Row, ..Load::of(flow.before) }.write(&pair.legacy).await?;
                    installed.tell(&["run", "--until-empty", "--timeout", "30m"]).await?;
                }
                Carrier::Relay(installed.start(&[])?, installed)
            }
            Contender::Copy => {
                copy::prepare(pair).await?;
                let mut turning = copy::Pipeline::new(&pair.legacy, &pair.new, Effect::Row).await?;
                Carrier::Pipeline(tokio::spawn(async move {
                    loop {
                        if turning.turn().await? == 0 {
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                    }
                }))
            }
            Contender::Replication => {
                // What it applies carries the commit's time of the other side, so the row's own is noted.
                run(&pair.new, "ALTER TABLE applied ADD COLUMN at timestamptz DEFAULT clock_timestamp()").await?;
                replication::subscribe(ground, pair, Effect::Row, true).await?;
                replication::enable(pair, true).await?;
                Carrier::Replication
            }
            who @ (Contender::Naive | Contender::Unflushed) => anyhow::bail!("{who:?} is not measured here"),
        })
    }

    /// Ends it; the processor time of a process that the servers' and this program's do not hold.
    async fn end(self, pair: &Pair) -> Result<f64> {
        match self {
            Carrier::Relay(mut process, _) => {
                let spent = meter::process(process.id())?;
                process.kill()?;
                process.wait()?;
                Ok(spent)
            }
            Carrier::Pipeline(pipeline) => {
                ensure!(!pipeline.is_finished(), "the pipeline broke");
                pipeline.abort();
                Ok(0.0)
            }
            Carrier::Replication => replication::unsubscribe(pair).await.map(|()| 0.0),
        }
    }
}

/// Writes, waits until all has arrived, and checks what came of it.
pub(crate) async fn measure(flow: Flow, ground: &Ground, relay: &str) -> Result<Flowed> {
    let pair = ground.pair().await?;
    let open = match flow.open {
        true => Some(hold_open(&pair.legacy).await?),
        false => None,
    };
    let carrier = Carrier::start(flow, ground, &pair, relay).await?;
    run(&pair.legacy, "CREATE TABLE change (event bigint)").await?;
    let before = ground.settled().await?;
    let started = Instant::now();
    write_evenly(&pair.legacy, flow.rate, flow.seconds, ALSO_A_CHANGE).await?;
    let took = started.elapsed().as_secs_f64();
    let written: i64 = value(&pair.legacy, "SELECT count(*) FROM change").await?;
    let all = written + i64::from(flow.before);
    let there = Instant::now();
    while value::<i64>(&pair.new, "SELECT count(*) FROM applied").await? < all {
        ensure!(there.elapsed() < Duration::from_secs(120), "{:?}: not all has arrived", flow.who);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let arrived = started.elapsed().as_secs_f64();
    let mut cpu = ground.cpu()?.since(before).sum();
    cpu += carrier.end(&pair).await?;
    if let Some(open) = open {
        open.close().await?;
    }
    let load = Load { effect: Effect::Row, ..Load::of(u32::try_from(all)?) };
    load.check(&pair).await?;
    let at = if flow.who == Contender::Replication { "at" } else { COMMITTED };
    let delays = delays(&pair, at).await?;
    ground.drop(pair).await?;
    Ok(Flowed {
        written: written as f64 / took,
        applied: written as f64 / arrived,
        cpu_us: cpu * 1e6 / written as f64,
        delays,
    })
}

/// A transaction with an id and a snapshot: what is dead from now on cannot be cleaned away.
async fn hold_open(url: &str) -> Result<PgConnection> {
    let mut open = PgConnection::connect(url).await?;
    open.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()").await?;
    Ok(open)
}

/// What else is done in the transaction of an event: a row that no relay changes, and so tells when it was committed.
const ALSO_A_CHANGE: &str = "INSERT INTO change VALUES (lastval());";
pub(crate) const NOTHING_ELSE: &str = "";

/// Events one by one, each in its own transaction, evenly; `also` is done in each. The legacy server writes them by itself, in a few sessions, for
/// clients on the same cores would take more of them than all that is measured.
pub(crate) async fn write_evenly(url: &str, rate: u32, seconds: u64, also: &str) -> Result<()> {
    let sessions = rate.div_ceil(OF_A_SESSION).min(SESSIONS);
    let events = u64::from(rate) * seconds;
    let sessions: Vec<_> = (0..sessions)
        .map(|session| {
            let write = format!(
                "DO $$
                 DECLARE began timestamptz := clock_timestamp();
                 BEGIN
                     -- To plan it anew for each event took three times as long as the event.
                     PERFORM set_config('plan_cache_mode', 'force_generic_plan', false);
                     FOR n IN {session} .. {events} - 1 BY {sessions} LOOP
                         PERFORM pg_sleep(n / {rate}::float8 - extract(epoch FROM clock_timestamp() - began)::float8);
                         -- What is begun before the sleep must not be the event's.
                         COMMIT;
                         INSERT INTO outbox {};
                         {also}
                         COMMIT;
                     END LOOP;
                 END $$",
                Load::of(1).rows("n", "n")
            );
            let url = url.to_owned();
            tokio::spawn(async move { run(&url, &write).await })
        })
        .collect();
    for session in sessions {
        session.await??;
    }
    Ok(())
}

const COMMITTED: &str = "pg_xact_commit_timestamp(xmin)";

/// When each event was written and how long it was under way, in seconds, but for the first ones.
async fn delays(pair: &Pair, arrived: &str) -> Result<Vec<(f64, f64)>> {
    let mut stamps = Vec::new();
    for (url, table, at) in [(&pair.legacy, "change", COMMITTED), (&pair.new, "applied", arrived)] {
        let mut connection = PgConnection::connect(url).await?;
        let sql = format!("SELECT event, extract(epoch FROM {at})::float8 FROM {table}");
        let rows = connection.fetch_all(AssertSqlSafe(sql)).await?;
        let stamps_here: sqlx::Result<HashMap<i64, f64>> = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get::<Option<f64>, _>(1)?.unwrap_or(f64::NAN))))
            .collect();
        stamps.push(stamps_here?);
    }
    let [written, applied] = stamps.as_slice() else { anyhow::bail!("two tables") };
    let first = written.values().copied().fold(f64::INFINITY, f64::min);
    let late = written.iter().filter(|(_, at)| **at > first + WARM_UP);
    let all: Result<Vec<(f64, f64)>> =
        late.map(|(event, at)| Ok((at - first, applied.get(event).context("lost")? - at))).collect();
    let mut all = all?;
    all.sort_by(|one, other| one.0.total_cmp(&other.0));
    Ok(all)
}
