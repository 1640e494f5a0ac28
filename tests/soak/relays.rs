//! Relays as an operator runs them: processes of the built program, each with a configuration file and a log of its own.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use crate::plan::{DEADLINE, Deck, Dice, Plan, pause};
use crate::process::{Process, said};
use crate::proxy::{Dropped, Proxy};
use crate::tally::Tally;

/// Who the admin API is talked to as.
pub const TOKEN: &str = "soak-0123456789abcdef";

/// The program: `OUTBOX_RELAY_SOAK_PROGRAM`, which `make soak` sets to the release build, or the one built with the tests.
pub fn program() -> PathBuf {
    std::env::var_os("OUTBOX_RELAY_SOAK_PROGRAM")
        .map_or_else(|| env!("CARGO_BIN_EXE_outbox-relay").into(), PathBuf::from)
}

const APPLIED: &str = "\
INSERT INTO applied (event_id, event, kind, aggregate, event_type, version)
SELECT event_id, id, aggregate_type, aggregate_id, event_type, (payload->>'version')::int
FROM event
WHERE accept(event_id, payload)
";

const USER: &str = "\
SELECT payload->>'id' AS id, payload->>'name' AS name, (payload->>'version')::int AS version
FROM event
";

/// Of the captured table's rows, whether an event, the copy or a verification brings them here.
const CUSTOMER: &str = "\
SELECT payload->>'id' AS id, (payload->>'first') || ' ' || (payload->>'last') AS name, (payload->>'version')::int AS version
FROM event
";

/// `users` by mapping, and beside it, in the same transaction, the oracle's table, which has no unique constraint; `customers` are made
/// of a legacy table that is captured.
const ENTITIES: &str = r#"
[[entity]]
aggregate_type = "User"
table = "users"
key = ["id"]
mapping = "mappings/user.sql"
[entity.events]
Updated = "upsert"
Deleted = "delete"

[[entity]]
name = "users_log"
aggregate_type = "User"
[entity.events]
Updated = { sql = "handlers/applied.sql" }
Deleted = { sql = "handlers/applied.sql" }

[[entity]]
name = "things"
aggregate_type = "Thing"
[entity.events]
Happened = { sql = "handlers/applied.sql" }

[[entity]]
name = "orders"
aggregate_type = "Order"
on_failure = "pass"
[entity.events]
Happened = { sql = "handlers/applied.sql" }

[[entity]]
aggregate_type = "Customer"
table = "customers"
key = ["id"]
mapping = "mappings/customer.sql"
legacy = { table = "public.clients", key = ["id"] }
[entity.events]
CustomerCreated = "upsert"
CustomerUpdated = "upsert"
CustomerDeleted = "delete"
"#;

/// Writes a configuration with its files into a folder; the path of the first.
pub fn configure(folder: &Path, plan: &Plan, legacy: &str, new: &str) -> std::io::Result<PathBuf> {
    fs::create_dir_all(folder.join("mappings"))?;
    fs::create_dir_all(folder.join("handlers"))?;
    fs::write(folder.join("mappings/user.sql"), USER)?;
    fs::write(folder.join("mappings/customer.sql"), CUSTOMER)?;
    fs::write(folder.join("handlers/applied.sql"), APPLIED)?;
    let Plan { lanes, batch, workers, prepared_statements, .. } = plan;
    let (deadline, replica_lag) = (DEADLINE.as_secs(), plan.replica_lag().as_secs());
    let file = folder.join("outbox-relay.toml");
    let text = format!(
        "[legacy]\nurl = \"{legacy}\"\nprepared_statements = {prepared_statements}\n\
         [new]\nurl = \"{new}\"\nprepared_statements = {prepared_statements}\n\
         [relay]\nlanes = {lanes}\nbatch = {batch}\nworkers = {workers}\ndeadline = \"{deadline}s\"\nreplica_lag = \"{replica_lag}s\"\n\
         [retry]\ninitial = \"50ms\"\nmax = \"1s\"\nattempts = 3\n\
         [retention]\nprocessed = \"1s\"\n\
         [backfill]\nworkers = 4\nlock_time = \"500ms\"\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n{ENTITIES}"
    );
    fs::write(&file, text)?;
    Ok(file)
}

