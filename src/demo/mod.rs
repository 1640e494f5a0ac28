//! `outbox-relay demo`: the whole of it on one machine, and nothing left behind.
//!
//! Guarantees: everything shown is real (servers, transactions, failures, repairs, numbers). Whoever ends it, and however, no
//! process and no file stays. A demo that ends by itself has compared every row of both databases.
//!
//! It does not keep anything: two throwaway servers are made at the start, and go at the end.

mod compare;
mod folder;
mod http;
mod monolith;
mod screen;
pub mod server;
mod story;
mod wiring;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sqlx::Row as _;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::compare::{Compared, Difference};
use self::folder::Folder;
use self::monolith::Monolith;
use self::screen::{Screen, Tone, seconds, thousands};
use self::server::{Options, Server};
use self::story::failure::Failures;
use self::story::migration::Migration;
use self::story::{Scene, Timetable};
use crate::config::DatabaseUrl;
use crate::init::Choices;
use crate::relay::Shared;
use crate::{connect, disposition, init, relay};

/// Where the admin server listens unless told otherwise.
const USUAL_PORT: u16 = 8080;
/// A demo that nobody watches ends after this.
const UNWATCHED: Duration = Duration::from_secs(60);
/// How often the story goes on; every fourth time the numbers are shown.
const BEAT: Duration = Duration::from_millis(250);
const BEATS_A_LINE: u32 = 4;
/// By when the outbox must be empty after the monolith has stopped.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);

/// What is to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DemoOptions {
    /// Events a second that the monolith writes.
    pub rate: u32,
    /// When it ends by itself; then it also mends by itself what goes wrong. `None`: never on a terminal, after a minute
    /// without.
    pub for_: Option<Duration>,
    /// Where the admin server listens. `None`: 127.0.0.1:8080, or where there is room.
    pub listen: Option<SocketAddr>,
    /// Whether somebody watches: one line is redrawn, and people mend what goes wrong.
    pub terminal: bool,
    /// Whether to use colours.
    pub color: bool,
}

