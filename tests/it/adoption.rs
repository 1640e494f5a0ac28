//! An outbox that is there already: only what is missing is added, and its events arrive.

use outbox_relay::config::{Config, StatusWords};
use outbox_relay::connect;
use outbox_relay::init::{self, Choices, Existing, InitError};
use outbox_relay::metrics::Metrics;
use outbox_relay::relay::Shared;
use outbox_relay::relay::batch::{self, Errand, Outcome};

use crate::support::stage::{NEW_SCHEMA, oracle, users};
use crate::support::{Pair, pair};

struct Adoption {
    pair: Pair,
    config: Config,
}

impl Adoption {
    async fn of(table: &str, change: impl FnOnce(&mut Config)) -> Adoption {
        let pair = pair().await;
        pair.legacy.run(table).await;
        pair.new.run(NEW_SCHEMA).await;
        let mut config = Config::for_databases(&pair.legacy.url, &pair.new.url).unwrap();
        config.entities = vec![users(), oracle()];
        config.relay.lanes = 4;
        config.retry.attempts = 2;
        config.retry.initial = std::time::Duration::from_millis(1);
        config.retry.max = std::time::Duration::from_millis(1);
        change(&mut config);
        Adoption { pair, config }
    }

    async fn init(&self, existing: Option<Existing>) -> Result<(), InitError> {
        let choices = Choices { existing, ..Choices::default() };
        init::init(&self.config, &self.pair.legacy.pool, &self.pair.new.pool, choices).await
    }

    async fn plan(&self, existing: Option<Existing>) -> init::Plan {
        let choices = Choices { existing, ..Choices::default() };
        init::plan(&self.config, &self.pair.legacy.pool, &self.pair.new.pool, choices).await.unwrap()
    }

    async fn drain(&self) {
        let (source, target) = connect::open(&self.config).await.unwrap();
        let shared = Shared::new(self.config.clone(), source, target, Metrics::default()).await.unwrap();
        assert_eq!(shared.router().errors, vec![]);
        for _ in 0..200 {
            let mut nothing = true;
            for lane in 0..i32::from(self.config.relay.lanes) {
                let errand = Errand { full: true, due: true, ..Errand::default() };
                let (outcome, _) = batch::run_once(&shared, outbox_relay::event::Lane(lane), errand).await.unwrap();
                nothing &= matches!(outcome, Outcome::Nothing);
            }
            let retry = &self.config.legacy.status.retry;
            let sql = format!("SELECT count(*) FROM {} WHERE {}::text = '{retry}'", self.outbox(), self.status());
            if nothing && self.pair.legacy.value::<i64>(&sql).await == 0 {
                return;
            }
        }
        panic!("it never ends");
    }

    fn outbox(&self) -> String {
        format!("\"{}\"", self.config.legacy.outbox.table)
    }

    fn status(&self) -> String {
        format!("\"{}\"", self.config.legacy.columns.status)
    }

    async fn statuses(&self) -> String {
        let sql = format!(
            "SELECT string_agg(s || n, ' ' ORDER BY s) FROM (SELECT {}::text AS s, count(*) AS n FROM {} GROUP BY 1) c",
            self.status(),
            self.outbox()
        );
        self.pair.legacy.value(&sql).await
    }

    async fn users(&self) -> String {
        self.pair.new.value("SELECT coalesce(string_agg(id || name, ' ' ORDER BY id), '') FROM users").await
    }
}

/// As Debezium's outbox router has it.
pub(crate) const DEBEZIUM: &str = "CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype varchar(255) NOT NULL,
    aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb, \"timestamp\" timestamp DEFAULT now())";

pub(crate) fn debezium(config: &mut Config) {
    let c = &mut config.legacy.columns;
    c.id = "relay_id".into();
    c.event_id = "id".into();
    c.aggregate_type = "aggregatetype".into();
    c.aggregate_id = "aggregateid".into();
    c.event_type = "type".into();
    c.created_at = "timestamp".into();
}

fn debezium_rows(from: i64, to: i64) -> String {
    format!(
        "INSERT INTO outbox (aggregatetype, aggregateid, type, payload, \"timestamp\")
         SELECT 'User', (i % 5)::text, 'UserUpdated', jsonb_build_object('id', i % 5, 'name', 'v' || i, 'version', i),
                '2026-01-01'::timestamp + (i || ' minutes')::interval
         FROM generate_series({from}, {to}) i ORDER BY random()"
    )
}