/// A command of the program, with a configuration.
pub fn command(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).arg("--config").arg(config).env("OUTBOX_RELAY_ADMIN_TOKEN", TOKEN).stdin(Stdio::null());
    command
}

/// Lines of a log that show what the faults came to.
const TOLD: [(&str, &str); 6] = [
    ("healed: the target had forgotten a batch", "told by a relay: healed, a batch put back"),
    ("healed: a batch had taken effect", "told by a relay: healed, a batch settled"),
    ("ended a session that held the lane", "told by a relay: a ghost's session ended"),
    ("overtaken: another worker", "told by a relay: overtaken, and refused"),
    ("the target does not answer", "told by a relay: the new database away"),
    ("stopped until it is mended", "told by a relay: an aggregate type stopped"),
];

/// Where a process' admin API listens, while it is known to.
pub type Admin = Arc<Mutex<Option<u16>>>;

/// A process that comes and goes. Dropping it kills it.
pub struct Relay {
    config: PathBuf,
    pub legacy: Proxy,
    pub new: Proxy,
    pub admin: Admin,
    process: Option<Process>,
    starts: u32,
}

impl Relay {
    pub fn new(config: PathBuf, legacy: Proxy, new: Proxy) -> Relay {
        Relay { config, legacy, new, admin: Admin::default(), process: None, starts: 0 }
    }

    fn folder(&self) -> &Path {
        self.config.parent().unwrap_or(Path::new("/"))
    }

    fn log_file(&self) -> PathBuf {
        self.folder().join(format!("log-{}", self.starts))
    }

