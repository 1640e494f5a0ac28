//! Two throwaway servers, databases on them, and the program with a configuration for these.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outbox_relay::demo::server::{Options, Server};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::copy::TRANSFORM;

/// The servers.
pub(crate) struct Ground {
    legacy: Server,
    new: Server,
}

/// A pair of databases, and a folder with a configuration.
pub(crate) struct Pair {
    pub(crate) legacy: String,
    pub(crate) new: String,
    name: String,
    folder: tempfile::TempDir,
}

/// A command that has ended.
pub(crate) struct Done {
    pub(crate) took: Duration,
    /// The most memory that it had, in MB.
    pub(crate) peak_mb: f64,
}

impl Ground {
    /// `safely`: as Postgres ships.
    pub(crate) async fn new(safely: bool) -> Result<Ground> {
        let safely = if safely { "on" } else { "off" };
        let options = |name: &str| {
            let mut options = Options::new(name)
                .with("fsync", safely)
                .with("synchronous_commit", safely)
                .with("shared_buffers", "'1GB'")
                .with("max_wal_size", "'16GB'")
                .with("min_wal_size", "'2GB'")
                .with("checkpoint_timeout", "'15min'");
            options.password = false;
            options.wal_segment_megabytes = 16;
            options
        };
        let (legacy, new) =
            tokio::try_join!(Server::start(options("bench-legacy")), Server::start(options("bench-new")))?;
        Ok(Ground { legacy, new })
    }

    /// Two databases with these tables, an entity over them, `init` done.
    pub(crate) async fn pair(&self, name: &str, tables: [&str; 2], entity: &str) -> Result<Pair> {
        self.legacy.create_database(name).await?;
        self.new.create_database(name).await?;
        let folder = tempfile::tempdir()?;
        let pair = Pair { legacy: self.legacy.url(name), new: self.new.url(name), name: name.to_owned(), folder };
        run(&pair.legacy, tables[0]).await?;
        run(&pair.new, tables[1]).await?;
        std::fs::write(pair.folder.path().join("user.sql"), format!("SELECT {TRANSFORM}\nFROM event\n"))?;
        std::fs::write(
            pair.folder.path().join("outbox-relay.toml"),
            format!(
                "[legacy]\nurl = \"{}\"\n[new]\nurl = \"{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[log]\nfilter = \"warn\"\n{entity}",
                pair.legacy, pair.new
            ),
        )?;
        pair.tell(&["init"]).await?;
        Ok(pair)
    }

    /// What is left of a pair would be vacuumed while the next one is measured.
    pub(crate) async fn drop(&self, pair: Pair) -> Result<()> {
        for server in [&self.legacy, &self.new] {
            run(&server.url("postgres"), &format!("DROP DATABASE {} WITH (FORCE)", pair.name)).await?;
        }
        Ok(())
    }

    /// What was just written is written down.
    pub(crate) async fn settled(&self) -> Result<()> {
        for server in [&self.legacy, &self.new] {
            run(&server.url("postgres"), "CHECKPOINT").await?;
        }
        Ok(())
    }
}

impl Pair {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_outbox-relay")));
        command.current_dir(self.folder.path()).args(arguments).stdout(Stdio::null());
        command
    }

    /// Runs one of the program's commands to its end, which must be a good one.
    pub(crate) async fn tell(&self, arguments: &[&str]) -> Result<Done> {
        measured(self.command(arguments)).await.with_context(|| arguments.join(" "))
    }

    /// A relay that runs until it is dropped.
    pub(crate) fn relay(&self) -> Result<Relay> {
        Ok(Relay(self.command(&["run"]).spawn().context("cannot start the relay")?))
    }
}

/// A relay in a process of its own.
pub(crate) struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end.
pub(crate) async fn measured(mut command: Command) -> Result<Done> {
    let started = Instant::now();
    let mut process = command.spawn()?;
    let mut peak_mb: f64 = 0.0;
    let status = loop {
        peak_mb = peak_mb.max(memory(process.id()).unwrap_or(0.0));
        match process.try_wait()? {
            Some(status) => break status,
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    ensure!(status.success(), "it ended with {status}");
    Ok(Done { took: started.elapsed(), peak_mb })
}

/// The most memory that a process has had, in MB.
fn memory(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()? / 1024.0)
}

/// Runs statements, several at once if need be.
pub(crate) async fn run(url: &str, sql: &str) -> Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.with_context(|| sql.to_owned())?;
    Ok(connection.close().await?)
}

/// The one text of a query.
pub(crate) async fn text(url: &str, sql: &str) -> Result<Option<String>> {
    let mut connection = PgConnection::connect(url).await?;
    let found = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await;
    let found = found.with_context(|| sql.to_owned())?;
    connection.close().await?;
    Ok(found)
}

/// The middle one of some figures, with the lowest and the highest.
pub(crate) fn told(figures: &[f64], digits: usize) -> String {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |at: usize| sorted.get(at).copied().unwrap_or(f64::NAN);
    let (middle, low, high) = (at(sorted.len() / 2), at(0), at(sorted.len().saturating_sub(1)));
    format!("{middle:.digits$} ({low:.digits$}–{high:.digits$})")
}

/// A table as `docs/performance.md` has them.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(header);
    table
}