#[tokio::test]
async fn a_table_as_debezium_has_it_is_adopted() {
    let adoption = Adoption::of(DEBEZIUM, debezium).await;
    let legacy = &adoption.pair.legacy;
    legacy.run(&debezium_rows(1, 100)).await;
    let filenode = "SELECT relfilenode::bigint FROM pg_class WHERE oid = 'outbox'::regclass";
    let before: i64 = legacy.value(filenode).await;
    let Err(InitError::Refused(text)) = adoption.init(None).await else { panic!("not refused") };
    assert!(text.contains("has 100 rows already") && text.contains("--existing"), "{text}");
    let plan = adoption.plan(Some(Existing::Pending)).await;
    let told =
        init::script(&plan, &init::grants(&adoption.config, &legacy.pool, &init::Roles::default()).await.unwrap());
    assert!(told.contains("in the order of timestamp") && told.contains("reads it as UTC"), "{told}");
    adoption.init(Some(Existing::Pending)).await.unwrap();
    assert_eq!(legacy.value::<i64>(filenode).await, before, "the table is not rewritten");
    assert!(adoption.plan(None).await.is_empty(), "{:?}", adoption.plan(None).await);
    // Existing rows in the order of their time; new ones after them.
    legacy.run(&debezium_rows(101, 105)).await;
    let ordered: bool = legacy.value("SELECT bool_and(ok) FROM (SELECT relay_id > lag(relay_id) OVER (ORDER BY \"timestamp\") IS NOT FALSE AS ok FROM outbox WHERE \"timestamp\" < '2026-01-01 01:41') o").await;
    assert!(ordered);
    let after: bool = legacy.value("SELECT min(relay_id) FILTER (WHERE \"timestamp\" > '2026-01-01 01:40:30') > max(relay_id) FILTER (WHERE \"timestamp\" < '2026-01-01 01:40:30') FROM outbox").await;
    assert!(after);
    adoption.drain().await;
    assert_eq!(adoption.statuses().await, "processed105");
    let versions: i64 = adoption.pair.new.value("SELECT count(*) FROM users WHERE version >= 96").await;
    assert_eq!(versions, 5, "the newest of each: {}", adoption.users().await);
    // A missing payload is the event's matter.
    legacy
        .run("INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('User', '9', 'UserCreated', NULL)")
        .await;
    adoption.drain().await;
    assert_eq!(adoption.statuses().await, "failed1 processed105");
    let shape: String = legacy.value("SELECT concat_ws(' ', attidentity, attnotnull) FROM pg_attribute WHERE attrelid = 'outbox'::regclass AND attname = 'relay_id'").await;
    assert_eq!(shape, "a t");
    let findings = outbox_relay::check::check(&adoption.config).await;
    assert!(!outbox_relay::check::any_problem(&findings), "{}", outbox_relay::check::render(&findings));
}

/// As tutorials write it for an ORM.
const TUTORIAL: &str = "CREATE TABLE \"outboxMessages\" (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), \"aggregateType\" text NOT NULL,
    \"aggregateId\" uuid NOT NULL, \"eventType\" varchar(40), payload text NOT NULL, \"createdAt\" timestamptz NOT NULL DEFAULT now(),
    \"processedAt\" timestamptz, status varchar(9) NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'processed', 'failed')), \"retryCount\" smallint DEFAULT 0)";

fn tutorial(config: &mut Config) {
    config.legacy.outbox.table = "outboxMessages".into();
    let c = &mut config.legacy.columns;
    c.id = "sequenceNumber".into();
    c.event_id = "id".into();
    c.aggregate_type = "aggregateType".into();
    c.aggregate_id = "aggregateId".into();
    c.event_type = "eventType".into();
    c.created_at = "createdAt".into();
    c.processed_at = "processedAt".into();
    c.attempts = "retryCount".into();
    c.next_attempt_at = "nextAttemptAt".into();
    c.last_error = "lastError".into();
    config.legacy.status.skipped = "skipped by hand".into();
}

