//! Two throwaway servers, databases on them, and the program with a configuration for these.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outbox_relay::demo::server::Server;

use crate::copy::TRANSFORM;
use crate::shared::servers::{self, peak_memory, run};

/// The servers.
pub(crate) struct Ground {
    pub(crate) legacy: Server,
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
        let (legacy, new) = servers::start(&[], safely).await?;
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

    pub(crate) async fn drop(&self, pair: Pair) -> Result<()> {
        servers::drop_database([&self.legacy, &self.new], &pair.name).await
    }

    /// What was just written is written down.
    pub(crate) async fn settled(&self) -> Result<()> {
        servers::checkpoint([&self.legacy, &self.new]).await
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
        peak_mb = peak_mb.max(peak_memory(process.id()).unwrap_or(0.0));
        match process.try_wait()? {
            Some(status) => break status,
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    ensure!(status.success(), "it ended with {status}");
    Ok(Done { took: started.elapsed(), peak_mb })
}