impl Default for DemoOptions {
    fn default() -> DemoOptions {
        DemoOptions { rate: 200, for_: None, listen: None, terminal: false, color: false }
    }
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DemoOutcome {
    /// Every row was compared, and both databases agree.
    Agree(Vec<Compared>),
    /// They do not.
    Differ(Vec<Compared>),
    /// Events were left that could not be applied, so nothing was compared.
    NotDrained,
    /// Somebody ended it before.
    Interrupted,
}

/// Runs until its time is over, or until `shutdown`. What it says goes to `out`; the relay's log to a file in its folder.
///
/// # Errors
/// Something that the demo needs is missing (Postgres, a free port): with the remedy. Or it broke.
pub async fn run(options: DemoOptions, shutdown: CancellationToken, out: impl Write) -> anyhow::Result<DemoOutcome> {
    if options.rate == 0 {
        bail!("a rate of 0 events a second shows nothing: --rate 200");
    }
    let mut screen = Screen::new(out, options.terminal, options.color);
    let result = tokio::select! {
        result = start(options, &mut screen) => Some(result),
        () = shutdown.cancelled() => None,
    };
    let result = match result {
        Some(Ok(mut demo)) => {
            let mut result = demo.play(&mut screen, &shutdown).await;
            if matches!(result, Ok(DemoOutcome::Interrupted)) {
                // Whoever pressed Ctrl-C may have closed the terminal, too.
                let _ = screen.paragraph("Ending: what is in flight is finished, then servers and folder go.");
            }
            // The log goes with the folder.
            if let Err(error) = result {
                let log = demo.folder.log_tail();
                result = Err(if is_broken_pipe(&error) { error } else { anyhow::anyhow!("{error:#}\n{log}") });
            }
            demo.end().await;
            result
        }
        Some(Err(error)) => Err(error),
        None => Ok(DemoOutcome::Interrupted),
    };
    match result {
        // Nobody listens any more, as in `outbox-relay demo | head`.
        Err(error) if is_broken_pipe(&error) => Ok(DemoOutcome::Interrupted),
        Ok(DemoOutcome::Interrupted) => {
            let _ = screen.say("Ended. Nothing is left.");
            Ok(DemoOutcome::Interrupted)
        }
        result => result,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A running demo. Dropped, it leaves nothing.
struct Demo {
    options: DemoOptions,
    ends: Option<Duration>,
    monolith: Monolith,
    shared: Arc<Shared>,
    /// The demo's own connections: what it shows does not queue behind the relay's.
    legacy: PgPool,
    new: PgPool,
    admin: SocketAddr,
    /// The relay, its watch over the files, and the admin server.
    tasks: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
    folder: Folder,
    _servers: (Server, Server),
}

/// How far the demo has come.
struct Plot {
    timetable: Timetable,
    failures: Failures,
    migration: Migration,
    beats: u32,
    /// When the monolith stopped to write.
    stopped_at: Option<Duration>,
}

enum Next {
    GoOn,
    Compare,
    GiveUp,
}

impl Plot {
    fn new(timetable: Timetable) -> Plot {
        Plot {
            timetable,
            failures: Failures::new(timetable.first_failure, timetable.failure_every),
            migration: Migration::new(timetable.migration),
            beats: 0,
            stopped_at: None,
        }
    }
}

/// What stands in the outbox.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Numbers {
    written: i64,
    pending: i64,
    retry: i64,
    held: i64,
    failed: i64,
    pending_users: i64,
    lag: f64,
}

async fn start<W: Write>(options: DemoOptions, screen: &mut Screen<W>) -> anyhow::Result<Demo> {
    // Before anything takes its time: what may be missing.
    server::Binaries::find()?;
    let (listener, admin) = listen(options.listen).await?;
    let folder = Folder::create()?;
    wiring::log_to(&folder.log())?;
    let servers = screen
        .patiently("Starting two throwaway Postgres servers", async {
            tokio::try_join!(Server::start(Options::new("demo-legacy")), Server::start(Options::new("demo-new")))
        })
        .await??;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let (shared, legacy, new) = screen
        .patiently("Making a monolith's database, a better one, the outbox between them (outbox-relay init)", async {
            tokio::try_join!(servers.0.create_database("legacy"), servers.1.create_database("new"))?;
            folder.introduce(&servers.0, &servers.1, admin)?;
            prepare(&folder).await
        })
        .await??;
    tasks.spawn(relay::run(shared.clone(), stop.clone()));
    tasks.spawn(wiring::serve_admin(listener, shared.clone(), stop.clone()));
    let ends = options.for_.or_else(|| (!options.terminal).then_some(UNWATCHED));
    let monolith = Monolith::start(shared.config.legacy.url.expose(), options.rate).await?;
    let demo = Demo { options, ends, monolith, shared, legacy, new, admin, tasks, stop, folder, _servers: servers };
    demo.introduce(screen)?;
    Ok(demo)
}

async fn listen(wanted: Option<SocketAddr>) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, USUAL_PORT));
    let listener = match (TcpListener::bind(wanted.unwrap_or(usual)).await, wanted) {
        (Ok(listener), _) => listener,
        (Err(error), Some(wanted)) => bail!(
            "the admin server cannot listen on {wanted}: {error}. Leave --listen out, and the demo finds a free port by itself"
        ),
        (Err(_), None) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no free port on 127.0.0.1")?,
    };
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Both schemas, `init`, and what the relay's tasks share; and connections of the demo's own.
async fn prepare(folder: &Folder) -> anyhow::Result<(Arc<Shared>, PgPool, PgPool)> {
    let config = wiring::configuration(&folder.file("outbox-relay.toml"))?;
    let (legacy, new) = (own_pool(&config.legacy.url)?, own_pool(&config.new.url)?);
    sqlx::raw_sql(include_str!("../../sql/demo/legacy.sql")).execute(&legacy).await?;
    sqlx::raw_sql(include_str!("../../sql/demo/new.sql")).execute(&new).await?;
    init::init(&config, &legacy, &new, Choices::default()).await?;
    let (source, target) = connect::open(&config).await?;
    let shared = Shared::new(config, source, target, Default::default()).await?;
    Ok((Arc::new(shared), legacy, new))
}

/// For the demo itself. Connections are tried before they are used: people may end sessions to see what happens.
fn own_pool(url: &DatabaseUrl) -> sqlx::Result<PgPool> {
    let options: PgConnectOptions = url.expose().parse()?;
    Ok(PgPoolOptions::new().max_connections(2).connect_lazy_with(options.application_name("demo")))
}

