//! `run`: the real binary, as a process among others, with real signals.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outbox_relay::config::RowsFrom;
use outbox_relay::demo::server::Mode;

use crate::admin::Client;
use crate::support::stage::Stage;
use crate::support::{DEADLINE, eventually, own_servers};

/// A `run` of the built binary on a stage, with a configuration file of its own. Killed when dropped.
pub(crate) struct Relay {
    child: Child,
    _folder: tempfile::TempDir,
    log: PathBuf,
}

impl Relay {
    fn start(stage: &Stage, arguments: &[&str]) -> Relay {
        Relay::start_with(stage, arguments, &[])
    }

    /// With these variables.
    pub(crate) fn start_with(stage: &Stage, arguments: &[&str], variables: &[(&str, &str)]) -> Relay {
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
        let made_of = match stage.config.entities[0].legacy.as_ref().map(|rows| (&rows.from, &rows.key)) {
            Some((RowsFrom::Table(table), key)) => format!("legacy = {{ table = \"{table}\", key = {key:?} }}\n"),
            _ => String::new(),
        };
        let text = format!(
            "[legacy]\nurl = \"{}\"\n[new]\nurl = \"{}\"\n[relay]\ndeadline = \"10s\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [[entity]]\naggregate_type = \"User\"\ntable = \"users\"\nkey = [\"id\"]\nmapping = \"mappings/user.sql\"\n{made_of}\
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
            .envs(variables.iter().copied())
            .stderr(std::fs::File::create(&log).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Relay { child, _folder: folder, log }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// As its jobs name it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) async fn ended(&mut self, within: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < within, "still running after {within:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn log(&self) -> String {
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
    // Of one that stays, a probe is no failure: that it waits has been said.
    let serving = Relay::start(&stage, &[]);
    eventually(DEADLINE, "it listens", || async { serving.log().contains("the admin API and the page listen") }).await;
    let log = serving.log();
    let line = log.lines().find(|line| line.contains("the admin API and the page listen")).unwrap();
    let address = line.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
    let probed = Client::at(format!("http://{address}")).get("/readyz").await;
    assert_eq!(probed.problem(503), "starting");
    assert!(!serving.log().contains("response failed"), "{}", serving.log());
    drop(serving);
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

#[tokio::test]
async fn what_it_does_is_told_in_logs_and_metrics() {
    let stage = Stage::new().await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    stage.thing("a", 1).await;
    stage.user(1, "UserCreated", "Ada", 1).await;
    stage
        .pair
        .legacy
        .run(&format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, headers)
             VALUES ('User', '2', 'UserCreated', '{{\"id\": \"no number\"}}', '{{\"traceparent\": \"00-{trace}-b7ad6b7169203331-01\"}}')"
        ))
        .await;
    let relay = Relay::start(&stage, &["--log-format", "json", "--log-filter", "info,outbox_relay=trace"]);
    eventually(DEADLINE, "two are applied, one is refused", || async {
        stage.count("processed").await == 2 && stage.count("retry").await == 1
    })
    .await;
    let log = relay.log();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let says = |message: &str| {
        let told = lines.iter().find(|line| line["message"].as_str().is_some_and(|m| m.contains(message)));
        told.unwrap_or_else(|| panic!("{message}\n{log}"))
    };
    let refused = says("event refused");
    assert_eq!(
        (&refused["trace_id"], &refused["entity"], &refused["code"]),
        (&trace.into(), &"users".into(), &"22P02".into())
    );
    let applied = says("applied");
    assert!(applied["event.id"].is_i64() && applied["span"]["lane"].is_i64(), "{applied}");
    assert!(!log.contains("no number"), "a payload is in the log:\n{log}");
    let address = says("the admin API and the page listen")["address"].as_str().unwrap().to_owned();
    // The backlog is counted every few seconds.
    eventually(DEADLINE, "the metrics tell it", || async {
        let url = format!("http://{address}/metrics");
        let text =
            tokio::task::spawn_blocking(move || ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap());
        let text = text.await.unwrap();
        [
            "outbox_relay_events_total{disposition=\"processed\",aggregate_type=\"Thing\"} 1",
            "outbox_relay_events_total{disposition=\"retry\",aggregate_type=\"User\"}",
            "outbox_relay_lag_seconds_count 2",
            "outbox_relay_batch_duration_seconds_count",
            "outbox_relay_backlog{aggregate_type=\"User\",status=\"retry\"} 1",
            "outbox_relay_breaker_open{what=\"target\"} 0",
        ]
        .iter()
        .all(|line| text.contains(line))
    })
    .await;
}

#[tokio::test]
async fn a_source_that_is_back_is_known_to_be_back_although_nothing_is_pending() {
    let mut servers = own_servers().await;
    let stage = Stage::on(servers.pair().await, |_| {}).await;
    let running = stage.start().await;
    let away = || async { running.shared.state().source_away.is_some() };
    stage.pair.legacy.pool.close().await;
    servers.legacy.kill().await;
    eventually(DEADLINE, "it is missed", away).await;
    servers.legacy.restart().await.unwrap();
    eventually(DEADLINE, "it is known to be back", || async { !away().await }).await;
    running.stop().await;
}

#[tokio::test]
async fn a_target_that_is_away_or_back_is_known_although_nothing_is_pending() {
    let mut servers = own_servers().await;
    let stage = Stage::on(servers.pair().await, |_| {}).await;
    let running = stage.start().await;
    stage.thing("a", 1).await;
    stage.drained().await;
    let why = || async { running.shared.breaker.report().map(|(why, _)| why) };
    assert_eq!(why().await, None);
    servers.new.stop(Mode::Immediate).await.unwrap();
    eventually(DEADLINE, "it is missed, and why is told", || async {
        why().await.is_some_and(|why| why.contains("refused"))
    })
    .await;
    servers.new.restart().await.unwrap();
    eventually(2 * DEADLINE, "it is known to be back", || async { why().await.is_none() }).await;
    running.stop().await;
}

#[tokio::test]
async fn a_drain_does_not_wait_for_what_is_paused() {
    let stage = Stage::new().await;
    things(&stage, 50, 10).await;
    stage.user(1, "UserCreated", "Ada", 1).await;
    stage.pair.legacy.run("INSERT INTO outbox_relay.pause VALUES ('User', 'a test', 'me')").await;
    let mut relay = Relay::start(&stage, &["--until-empty"]);
    assert_eq!(relay.ended(DEADLINE).await.code(), Some(1), "{}", relay.log());
    assert_eq!((stage.count("processed").await, stage.count("pending").await), (50, 1));
}