fn message(n: i64, status: &str, payload: &str) -> String {
    format!(
        "INSERT INTO \"outboxMessages\" (\"aggregateType\", \"aggregateId\", \"eventType\", payload, status, \"createdAt\")
         VALUES ('User', lpad('{n}', 32, '0')::uuid, 'UserCreated', '{payload}', '{status}', '2026-01-01'::timestamptz + '{n} hours');"
    )
}

#[tokio::test]
async fn the_tutorials_table_is_adopted_with_its_own_words() {
    let adoption = Adoption::of(TUTORIAL, tutorial).await;
    let legacy = &adoption.pair.legacy;
    let user = |id: i64| format!(r#"{{"id": {id}, "name": "u", "version": 1}}"#);
    legacy
        .run(
            &[
                message(1, "processed", &user(1)),
                message(2, "pending", &user(2)),
                message(3, "failed", "{}"),
                message(4, "pending", &user(4)),
            ]
            .concat(),
        )
        .await;
    adoption.init(Some("before=2026-01-01T03:00:00Z".parse().unwrap())).await.unwrap();
    assert_eq!(adoption.statuses().await, "failed1 pending1 processed2");
    assert!(adoption.plan(None).await.is_empty(), "{:?}", adoption.plan(None).await);
    legacy
        .run(
            &[message(5, "pending", &user(5)), message(6, "pending", "not json"), message(6, "pending", &user(6))]
                .concat(),
        )
        .await;
    adoption.drain().await;
    assert_eq!(adoption.users().await, "4u 5u");
    assert_eq!(adoption.statuses().await, "failed2 held1 processed4");
    // The word that was too long, and none that nobody claims.
    legacy
        .run("UPDATE \"outboxMessages\" SET status = 'skipped by hand' WHERE status = 'failed' AND payload = '{}'")
        .await;
    let odd = legacy.pool.begin().await.unwrap();
    drop(odd);
    assert!(sqlx::query("UPDATE \"outboxMessages\" SET status = 'odd'").execute(&legacy.pool).await.is_err());
    let findings = outbox_relay::check::check(&adoption.config).await;
    assert!(!outbox_relay::check::any_problem(&findings), "{}", outbox_relay::check::render(&findings));
    // What init added is told by --remove, and stays.
    let removal = init::removal(&adoption.config, &legacy.pool, &adoption.pair.new.pool).await.unwrap();
    let columns: Vec<&str> = removal.columns.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(columns, ["headers", "nextAttemptAt", "lastError", "sequenceNumber"]);
}

/// Statuses as an enum of its own words, and narrower types than the contract's.
pub(crate) const ENUM: &str = "CREATE TYPE state AS ENUM ('NEW', 'DONE', 'ERROR');
    CREATE TABLE outbox (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, aggregate_type text, aggregate_id int, event_type text, payload json,
                         status state NOT NULL DEFAULT 'NEW', created_at timestamp DEFAULT now())";

pub(crate) fn words_of_enum(config: &mut Config) {
    config.legacy.status = StatusWords {
        pending: "NEW".into(),
        retry: "RETRY".into(),
        held: "HELD".into(),
        processed: "DONE".into(),
        failed: "ERROR".into(),
        skipped: "SKIPPED".into(),
    };
}

#[tokio::test]
async fn an_enum_of_status_words_gets_those_it_lacks() {
    let adoption = Adoption::of(ENUM, words_of_enum).await;
    let legacy = &adoption.pair.legacy;
    let insert = |id: i64, version: &str| {
        format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('User', {id}, 'UserCreated', '{{\"id\": {id}, \"name\": \"a\", \"version\": {version}}}');"
        )
    };
    legacy.run(&[insert(1, "1"), insert(2, "\"no\""), insert(2, "2")].concat()).await;
    legacy.run("INSERT INTO outbox (aggregate_type, event_type, payload) VALUES ('User', 'UserCreated', '{}')").await;
    adoption.init(Some(Existing::Pending)).await.unwrap();
    assert!(adoption.plan(None).await.is_empty(), "{:?}", adoption.plan(None).await);
    let ids: i64 = legacy.value("SELECT count(DISTINCT event_id) FROM outbox").await;
    assert_eq!(ids, 4, "each row has an event_id of its own");
    adoption.drain().await;
    assert_eq!(adoption.users().await, "1a");
    assert_eq!(adoption.statuses().await, "DONE1 ERROR1 HELD1 NEW1");
    let findings = outbox_relay::check::check(&adoption.config).await;
    let codes: Vec<&str> = findings.iter().map(|f| f.code.as_str()).collect();
    assert_eq!(codes, ["outbox.aggregate", "outbox.created_at"], "{}", outbox_relay::check::render(&findings));
}