impl Demo {
    fn introduce<W: Write>(&self, screen: &mut Screen<W>) -> io::Result<()> {
        let file = |name: &str| self.folder.file(name).display().to_string();
        let title = screen
            .tone(Tone::Strong, "A monolith writes users and orders; the relay carries them over into a new database.");
        let ends = match self.ends {
            Some(ends) => format!(
                "Ends by itself after {}, and says whether both databases agree.",
                humantime::format_duration(ends)
            ),
            None => "Goes on until you press Ctrl-C, which leaves nothing behind.".to_owned(),
        };
        screen.paragraph(&format!(
            "{title}\n\n\
             \x20 legacy database   {}   (users, orders, outbox)\n\
             \x20 new database      {}      (customers, orders)\n\
             \x20 the page          http://{}/   (in a browser: see what fails there, and replay it)\n\
             \x20 admin API         http://{}/v1/backlog\n\
             \x20 configuration     {}\n\
             \x20 mappings          {}, {}\n\
             \x20 the relay's log   {}\n\n\
             {} events a second. {ends}",
            file("psql-legacy"),
            file("psql-new"),
            self.admin,
            self.admin,
            file("outbox-relay.toml"),
            file("mappings/customer.sql"),
            "order.sql",
            self.folder.log().display(),
            thousands(self.options.rate.into()),
        ))
    }