    pub fn start(&mut self) -> anyhow::Result<()> {
        self.starts += 1;
        let mut run = command(&self.config, &["run"]);
        run.stdout(Stdio::null());
        self.process = Some(Process::start(run, self.log_file())?);
        let (log, admin) = (self.log_file(), self.admin.clone());
        tokio::spawn(async move {
            for _ in 0..300 {
                let text = said(&log);
                let port =
                    text.lines().find(|line| line.contains("the admin API and the page listen")).and_then(|line| {
                        let digits = line.rsplit_once(':')?.1;
                        digits.trim().parse().ok()
                    });
                if port.is_some() {
                    *admin.lock().unwrap_or_else(PoisonError::into_inner) = port;
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    fn forget_admin(&self) {
        *self.admin.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub fn kill(&mut self) {
        self.forget_admin();
        self.process = None;
    }

    /// As systemd and Kubernetes do it; it must end well, and soon.
    pub async fn terminate(&mut self) -> anyhow::Result<()> {
        self.forget_admin();
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let status = process.ends_when_told(Signal::SIGTERM).await?;
        // Told to end before it listened, and said anything.
        let too_early = status.signal() == Some(Signal::SIGTERM as i32) && process.log_tail().is_empty();
        if !status.success() && !too_early {
            bail!("a relay that was told to end did so with {status}\n{}", process.log_tail());
        }
        process.nothing_odd()
    }

    /// That it runs, and has not panicked. A process that ends by itself is a finding, whatever was done to its databases.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        if let Some(status) = process.ended()? {
            bail!("a relay ended by itself: {status}\n{}", process.log_tail());
        }
        process.nothing_odd()
    }

    /// What its processes have told of, by how often.
    pub fn told_of(&self, tally: &Tally) {
        for start in 1..=self.starts {
            let log = said(&self.folder().join(format!("log-{start}")));
            for line in log.lines() {
                for (words, what) in TOLD {
                    if line.contains(words) {
                        tally.count(what);
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Fault {
    Killed,
    Frozen,
    FrozenBeyondDeadline,
    HostLost,
    Terminated,
    BadMapping,
    PacketsDropped,
    PacketsDroppedBeyondDeadline,
    PacketsDelayed,
    Cuts,
}

const FAULTS: [Fault; 13] = [
    Fault::Killed,
    Fault::Killed,
    Fault::Frozen,
    Fault::FrozenBeyondDeadline,
    Fault::HostLost,
    Fault::Terminated,
    Fault::BadMapping,
    Fault::PacketsDropped,
    Fault::PacketsDroppedBeyondDeadline,
    Fault::PacketsDelayed,
    Fault::Cuts,
    Fault::Cuts,
    Fault::Cuts,
];

/// What happens to one relay and to its network; it runs, in calm, at the end.
pub async fn happen(mut relay: Relay, mut dice: Dice, tally: Tally, over: CancellationToken) -> anyhow::Result<Relay> {
    let mut deck = Deck::of(&FAULTS);
    let beyond = DEADLINE.as_millis() as u64;
    relay.start()?;
    while !over.is_cancelled() {
        dice.rest(500, 3000, &over).await;
        relay.must_run()?;
        let fault = deck.draw(&mut dice);
        happens(&mut relay, fault, beyond, &mut dice, &tally, &over).await?;
    }
    relay.legacy.calm();
    relay.new.calm();
    relay.must_run()?;
    Ok(relay)
}

async fn happens(
    relay: &mut Relay,
    fault: Fault,
    beyond: u64,
    dice: &mut Dice,
    tally: &Tally,
    over: &CancellationToken,
) -> anyhow::Result<()> {
    let side = if dice.one_in(2) { relay.legacy.clone() } else { relay.new.clone() };
    match fault {
        Fault::Killed => {
            relay.kill();
            tally.count("relay: SIGKILL");
            dice.rest(0, 1500, over).await;
            relay.start()?;
        }
        Fault::Frozen | Fault::FrozenBeyondDeadline => {
            let (from, to, what) = match fault {
                Fault::Frozen => (50, beyond, "relay: SIGSTOP, then SIGCONT"),
                _ => (beyond + 4000, beyond + 7000, "relay: SIGSTOP beyond the deadline, then SIGCONT"),
            };
            relay.signal(Signal::SIGSTOP);
            dice.rest(from, to, over).await;
            relay.signal(Signal::SIGCONT);
            tally.count(what);
        }
        Fault::HostLost => {
            for proxy in [&relay.legacy, &relay.new] {
                proxy.keep_silent(Duration::from_secs(20));
            }
            relay.kill();
            tally.count("relay: its host lost without a word");
            // The connections see it, and keep it to themselves.
            pause(Duration::from_millis(300), &CancellationToken::new()).await;
            for proxy in [&relay.legacy, &relay.new] {
                proxy.keep_silent(Duration::ZERO);
            }
            dice.rest(0, 2000, over).await;
            relay.start()?;
        }
        Fault::Terminated => {
            relay.terminate().await?;
            tally.count("relay: SIGTERM, ended well");
            relay.start()?;
        }
        Fault::BadMapping => {
            let file = relay.folder().join("mappings/user.sql");
            let wrong = dice.pick(&["SELECT nothing FROM event\n", "SELEC\n", ""]);
            fs::write(&file, wrong).context("a mapping")?;
            dice.rest(500, 4000, over).await;
            fs::write(&file, USER).context("a mapping")?;
            tally.count("operator's error: a mapping edited to nonsense, and back");
        }
        Fault::PacketsDropped | Fault::PacketsDroppedBeyondDeadline => {
            let which = dice.pick(&[Dropped::ToServer, Dropped::ToRelay, Dropped::Both]);
            let (from, to, what) = match fault {
                Fault::PacketsDropped => (100, beyond, "network: packets dropped for a while"),
                _ => (beyond + 3000, beyond + 6000, "network: packets dropped beyond the deadline"),
            };
            side.drop_packets(which);
            dice.rest(from, to, over).await;
            side.drop_packets(Dropped::None);
            tally.count(what);
        }
        Fault::PacketsDelayed => {
            side.delay(dice.millis(5, 150));
            dice.rest(1000, 5000, over).await;
            side.delay(Duration::ZERO);
            tally.count("network: packets delayed for a while");
        }
        Fault::Cuts => {
            side.cut(dice.pick(&[50, 200, 1000]), dice.pick(&[3, 10, 30]));
            dice.rest(1000, 4000, over).await;
            side.cut(0, 0);
        }
    }
    Ok(())
}
