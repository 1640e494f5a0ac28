//! The relay: the program as it is built, with a configuration file, in a process of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{Connection, PgConnection};

use super::Drain;
use crate::ground::{Effect, Ground, Load, Pair, TRANSFORM, value};
use crate::meter;

/// How the relay is set up; everything else is its default.
#[derive(Debug, Clone, Default)]
pub(crate) struct Setup {
    /// Lines of the section `[relay]`.
    pub(crate) relay: String,
    /// Lines of further sections.
    pub(crate) more: String,
    /// Folders of sockets that lead to the servers, when not their own.
    pub(crate) sockets: Option<[String; 2]>,
    /// How many processes; none is one.
    pub(crate) instances: usize,
}

/// A folder with a configuration, `init` done.
pub(crate) struct Installed {
    folder: tempfile::TempDir,
}

impl Installed {
    pub(crate) async fn new(ground: &Ground, pair: &Pair, effect: Effect, setup: &Setup) -> Result<Installed> {
        let folder = tempfile::tempdir()?;
        let at = folder.path();
        let [legacy, new] = ground.addresses(&pair.name, setup.sockets.as_ref().unwrap_or(&ground.sockets));
        let entity = match effect {
            Effect::Upsert => {
                std::fs::write(at.join("user.sql"), format!("SELECT {TRANSFORM}\nFROM event\n"))?;
                "table = \"users\"\nkey = [\"id\"]\nmapping = \"user.sql\"\n[entity.events]\nUserChanged = \"upsert\"\n"
            }
            Effect::Row => {
                let sql = "SELECT id AS event, aggregate_id AS aggregate, (payload->>'version')::bigint AS version\nFROM event\n";
                std::fs::write(at.join("row.sql"), sql)?;
                "table = \"applied\"\nkey = [\"event\"]\nmapping = \"row.sql\"\n[entity.events]\nUserChanged = \"upsert\"\n"
            }
            Effect::Counts => {
                std::fs::write(
                    at.join("counts.sql"),
                    format!("WITH changed AS (SELECT event.id AS event, {TRANSFORM} FROM event),\n{COUNTS}"),
                )?;
                "[entity.events]\nUserChanged = { sql = \"counts.sql\" }\n"
            }
        };
        std::fs::write(
            at.join("outbox-relay.toml"),
            format!(
                "[legacy]\nurl = \"{legacy}\"\n[new]\nurl = \"{new}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[log]\nfilter = \"warn\"\n{}\n[relay]\n{}\n\
                 [[entity]]\naggregate_type = \"User\"\n{entity}",
                setup.more, setup.relay
            ),
        )?;
        let installed = Installed { folder };
        installed.tell(&["init"]).await?;
        Ok(installed)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_outbox-relay")));
        command.current_dir(self.folder.path());
        command
    }

    /// Runs another of its commands to the end. Without blocking: a long wire is carried by this very thread.
    pub(crate) async fn tell(&self, arguments: &[&str]) -> Result<()> {
        let mut command = tokio::process::Command::from(self.command());
        let status = command.args(arguments).stdout(Stdio::null()).status().await?;
        ensure!(status.success(), "{} failed", arguments.join(" "));
        Ok(())
    }

    /// Starts a relay; the end of it is the caller's.
    pub(crate) fn start(&self, arguments: &[&str]) -> Result<Child> {
        self.command().arg("run").args(arguments).stdout(Stdio::null()).spawn().context("cannot start the relay")
    }
}

const COUNTS: &str = "noted AS (\n  INSERT INTO applied (event, aggregate, version) SELECT event, id::text, version FROM changed)\n\
    INSERT INTO users (id, name, email, city, version)\nSELECT id, name, email, city, version FROM changed ORDER BY id\n\
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email, city = excluded.city,\n  \
    version = excluded.version, changes = users.changes + 1\n";

/// Seconds since 1970, by this machine's clock, which is the servers' too.
pub(crate) fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