    /// The demo itself: until its time is over or somebody ends it, then the comparison.
    async fn play<W: Write>(
        &mut self,
        screen: &mut Screen<W>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<DemoOutcome> {
        let started = Instant::now();
        let mut plot = Plot::new(Timetable::new(self.ends));
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(DemoOutcome::Interrupted),
                _ = beat.tick() => {}
            }
            self.check_tasks().await?;
            plot.beats += 1;
            match self.go_on(&mut plot, started.elapsed(), screen).await {
                Ok(Next::GoOn) => {}
                Ok(Next::Compare) => return self.compare(screen).await,
                Ok(Next::GiveUp) => return Ok(DemoOutcome::NotDrained),
                // Whoever tries what happens when a server or a session ends shall see it go on.
                Err(error) if error.downcast_ref().is_some_and(disposition::is_transient) => {
                    screen.status(&format!(
                        "{:4} s   a database does not answer: {error}",
                        started.elapsed().as_secs()
                    ))?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One beat.
    async fn go_on<W: Write>(
        &mut self,
        plot: &mut Plot,
        now: Duration,
        screen: &mut Screen<W>,
    ) -> anyhow::Result<Next> {
        if plot.stopped_at.is_none() && self.ends.is_some_and(|ends| now >= ends) {
            screen.paragraph(
                "The monolith stops writing. What is on its way arrives; what still fails is mended and replayed.",
            )?;
            self.monolith.stop_writing().await?;
            plot.stopped_at = Some(now);
        }
        let numbers = self.numbers().await?;
        if plot.beats.is_multiple_of(BEATS_A_LINE) {
            screen.status(&line(now, &numbers))?;
        }
        let writing = plot.stopped_at.is_none();
        let mut scene = Scene {
            shared: &self.shared,
            legacy: &self.legacy,
            new: &self.new,
            folder: &self.folder,
            admin: self.admin,
            screen: &mut *screen,
            now,
            patience: if writing { plot.timetable.patience } else { Some(Duration::ZERO) },
        };
        if writing {
            plot.failures.make(now, &self.monolith).await?;
            plot.migration.make(&mut scene).await?;
        }
        plot.failures.go_on(&mut scene).await?;
        plot.migration.go_on(&mut scene, numbers.pending_users).await?;
        let Some(stopped_at) = plot.stopped_at else { return Ok(Next::GoOn) };
        if numbers.unapplied() == 0 && plot.failures.are_mended() && plot.migration.is_mended() {
            return Ok(Next::Compare);
        }
        if now > stopped_at + DRAINED_WITHIN {
            screen.say(&format!("{}\n{}", line(now, &numbers), self.what_holds_up(screen)))?;
            return Ok(Next::GiveUp);
        }
        Ok(Next::GoOn)
    }

    fn what_holds_up<W: Write>(&self, screen: &Screen<W>) -> String {
        let stops = self.shared.stops.report();
        let stops: String =
            stops.iter().map(|stop| format!("\n  {} is stopped: {}", stop.aggregate_type, stop.stop.message)).collect();
        let headline = format!("✗ Not everything could be applied within {} s.", DRAINED_WITHIN.as_secs());
        format!("{}{stops}", screen.tone(Tone::Bad, &headline))
    }

    /// An error if one of the tasks has ended, as none should.
    async fn check_tasks(&mut self) -> anyhow::Result<()> {
        self.monolith.check()?;
        match self.tasks.try_join_next() {
            Some(ended) => {
                ended??;
                bail!("a part of the relay has ended by itself")
            }
            None => Ok(()),
        }
    }

    async fn numbers(&self) -> anyhow::Result<Numbers> {
        // Read first: what is written meanwhile must not count as applied.
        let written = self.monolith.written();
        let row = sqlx::query(include_str!("../../sql/demo/progress.sql")).fetch_one(&self.legacy).await?;
        Ok(Numbers {
            written,
            pending: row.try_get("pending")?,
            retry: row.try_get("retry")?,
            held: row.try_get("held")?,
            failed: row.try_get("failed")?,
            pending_users: row.try_get("pending_users")?,
            lag: row.try_get::<Option<f64>, _>("lag")?.unwrap_or_default(),
        })
    }

    async fn compare<W: Write>(&self, screen: &mut Screen<W>) -> anyhow::Result<DemoOutcome> {
        let shared = &self.shared;
        let entities = shared.entities();
        let compared = screen
            .patiently(
                "Comparing: every row of legacy through the mapping, with every row of the new database",
                async {
                    let mut compared = Vec::new();
                    for entity in entities.iter() {
                        let legacy = if entity.aggregate_type == "User" { "users" } else { "orders" };
                        compared.push(compare::compare(shared, entity, legacy).await?);
                    }
                    anyhow::Ok(compared)
                },
            )
            .await??;
        let rows = compared
            .iter()
            .map(|it| format!("{} {}", thousands(it.rows as i64), it.entity))
            .collect::<Vec<_>>()
            .join(" and ");
        let different: usize = compared.iter().map(|it| it.different).sum();
        if different == 0 {
            let agree = format!("✓ Both databases agree: {rows}, each row as the mapping says.");
            let agree = screen.tone(Tone::Good, &agree);
            screen.paragraph(&agree)?;
            return Ok(DemoOutcome::Agree(compared));
        }
        let differ = format!("✗ The databases differ: {} of {rows}.", thousands(different as i64));
        let differ = screen.tone(Tone::Bad, &differ);
        screen.paragraph(&differ)?;
        for difference in compared.iter().flat_map(|it| &it.examples) {
            screen.say(&format!("  {}", difference.to_string().replace('\n', "\n  ")))?;
        }
        Ok(DemoOutcome::Differ(compared))
    }

    /// Lets the batches and transactions in flight end, so that nothing is cut off noisily; then all is dropped.
    async fn end(mut self) {
        let graceful = async {
            let _ = self.monolith.stop_writing().await;
            self.stop.cancel();
            while self.tasks.join_next().await.is_some() {}
        };
        let _ = tokio::time::timeout(Duration::from_secs(5), graceful).await;
    }
}

impl Numbers {
    fn unapplied(&self) -> i64 {
        self.pending + self.retry + self.held + self.failed
    }
}

/// `   12 s   written 2,412   applied 2,409   lag 8 ms   failed 0`
fn line(now: Duration, numbers: &Numbers) -> String {
    let applied = (numbers.written - numbers.unapplied()).max(0);
    let mut line = format!(
        "{:4} s   written {:>7}   applied {:>7}   lag {:>6}   failed {}",
        now.as_secs(),
        thousands(numbers.written),
        thousands(applied),
        seconds(numbers.lag),
        numbers.failed
    );
    for (name, n) in [("held", numbers.held), ("retry", numbers.retry)] {
        if n > 0 {
            line.push_str(&format!("   {name} {}", thousands(n)));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_four_numbers_and_others_only_when_there_are_any() {
        let mut numbers = Numbers { written: 2412, pending: 3, lag: 0.008, ..Numbers::default() };
        let now = Duration::from_secs(12);
        assert_eq!(line(now, &numbers), "  12 s   written   2,412   applied   2,409   lag   8 ms   failed 0");
        numbers = Numbers { failed: 1, held: 2, ..numbers };
        assert_eq!(line(now, &numbers), "  12 s   written   2,412   applied   2,406   lag   8 ms   failed 1   held 2");
    }
}
