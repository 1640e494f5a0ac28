//! A pair of databases with everything that the relay needs on it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use outbox_relay::config::{Action, Config, Entity, OnFailure, SqlFile, TableName};
use outbox_relay::connect;
use outbox_relay::event::Lane;
use outbox_relay::init::{self, Choices};
use outbox_relay::metrics::Metrics;
use outbox_relay::relay::batch::{self, BatchError, Errand, Outcome};
use outbox_relay::relay::{self, Shared};
use tokio_util::sync::CancellationToken;

use super::{DEADLINE, Pair, eventually, pair};

/// The tables of the new database that most tests use: `users` by mapping, `applied` as an oracle without any unique
/// constraint.
pub const NEW_SCHEMA: &str = "
    CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, version int NOT NULL);
    CREATE TABLE applied (n bigserial, event bigint, event_id uuid, aggregate text, version int);";

/// `users`, by mapping.
pub fn users() -> Entity {
    Entity {
        name: "users".into(),
        line: 1,
        aggregate_type: "User".into(),
        table: Some(TableName { schema: "public".into(), table: "users".into() }),
        key: vec!["id".into()],
        replace_by: Vec::new(),
        legacy: None,
        verify: Default::default(),
        mapping: Some(file(
            "mappings/user.sql",
            "SELECT payload->>'id' AS id, payload->>'name' AS name, (payload->>'version')::int AS version\nFROM event",
        )),
        string_payloads: false,
        on_failure: OnFailure::Hold,
        events: [
            ("UserCreated".to_owned(), Action::Upsert),
            ("UserUpdated".to_owned(), Action::Upsert),
            ("UserDeleted".to_owned(), Action::Delete),
        ]
        .into(),
    }
}

/// The oracle for "once" and "in order": own SQL that appends to a table without any unique constraint.
pub fn oracle() -> Entity {
    Entity {
        name: "applied".into(),
        line: 2,
        aggregate_type: "Thing".into(),
        table: None,
        key: Vec::new(),
        replace_by: Vec::new(),
        legacy: None,
        verify: Default::default(),
        mapping: None,
        string_payloads: false,
        on_failure: OnFailure::Hold,
        events: [(
            "Happened".to_owned(),
            Action::Sql(file(
                "handlers/applied.sql",
                "INSERT INTO applied (event, event_id, aggregate, version)\nSELECT id, event_id, aggregate_id, (payload->>'version')::int FROM event",
            )),
        )]
        .into(),
    }
}

pub fn file(path: &str, text: &str) -> SqlFile {
    SqlFile { path: path.into(), text: text.into() }
}

/// What tests run with.
pub fn config(legacy: &str, new: &str) -> Config {
    let mut config = Config::for_databases(legacy, new).expect("a configuration");
    config.entities = vec![users(), oracle()];
    config.relay.deadline = Duration::from_secs(10);
    config.retry.initial = Duration::from_millis(50);
    config.retry.max = Duration::from_millis(500);
    config.retry.attempts = 3;
    config
}

/// A pair of databases, `init` done.
pub struct Stage {
    pub pair: Pair,
    pub config: Config,
}

impl Stage {
    /// On the shared servers.
    pub async fn new() -> Stage {
        Stage::on(pair().await, |_| {}).await
    }