/// From the start of the processes until the last event is settled.
pub(super) async fn drain(ground: &Ground, pair: &Pair, load: Load, setup: &Setup) -> Result<Drain> {
    let installed = Installed::new(ground, pair, load.effect, setup).await?;
    load.write(&pair.legacy).await?;
    let before = ground.settled().await?;
    let started = now()?;
    let mut relays = Vec::new();
    for _ in 0..setup.instances.max(1) {
        relays.push(installed.start(&["--until-empty", "--timeout", "30m"])?);
    }
    let mut memory_mb: f64 = 0.0;
    for relay in &mut relays {
        let status = loop {
            if let Ok(mb) = meter::peak_memory(relay.id()) {
                memory_mb = memory_mb.max(mb);
            }
            match relay.try_wait()? {
                Some(status) => break status,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        ensure!(status.success(), "the relay ended with {status}");
    }
    let cpu = ground.cpu()?.since(before);
    let open: i64 = value(&pair.legacy, "SELECT count(*) FROM outbox WHERE status <> 'processed'").await?;
    ensure!(open == 0, "void: {open} events are not processed");
    once_in_order(pair, load.events).await?;
    let ended: f64 = value(&pair.legacy, "SELECT extract(epoch FROM max(processed_at))::float8 FROM outbox").await?;
    let took = Duration::try_from_secs_f64(ended - started)?;
    Ok(Drain { events: load.events, took, cpu, memory_mb: Some(memory_mb) })
}

/// Whether each event took effect once, and each aggregate's in order: by the log that the target commits with the effects. What is in the tables
/// at the end does not tell, for the last event of a user says all.
async fn once_in_order(pair: &Pair, events: u32) -> Result<()> {
    let applied = "SELECT token, e.* FROM outbox_relay.batch_log CROSS JOIN LATERAL unnest(ids, aggregate_ids) WITH ORDINALITY AS e (id, aggregate, at)";
    let (all, different): (i64, i64) = (
        value(&pair.new, &format!("SELECT count(*) FROM ({applied}) a")).await?,
        value(&pair.new, &format!("SELECT count(DISTINCT id) FROM ({applied}) a")).await?,
    );
    ensure!(
        all == different && all == i64::from(events),
        "void: {events} events were applied {all} times, {different} of them"
    );
    let late =
        format!("SELECT id < lag(id) OVER (PARTITION BY aggregate ORDER BY token, at) AS late FROM ({applied}) a");
    let disordered: i64 = value(&pair.new, &format!("SELECT count(*) FROM ({late}) l WHERE late")).await?;
    ensure!(disordered == 0, "void: {disordered} events were applied out of order");
    Ok(())
}

/// From the start of the process until so many are settled; more may be when it has ended.
pub(crate) async fn drain_some(
    ground: &Ground,
    pair: &Pair,
    installed: &Installed,
    before: meter::Cpu,
    enough: u32,
) -> Result<Drain> {
    let started = Instant::now();
    let mut relay = installed.start(&[])?;
    let mut legacy = PgConnection::connect(&pair.legacy).await?;
    let settled = "SELECT coalesce(sum(cardinality(ids)), 0)::bigint FROM outbox_relay.batch_log";
    let (events, took) = loop {
        let events: i64 = sqlx::query_scalar(settled).fetch_one(&mut legacy).await?;
        if events >= i64::from(enough) {
            break (u32::try_from(events)?, started.elapsed());
        }
        ensure!(relay.try_wait()?.is_none(), "the relay has ended");
        ensure!(started.elapsed() < Duration::from_secs(600), "{events} of {enough} events are settled");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // Its time up to here: what it does while it ends is not of the drain.
    let spent = meter::process(relay.id())?;
    let mut cpu = ground.cpu()?.since(before);
    cpu.client += spent;
    let memory_mb = meter::peak_memory(relay.id()).ok();
    end(relay)?;
    let settled: i64 = sqlx::query_scalar(settled).fetch_one(&mut legacy).await?;
    once_in_order(pair, u32::try_from(settled)?).await?;
    Ok(Drain { events, took, cpu, memory_mb })
}

/// Ends a relay as an operator would.
pub(crate) fn end(mut relay: Child) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(relay.id())?), Signal::SIGTERM)?;
    ensure!(relay.wait()?.success(), "the relay did not end well");
    Ok(())
}
