//! A legacy table whose changes are captured, and its copy: what the tests of capture and backfill stand on.

use std::process::{Child as Process, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outbox_relay::backfill::{self, Options, Summary};
use outbox_relay::capture;
use outbox_relay::config::{Action, Config, TableName};
use outbox_relay::connect;
use outbox_relay::job::{Kind, Via, Who};
use outbox_relay::repair::{By, Repair, Task, Wanted};
use outbox_relay::source::RowKey;
use outbox_relay::verify;
use tokio_util::sync::CancellationToken;

use super::stage::{self, Stage};
use super::{Database, Pair};

/// The legacy table, and the memory of what was deleted from it.
pub const LEGACY: &str = "
    CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, version int NOT NULL, noise text);
    CREATE TABLE tomb (id bigint PRIMARY KEY, version int NOT NULL);";

/// Watches the new table.
pub const WATCH: &str = concat!(
    include_str!("../../watch.sql"),
    "CREATE TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON users FOR EACH ROW EXECUTE FUNCTION watch();"
);

/// `users` is made of the legacy table, by one mapping.
pub fn copied(config: &mut Config) {
    let users = stage::users().made_of(TableName { schema: "public".into(), table: "users".into() }, "id");
    config.entities[0] = users.on("UserDeleted", Action::Delete);
    config.backfill.lock_time = Duration::from_millis(20);
}

/// A stage whose legacy table has these many rows, and a new table that is watched.
pub async fn stage(pair: Pair, rows: u32, change: impl FnOnce(&mut Config)) -> Stage {
    pair.legacy.run(LEGACY).await;
    pair.legacy
        .run(&format!("INSERT INTO users SELECT i, 'n' || i, 1 FROM generate_series(-5, {rows} - 6) i; ANALYZE users"))
        .await;
    let stage = Stage::on(pair, |config| {
        copied(config);
        change(config);
    })
    .await;
    stage.pair.new.run(WATCH).await;
    stage
}

/// Installs the triggers of the stage's first entity.
pub async fn install(stage: &Stage) {
    let (source, _) = connect::open(&stage.config).await.unwrap();
    assert!(capture::install(&stage.config, &stage.config.entities[0], &source, &Who::default()).await.unwrap());
}

/// Copies, with little patience.
pub async fn copy(stage: &Stage) -> Summary {
    copy_with(stage, &Options { patience: Duration::from_millis(300), ..Options::default() }).await
}

pub async fn copy_with(stage: &Stage, options: &Options) -> Summary {
    backfill::run(&stage.config, options, &|_| {}, &CancellationToken::new()).await.unwrap()
}

/// The whole of a table, in order.
pub async fn rows(database: &Database) -> Vec<(i64, String, i32)> {
    sqlx::query_as("SELECT id, name, version FROM users ORDER BY id").fetch_all(&database.pool).await.unwrap()
}

/// Both tables are the same, and the new one never went back.
pub async fn agree(stage: &Stage) {
    let (legacy, new) = (rows(&stage.pair.legacy).await, rows(&stage.pair.new).await);
    let back: Vec<(i64, String, i32, i32)> =
        sqlx::query_as("SELECT * FROM went_back").fetch_all(&stage.pair.new.pool).await.unwrap();
    assert_eq!(back, vec![], "rows of the new table went back");
    if legacy != new {
        let missing: Vec<_> = legacy.iter().filter(|row| !new.contains(row)).take(5).collect();
        let extra: Vec<_> = new.iter().filter(|row| !legacy.contains(row)).take(5).collect();
        panic!("of {} and {} rows: missing or stale {missing:?}, ghosts {extra:?}", legacy.len(), new.len());
    }
}

const ORDER: &str = "OUTBOX_RELAY_TEST_COPIER";

/// A copy in a process of its own, or whoever else takes a lane besides the relay; dropping it kills it.
pub struct Copier {
    process: Process,
}

impl Copier {
    /// For the stage's databases; to be aborted or stopped at a failpoint, if any.
    pub fn start(stage: &Stage, failpoint: Option<&str>) -> Copier {
        Copier::that("copies", stage, failpoint)
    }