#[tokio::test]
async fn rows_that_the_new_database_has_are_marked_without_being_written() {
    let adoption = Adoption::of(DEBEZIUM, debezium).await;
    let legacy = &adoption.pair.legacy;
    legacy.run(&debezium_rows(1, 50)).await;
    adoption.init(Some(Existing::Processed)).await.unwrap();
    legacy.run(&debezium_rows(51, 55)).await;
    // A second run does not take what came since for old.
    adoption.init(Some(Existing::Processed)).await.unwrap();
    assert_eq!(adoption.statuses().await, "pending5 processed50");
    adoption.drain().await;
    assert_eq!(adoption.pair.new.value::<i64>("SELECT count(*) FROM users WHERE version > 50").await, 5);
}

#[tokio::test]
async fn an_adoption_that_was_interrupted_is_finished_by_the_next_run() {
    // Every step but the first n, for each n: as a run that ended there leaves it.
    let steps = {
        let adoption = Adoption::of(DEBEZIUM, debezium).await;
        adoption.pair.legacy.run(&debezium_rows(1, 20)).await;
        adoption.plan(Some(Existing::Pending)).await.source.len()
    };
    for done in 1..steps {
        let adoption = Adoption::of(DEBEZIUM, debezium).await;
        let legacy = &adoption.pair.legacy;
        legacy.run(&debezium_rows(1, 20)).await;
        for step in &adoption.plan(Some(Existing::Pending)).await.source[..done] {
            legacy.run(&step.sql).await;
        }
        legacy.run(&debezium_rows(21, 25)).await;
        adoption.init(Some(Existing::Pending)).await.unwrap_or_else(|e| panic!("after {done} steps: {e}"));
        assert!(adoption.plan(None).await.is_empty(), "after {done} steps: {:?}", adoption.plan(None).await);
        adoption.drain().await;
        assert_eq!(adoption.statuses().await, "processed25", "after {done} steps");
        let newest: i64 = adoption.pair.new.value("SELECT count(*) FROM users WHERE version > 20").await;
        assert_eq!(newest, 5, "after {done} steps: {}", adoption.users().await);
    }
}

#[tokio::test]
async fn what_cannot_be_adopted_is_refused_with_the_remedy() {
    for (table, wanted) in [
        (DEBEZIUM, "has no column \"aggregate_type\""),
        (
            "CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload text)",
            "event_id = \"id\"",
        ),
        (
            "CREATE TABLE outbox (id bigint, aggregate_type text, aggregate_id text, event_type text, payload text)",
            "SET NOT NULL",
        ),
        (
            "CREATE TABLE outbox (id bigserial, aggregate_type text, aggregate_id text, event_type text, payload bytea)",
            "payload must be JSON",
        ),
        (
            "CREATE TYPE kind AS ENUM ('User'); CREATE TABLE outbox (id bigserial, aggregate_type kind, aggregate_id text, event_type text, payload text)",
            "TYPE text",
        ),
        (
            "CREATE TABLE outbox (id bigserial, aggregate_type text, aggregate_id text, event_type text, payload text, status int)",
            "status = \"relay_status\"",
        ),
        (
            "CREATE TABLE outbox (id bigserial, aggregate_type text, aggregate_id text, event_type text, payload text, event_id text)",
            "event_id = \"relay_event_id\"",
        ),
        (
            "CREATE TABLE outbox (id bigserial, aggregate_type text, aggregate_id text, event_type text, payload text) PARTITION BY HASH (id)",
            "partitioned",
        ),
        ("CREATE VIEW outbox AS SELECT 1 AS id", "not a table"),
    ] {
        let adoption = Adoption::of(table, |_| {}).await;
        let Err(InitError::Refused(text)) = adoption.init(None).await else { panic!("not refused: {table}") };
        assert!(text.contains(wanted), "{table}: {text}");
    }
}