    /// On the shared servers, with another configuration.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Stage {
        Stage::on(pair().await, change).await
    }

    /// On a pair of the test's own.
    pub async fn on(pair: Pair, change: impl FnOnce(&mut Config)) -> Stage {
        pair.new.run(NEW_SCHEMA).await;
        Stage::on_prepared(pair, change).await
    }

    /// On a pair of the test's own whose tables stand already.
    pub async fn on_prepared(pair: Pair, change: impl FnOnce(&mut Config)) -> Stage {
        let mut config = config(&pair.legacy.url, &pair.new.url);
        change(&mut config);
        let stage = Stage { pair, config };
        stage.init(Choices::default()).await.expect("init");
        stage
    }

    pub async fn init(&self, choices: Choices) -> Result<(), init::InitError> {
        init::init(&self.config, &self.pair.legacy.pool, &self.pair.new.pool, choices).await
    }

    /// The common ground of a relay in this process.
    pub async fn shared(&self) -> Arc<Shared> {
        for _ in 0..20 {
            // Whoever ends sessions ends these too.
            let Ok((source, target)) = connect::open(&self.config).await else { continue };
            if let Ok(shared) = Shared::new(self.config.clone(), source, target, Metrics::default()).await {
                return Arc::new(shared);
            }
        }
        panic!("both databases, and mappings")
    }

    /// Starts a relay in this process.
    pub async fn start(&self) -> Running {
        let shared = self.shared().await;
        let stop = CancellationToken::new();
        let task = tokio::spawn(relay::run(shared.clone(), stop.clone()));
        Running { shared, stop, task }
    }

    /// One step in lane 0, for stages with one lane.
    pub async fn step(&self, shared: &Shared) -> Result<Outcome, BatchError> {
        let errand = Errand { full: false, due: true, ..Errand::default() };
        batch::run_once(shared, Lane(0), errand).await.map(|(outcome, _)| outcome)
    }

    /// One event; its id.
    pub async fn event(&self, kind: &str, aggregate: &str, event_type: &str, payload: &str) -> i64 {
        sqlx::query_scalar(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ($1, $2, $3, $4::jsonb) RETURNING id",
        )
        .bind(kind)
        .bind(aggregate)
        .bind(event_type)
        .bind(payload)
        .fetch_one(&self.pair.legacy.pool)
        .await
        .expect("an event")
    }

    /// A user's event.
    pub async fn user(&self, id: i64, event_type: &str, name: &str, version: i32) -> i64 {
        let payload = serde_json::json!({"id": id, "name": name, "version": version}).to_string();
        self.event("User", &id.to_string(), event_type, &payload).await
    }

    /// The oracle's event.
    pub async fn thing(&self, aggregate: &str, version: i32) -> i64 {
        self.event("Thing", aggregate, "Happened", &format!("{{\"version\": {version}}}")).await
    }

    /// How many events have this status.
    pub async fn count(&self, status: &str) -> i64 {
        self.pair.legacy.value(&format!("SELECT count(*) FROM outbox WHERE status = '{status}'")).await
    }

    pub async fn status(&self, id: i64) -> String {
        self.pair.legacy.value(&format!("SELECT status FROM outbox WHERE id = {id}")).await
    }

    /// Until no event is pending or in retry.
    pub async fn drained(&self) {
        eventually(DEADLINE, "the outbox drains", || async {
            self.count("pending").await + self.count("retry").await == 0
        })
        .await;
    }

    /// The oracle: every event of `Thing` that the source calls processed was applied exactly once, in order, and no other.
    pub async fn oracle_agrees(&self) {
        let applied: Vec<(i64, String, i32)> =
            sqlx::query_as("SELECT event, aggregate, version FROM applied ORDER BY n")
                .fetch_all(&self.pair.new.pool)
                .await
                .expect("the oracle");
        let processed: Vec<i64> = sqlx::query_scalar(
            "SELECT id FROM outbox WHERE aggregate_type = 'Thing' AND status = 'processed' ORDER BY id",
        )
        .fetch_all(&self.pair.legacy.pool)
        .await
        .expect("the outbox");
        let mut once: Vec<i64> = applied.iter().map(|(event, _, _)| *event).collect();
        once.sort_unstable();
        assert_eq!(once, processed, "applied once and only once");
        let mut last = std::collections::HashMap::new();
        for (event, aggregate, version) in &applied {
            let before = last.insert(aggregate, (*event, *version));
            assert!(before.is_none_or(|b| b < (*event, *version)), "{aggregate}: {before:?} then {event}");
        }
    }

    /// Many of the oracle's events, round and round these aggregates, in one transaction.
    pub async fn things(&self, events: u32, aggregates: u32) {
        self.things_of("", events, aggregates).await;
    }

    /// As many events of the oracle, of aggregates whose ids begin so.
    pub async fn things_of(&self, prefix: &str, events: u32, aggregates: u32) {
        let sql = format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'Thing', '{prefix}' || i % {aggregates}, 'Happened', jsonb_build_object('version', i)
             FROM generate_series(1, {events}) i"
        );
        self.pair.legacy.run(&sql).await;
    }

    /// The oracle where databases went back in time: of the history that survived, every event of `Thing` that the source calls
    /// processed was applied once, none of the others was, in order; and what the outbox does not know is noted as divergent.
    pub async fn history_agrees(&self) {
        let applied: Vec<(uuid::Uuid, String)> = sqlx::query_as("SELECT event_id, aggregate FROM applied ORDER BY n")
            .fetch_all(&self.pair.new.pool)
            .await
            .expect("the oracle");
        let events: Vec<(uuid::Uuid, i64, String, Option<String>)> = sqlx::query_as(
            "SELECT event_id, id, status, last_error FROM outbox WHERE aggregate_type = 'Thing' ORDER BY id",
        )
        .fetch_all(&self.pair.legacy.pool)
        .await
        .expect("the outbox");
        let divergent: Vec<(uuid::Uuid, String)> =
            sqlx::query_as("SELECT event_id, aggregate_id FROM outbox_relay.divergent")
                .fetch_all(&self.pair.legacy.pool)
                .await
                .expect("divergent events");
        let diverged: HashSet<&str> = divergent.iter().map(|(_, aggregate)| aggregate.as_str()).collect();
        let noted: HashSet<uuid::Uuid> = divergent.iter().map(|(id, _)| *id).collect();
        let ids: HashMap<uuid::Uuid, i64> = events.iter().map(|(event, id, _, _)| (*event, *id)).collect();
        let mut once = HashSet::new();
        let mut last: HashMap<&str, i64> = HashMap::new();
        for (event, aggregate) in &applied {
            assert!(once.insert(*event), "{event} of {aggregate} was applied twice");
            match ids.get(event) {
                None => {
                    assert!(noted.contains(event), "{event} of {aggregate} is unknown to the outbox, and not noted")
                }
                Some(id) if !diverged.contains(aggregate.as_str()) => {
                    let before = last.insert(aggregate, *id);
                    assert!(before.is_none_or(|before| before < *id), "{aggregate}: {before:?}, then {id}");
                }
                Some(_) => {}
            }
        }
        for (event, id, status, error) in &events {
            let is_overtaken = status == "failed" && error.as_deref().is_some_and(|e| e.starts_with("overtaken"));
            assert!(status == "processed" || is_overtaken, "{id} is {status}: {error:?}");
            assert_eq!(once.contains(event), status == "processed", "{id} is {status}");
        }
    }

    /// One batch, or step of healing, of every lane, again and again until nothing more comes of it; why lanes stopped.
    pub async fn heal_by_hand(&self, shared: &Shared) -> Vec<String> {
        for _ in 0..1000 {
            let mut quiet = true;
            let mut stopped = Vec::new();
            for lane in 0..i32::from(self.config.relay.lanes) {
                let errand = Errand { full: false, due: true, ..Errand::default() };
                match batch::run_once(shared, Lane(lane), errand).await {
                    Ok((Outcome::Nothing | Outcome::Paused, _)) => {}
                    Err(BatchError::Stopped(why)) => stopped.push(why),
                    Ok(_) => quiet = false,
                    Err(error) => {
                        quiet = false;
                        eprintln!("lane {lane}: {error}");
                    }
                }
            }
            if quiet {
                return stopped;
            }
        }
        panic!("it never ends");
    }

    /// One batch of every lane, until nothing more comes of it.
    pub async fn drain_by_hand(&self, shared: &Shared) {
        for _ in 0..1000 {
            let mut nothing = true;
            for lane in 0..i32::from(self.config.relay.lanes) {
                let errand = Errand { full: true, due: true, ..Errand::default() };
                let (outcome, _) = batch::run_once(shared, Lane(lane), errand).await.expect("a batch");
                nothing &= matches!(outcome, Outcome::Nothing | Outcome::Paused);
            }
            if nothing {
                return;
            }
        }
        panic!("it never ends");
    }
}

/// A relay in this process.
pub struct Running {
    pub shared: Arc<Shared>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("the relay's task").expect("the relay");
    }
}