    /// One that `copies`, `copies anew`, `verifies` (and ends with an error unless both are equal) or `repairs` the rows 1 to 3.
    pub fn that(does: &str, stage: &Stage, failpoint: Option<&str>) -> Copier {
        let c = &stage.config;
        let order = serde_json::json!({
            "does": does, "legacy": stage.pair.legacy.url, "new": stage.pair.new.url, "lanes": c.relay.lanes,
            "rate": c.backfill.rows_per_second,
            "aggregate_id": c.entities[0].legacy.as_ref().map(|rows| &rows.aggregate_id),
            "mapping": c.entities[0].mapping.as_ref().map(|file| &file.text),
        });
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--ignored", "--exact", "--nocapture", "backfill::child_that_copies"]);
        command.env(ORDER, order.to_string()).env_remove("OUTBOX_RELAY_FAILPOINT");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(failpoint) = failpoint {
            command.env("OUTBOX_RELAY_FAILPOINT", failpoint);
        }
        Copier { process: command.spawn().expect("a child") }
    }

    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("the child").is_none()
    }

    /// Waits until it stands still at its failpoint.
    pub async fn stands_still(&self) {
        let stat = format!("/proc/{}/stat", self.process.id());
        super::eventually(super::DEADLINE, "it stands still at its failpoint", || async {
            let stat = std::fs::read_to_string(&stat).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
        })
        .await;
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        let pid = i32::try_from(self.process.id()).expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGCONT).expect("the child is there");
    }

    /// Waits until it has ended well; the most memory that it had, in bytes, where the system tells.
    pub async fn peak(&mut self) -> Option<u64> {
        let status = format!("/proc/{}/status", self.process.id());
        let mut peak = None;
        let mut ended = None;
        super::eventually(super::DEADLINE * 4, "it ends", || {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kb = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
            peak = peak.max(kb.map(|kb| kb * 1024));
            ended = self.process.try_wait().expect("the child");
            let over = ended.is_some();
            async move { over }
        })
        .await;
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
        peak
    }

    /// Waits until it ends by itself; whether it did so without an error.
    pub async fn ended(&mut self) -> bool {
        let mut status = None;
        super::eventually(super::DEADLINE * 2, "the copy ends", || {
            status = self.process.try_wait().expect("the child");
            let ended = status.is_some();
            async move { ended }
        })
        .await;
        status.is_some_and(|status| status.success())
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the child does; returns at once if this process was not told to be one.
pub async fn copy_as_told() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let order: serde_json::Value = serde_json::from_str(&order).expect("an order");
    let text = |key: &str| order[key].as_str().expect("text").to_owned();
    let mut config: Config = stage::config(&text("legacy"), &text("new"));
    copied(&mut config);
    config.relay.lanes = u16::try_from(order["lanes"].as_u64().expect("a number")).expect("small");
    config.backfill.rows_per_second = u32::try_from(order["rate"].as_u64().expect("a number")).expect("small");
    config.entities[0].legacy.as_mut().expect("rows").aggregate_id = text("aggregate_id");
    config.entities[0].mapping = order["mapping"].as_str().map(|text| stage::file("mappings/user.sql", text));
    let stop = CancellationToken::new();
    if matches!(text("does").as_str(), "copies" | "copies anew") {
        let restart = text("does") == "copies anew";
        let options = Options { restart, patience: Duration::from_secs(5), ..Options::default() };
        backfill::run(&config, &options, &|_| {}, &stop).await.expect("the copy");
        return;
    }
    let (source, target) = connect::open(&config).await.expect("both databases");
    if text("does") == "verifies" {
        let options = verify::Options::default();
        let report = verify::verify(&config, &source, &target, &options, &stop, &|_| {}).await;
        assert_eq!(report.expect("a report").outcome, verify::Outcome::Equal);
        return;
    }
    let by = By { actor: "ada".into(), reason: "a test".into(), command: Kind::Resync, via: Via::Command };
    let repair = Repair {
        config: &config,
        source: &source,
        target: &target,
        by: &by,
        apply: true,
        expected: None,
        stop: &stop,
        job: None,
    };
    let keys = ["1", "2", "3"].map(|key| RowKey(vec![key.to_owned()]));
    repair.run(&Task::Resync(&config.entities[0], Wanted::Keys(keys.into()))).await.expect("the repair");
}
