//! `run`: the real binary, as a process among others, with real signals.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::stage::Stage;
use crate::support::{DEADLINE, eventually, own_servers};

/// A `run` of the built binary on a stage, with a configuration file of its own. Killed when dropped.
struct Relay {
    child: Child,
    _folder: tempfile::TempDir,
    log: PathBuf,
}

impl Relay {
    fn start(stage: &Stage, arguments: &[&str]) -> Relay {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("outbox-relay.toml");
        std::fs::create_dir(folder.path().join("handlers")).unwrap();
        std::fs::create_dir(folder.path().join("mappings")).unwrap();
        for entity in &stage.config.entities {
            for action in entity.events.values() {
                if let outbox_relay::config::Action::Sql(file) = action {
                    std::fs::write(folder.path().join(&file.path), &file.text).unwrap();
                }
            }
            if let Some(file) = &entity.mapping {
                std::fs::write(folder.path().join(&file.path), &file.text).unwrap();
            }
        }
        let text = format!(
            "[legacy]\nurl = \"{}\"\n[new]\nurl = \"{}\"\n[relay]\ndeadline = \"10s\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [[entity]]\naggregate_type = \"User\"\ntable = \"users\"\nkey = [\"id\"]\nmapping = \"mappings/user.sql\"\n\
             [entity.events]\nUserCreated = \"upsert\"\nUserUpdated = \"upsert\"\nUserDeleted = \"delete\"\n\
             [[entity]]\nname = \"applied\"\naggregate_type = \"Thing\"\n[entity.events]\nHappened = {{ sql = \"handlers/applied.sql\" }}\n",
            stage.pair.legacy.url, stage.pair.new.url
        );
        std::fs::write(&config, text).unwrap();
        let log = folder.path().join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
            .arg("run")
            .args(arguments)
            .arg("--config")
            .arg(&config)
            .stderr(std::fs::File::create(&log).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Relay { child, _folder: folder, log }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    async fn ended(&mut self, within: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < within, "still running after {within:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn things(stage: &Stage, n: i64, aggregates: i64) {
    stage
        .pair
        .legacy
        .run(&format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'Thing', (i % {aggregates})::text, 'Happened', jsonb_build_object('version', i) FROM generate_series(1, {n}) i"
        ))
        .await;
}

#[tokio::test]
async fn sigterm_under_load_ends_the_batches_in_flight_and_exits_0() {
    let stage = Stage::new().await;
    things(&stage, 60_000, 500).await;
    let mut relay = Relay::start(&stage, &[]);
    eventually(DEADLINE, "the relay is in the midst of it", || async { stage.count("processed").await > 1000 }).await;
    relay.signal(Signal::SIGTERM);
    let status = relay.ended(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "{}", relay.log());
    assert!(stage.count("pending").await > 0, "it ended before the signal: more events are needed");
    // Nothing was cut off: what took effect is settled.
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn until_empty_exits_0_when_all_is_settled_and_1_when_something_failed() {
    let stage = Stage::new().await;
    things(&stage, 500, 50).await;
    let mut relay = Relay::start(&stage, &["--until-empty"]);
    assert_eq!(relay.ended(DEADLINE).await.code(), Some(0), "{}", relay.log());
    assert_eq!(stage.count("processed").await, 500);
    stage.event("Nobody", "1", "Happened", "{}").await;
    things(&stage, 10, 10).await;
    let mut relay = Relay::start(&stage, &["--until-empty"]);
    assert_eq!(relay.ended(DEADLINE).await.code(), Some(1), "{}", relay.log());
    assert_eq!(stage.count("processed").await, 510);
    assert!(relay.log().contains("no entity takes the aggregate type \"Nobody\""), "{}", relay.log());
}

#[tokio::test]
async fn it_waits_for_databases_that_are_not_up_yet() {
    let mut servers = own_servers().await;
    let stage = Stage::on(servers.pair().await, |_| {}).await;
    things(&stage, 100, 10).await;
    stage.pair.legacy.pool.close().await;
    servers.legacy.kill().await;
    let mut relay = Relay::start(&stage, &["--until-empty"]);
    eventually(DEADLINE, "it says what it waits for", || async { relay.log().contains("waiting for the databases") })
        .await;
    servers.legacy.restart().await.unwrap();
    assert_eq!(relay.ended(DEADLINE).await.code(), Some(0), "{}", relay.log());
}

#[tokio::test]
async fn a_second_process_shares_the_work_and_the_death_of_one_costs_nothing() {
    let stage = Stage::new().await;
    things(&stage, 40_000, 2_000).await;
    let mut first = Relay::start(&stage, &[]);
    let _second = Relay::start(&stage, &[]);
    eventually(DEADLINE, "both are in the midst of it", || async { stage.count("processed").await > 5000 }).await;
    first.signal(Signal::SIGKILL);
    first.ended(DEADLINE).await;
    stage.drained().await;
    stage.oracle_agrees().await;
}
