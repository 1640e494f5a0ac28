//! A relay in a process of its own, to kill, freeze, and abort between two steps. The process is this test program again.

use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outbox_relay::config::Config;
use outbox_relay::connect;
use outbox_relay::metrics::Metrics;
use outbox_relay::relay::{self, Shared};
use tokio_util::sync::CancellationToken;

use super::stage::{self, Stage};

const ORDER: &str = "OUTBOX_RELAY_TEST_CHILD";

/// Whether crash points were compiled in; says so if not.
pub fn has_failpoints() -> bool {
    if !cfg!(feature = "failpoints") {
        eprintln!("skipped: needs --features failpoints");
    }
    cfg!(feature = "failpoints")
}

/// A child; dropping it kills it.
pub struct Child {
    process: Process,
}

impl Child {
    /// Starts a relay for the stage's databases, with its deadline, workers and batch; to be aborted at a crash point, if any.
    pub fn start(stage: &Stage, failpoint: Option<&str>) -> Child {
        let c = &stage.config;
        let order = serde_json::json!({
            "legacy": stage.pair.legacy.url, "new": stage.pair.new.url, "workers": c.relay.workers, "batch": c.relay.batch,
            "lanes": c.relay.lanes, "deadline": c.relay.deadline.as_millis() as u64,
        });
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--ignored", "--exact", "--nocapture", "crash::child_that_relays"]);
        command.env(ORDER, order.to_string()).env_remove("OUTBOX_RELAY_FAILPOINT");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(failpoint) = failpoint {
            command.env("OUTBOX_RELAY_FAILPOINT", failpoint);
        }
        Child { process: command.spawn().expect("a child") }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("the child is there");
    }

    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// The most memory that it has had so far, in bytes; `None` where the system does not tell.
    pub fn peak(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
    }

    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("the child").is_none()
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self, deadline: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < deadline {
            if let Some(status) = self.process.try_wait().expect("the child") {
                return Some(status);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the child does; returns at once if this process was not told to be one.
pub async fn relay_as_told() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let order: serde_json::Value = serde_json::from_str(&order).expect("an order");
    let text = |key: &str| order[key].as_str().expect("text").to_owned();
    let number = |key: &str| order[key].as_u64().expect("a number");
    let mut config: Config = stage::config(&text("legacy"), &text("new"));
    config.relay.workers = u16::try_from(number("workers")).expect("small");
    config.relay.lanes = u16::try_from(number("lanes")).expect("small");
    config.relay.batch = u32::try_from(number("batch")).expect("small");
    config.relay.deadline = Duration::from_millis(number("deadline"));
    let (source, target) = connect::open(&config).await.expect("both databases");
    let shared = Shared::new(config, source, target, Metrics::default()).await.expect("mappings");
    relay::run(Arc::new(shared), CancellationToken::new()).await.expect("the relay");
}
