//! A process of the built program, with a log of its own. Dropping it kills it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::bail;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The documentation says six seconds for what is in flight; the rest is this machine's.
const SHUTDOWN: Duration = Duration::from_secs(25);

pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// What it says on stderr is its log.
    pub fn start(mut command: Command, log: PathBuf) -> io::Result<Process> {
        Ok(Process { child: command.stderr(File::create(&log)?).spawn()?, log })
    }

    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// How, if it has.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for it so long.
    pub async fn ends_within(&mut self, time: Duration) -> io::Result<Option<ExitStatus>> {
        let started = Instant::now();
        loop {
            let ended = self.ended()?;
            if ended.is_some() || started.elapsed() > time {
                return Ok(ended);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// It is told to end, and must do so soon.
    pub async fn ends_when_told(&mut self, signal: Signal) -> anyhow::Result<ExitStatus> {
        self.signal(signal);
        match self.ends_within(SHUTDOWN).await? {
            Some(status) => Ok(status),
            None => bail!("who was told to end did not within {SHUTDOWN:?}\n{}", self.log_tail()),
        }
    }

    /// That it has not panicked, nor found itself wrong.
    pub fn nothing_odd(&self) -> anyhow::Result<()> {
        let log = said(&self.log);
        if let Some(line) = log.lines().find(|line| line.contains("panicked at") || line.contains("code=\"bug\"")) {
            bail!("in {}: {line}\n{}", self.log.display(), self.log_tail());
        }
        Ok(())
    }

    pub fn log_tail(&self) -> String {
        let log = said(&self.log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What stands in a file, if anything does.
pub fn said(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default()
}
