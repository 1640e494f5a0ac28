//! Who sees what of payloads, by every way that leads out.

use std::sync::Arc;

use outbox_relay::config::{Config, Role};
use outbox_relay::redact::{Column, Rules};
use serde_json::{Value, json};

use crate::admin::{Api, strict, tokens};
use crate::cli::{folder_of, outbox_relay};
use crate::support::copying::{self, copy};
use crate::support::stage::Stage;
use crate::support::{Database, pair};
use crate::verify::verified;

const HIDDEN: &str = "[redacted]";
const BIG: &str = "1234567890123456789012345678901234567890.10";

/// Gives up at the first failure, and hides these paths.
async fn hiding(paths: &[&str]) -> Stage {
    let mut stage = strict().await;
    stage.config.redact = rules(&stage.config, paths, false);
    stage
}

fn rules(config: &Config, paths: &[&str], payloads_for_readers: bool) -> Arc<Rules> {
    let paths = paths.iter().map(|path| path.parse().unwrap()).collect();
    Arc::new(Rules { paths, payloads_for_readers, ..Rules::clone(&config.redact) })
}

/// A failed event whose payload, headers, error and DETAIL all hold `secret`.
async fn refused(stage: &Stage, secret: &str) -> i64 {
    let trigger = "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE EXCEPTION 'no place for %', NEW.name USING DETAIL = 'it was ' || NEW.name; END $$;
         CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION refuse()";
    stage.pair.new.run(trigger).await;
    let payload = format!(r#"{{"id": 1, "name": "{secret}", "version": 1, "n": {BIG}}}"#);
    let id = stage.event("User", "1", "UserCreated", &payload).await;
    let headers = format!(r#"UPDATE outbox SET headers = '{{"who": "{secret}"}}' WHERE id = {id}"#);
    stage.pair.legacy.run(&headers).await;
    let shared = stage.shared().await;
    stage.drain_by_hand(&shared).await;
    assert_eq!(stage.status(id).await, "failed");
    id
}

/// Every answer that tells of events, as this client gets it.
async fn all_answers(client: &crate::admin::Client, id: i64) -> Vec<String> {
    let mut answers = Vec::new();
    for path in [
        &format!("/v1/events/{id}"),
        "/v1/events",
        "/v1/events?status=failed",
        "/v1/failures",
        "/v1/audit",
        "/readyz",
        "/metrics",
        "/v1/backlog",
        "/v1/pause",
    ] {
        let answer = client.get(path).await;
        assert!([200, 503].contains(&answer.status), "{path}: {answer:?}");
        answers.push(answer.text);
    }
    answers
}

#[tokio::test]
async fn a_read_token_shows_no_value_of_any_payload_unless_that_is_allowed() {
    let stage = strict().await;
    let secret = "ada@example.org";
    let id = refused(&stage, secret).await;
    let api = Api::start(&stage.config, tokens(), Some(stage.shared().await)).await;
    let (ops, board) = (api.client.with(Some("all-of-it")), api.client.with(Some("only-look")));
    for answer in all_answers(&board, id).await {
        assert!(!answer.contains(secret) && !answer.contains(BIG), "{answer}");
    }
    let event = board.get(&format!("/v1/events/{id}")).await.ok();
    assert_eq!((&event["payload"], &event["headers"]), (&json!(HIDDEN), &json!(HIDDEN)));
    assert_eq!((&event["failure"]["message"], &event["failure"]["detail"]), (&json!(HIDDEN), &json!(HIDDEN)));
    assert_eq!((&event["last_error"], &event["history"][0]["code"]), (&json!("P0001: [redacted]"), &json!("P0001")));
    assert_eq!(event["aggregate_id"], "1");

    let event = ops.get(&format!("/v1/events/{id}")).await;
    assert!(event.text.contains(BIG), "{event:?}");
    let event = event.ok();
    assert_eq!((&event["payload"]["name"], &event["headers"]["who"]), (&json!(secret), &json!(secret)));
    assert_eq!(event["failure"]["detail"], format!("it was {secret}"));
    for page in [format!("/events/{id}"), "/failures".to_owned(), "/events?status=failed".to_owned(), "/".to_owned()] {
        let (admins, readers) = (ops.get(&page).await, board.get(&page).await);
        assert_eq!((admins.status, readers.status), (200, 200), "{page}");
        assert!(!readers.text.contains(secret), "{page}");
        assert!(page == "/" || admins.text.contains(secret), "{page}");
    }
    api.stop().await;

    let allowed = Config { redact: rules(&stage.config, &[], true), ..stage.config.clone() };
    let api = Api::start(&allowed, tokens(), Some(stage.shared().await)).await;
    let event = api.client.with(Some("only-look")).get(&format!("/v1/events/{id}")).await.ok();
    assert_eq!((&event["payload"]["name"], &event["headers"]["who"]), (&json!(secret), &json!(secret)));
    api.stop().await;
}

#[tokio::test]
async fn what_is_configured_as_hidden_nobody_is_shown_and_the_rest_stays_as_it_was_written() {
    let stage = hiding(&["User: $.name"]).await;
    let secret = "ada@example.org";
    let id = refused(&stage, secret).await;
    let other = stage.event("Thing", "1", "Happened", r#"{"version": 1, "name": "shown"}"#).await;
    let readers = Config { redact: rules(&stage.config, &["User: $.name"], true), ..stage.config.clone() };
    for config in [&stage.config, &readers] {
        let api = Api::start(config, tokens(), Some(stage.shared().await)).await;
        for token in ["all-of-it", "only-look"] {
            let client = api.client.with(Some(token));
            for answer in all_answers(&client, id).await {
                // Of its headers nothing is configured.
                assert!(!answer.replace(r#"{"who": "ada@example.org"}"#, "").contains(secret), "{token}: {answer}");
            }
        }
        let ops = api.client.with(Some("all-of-it"));
        let event = ops.get(&format!("/v1/events/{id}")).await;
        assert!(event.text.contains(&format!(r#""n": {BIG}"#)), "{event:?}");
        let event = event.ok();
        assert_eq!((&event["payload"]["name"], &event["payload"]["id"]), (&json!(HIDDEN), &json!(1)));
        assert_eq!((&event["failure"]["message"], &event["failure"]["detail"]), (&json!(HIDDEN), &json!(HIDDEN)));
        assert_eq!(ops.get(&format!("/v1/events/{other}")).await.ok()["payload"]["name"], "shown");
        let changed = ops.post(&format!("/v1/events/{id}/replay"), json!({"reason": "x"})).await;
        assert!(changed.status == 200 && !changed.ok()["payload"].to_string().contains(secret), "{changed:?}");
        api.stop().await;
        let shared = stage.shared().await;
        stage.drain_by_hand(&shared).await;
    }
}

#[tokio::test]
async fn the_reason_of_a_stop_quotes_no_value() {
    let stage = strict().await;
    stage.pair.new.run("ALTER TABLE users ADD CONSTRAINT c CHECK (version < 0)").await;
    let shared = stage.shared().await;
    for id in 1..=30 {
        let payload = json!({"id": id, "name": "a", "version": format!("secret{id}")}).to_string();
        stage.event("User", &id.to_string(), "UserCreated", &payload).await;
    }
    stage.drain_by_hand(&shared).await;
    let report = shared.stops.report();
    assert_eq!(report.len(), 1, "a type that nothing passes of is stopped");
    let message = &report[0].stop.message;
    assert!(message.contains("invalid input syntax") && !message.contains("secret"), "{message}");
}

#[tokio::test]
async fn nothing_is_shown_to_those_whose_role_was_not_asked() {
    let stage = strict().await;
    let id = refused(&stage, "ada@example.org").await;
    let operator = outbox_relay::operator::Operator::new(&stage.config).unwrap();
    let event = operator.event(&id.to_string().parse().unwrap()).await.unwrap();
    let text = serde_json::to_string(&event).unwrap();
    assert!(!text.contains("ada@"), "{text}");
    let shown: Value =
        serde_json::to_value(operator.seen_by(Role::Admin).event(&id.to_string().parse().unwrap()).await.unwrap())
            .unwrap();
    assert_eq!(shown["payload"]["name"], "ada@example.org");
}

/// As the stage's, with what nobody is shown.
const HIDING: &str = "
[[entity]]
aggregate_type = 'User'
table = 'users'
key = ['id']
mapping = 'user.sql'
legacy = { table = 'public.users', key = ['id'] }
events = { UserCreated = 'upsert', UserUpdated = 'upsert', UserDeleted = 'delete' }
[redact]
columns = ['users.name']
";

/// The tables of the relay's own in which a text stands.
async fn kept(database: &Database, text: &str) -> Vec<String> {
    let tables = "SELECT tablename::text FROM pg_tables WHERE schemaname = 'outbox_relay'";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&database.pool).await.unwrap();
    assert!(tables.len() > 3, "{tables:?}");
    let mut having = Vec::new();
    for table in tables {
        let holds = format!("SELECT count(*) FROM outbox_relay.\"{table}\" AS t WHERE t::text LIKE '%{text}%'");
        if database.value::<i64>(&holds).await > 0 {
            having.push(table);
        }
    }
    having
}

#[tokio::test]
async fn a_hidden_column_is_neither_told_nor_kept_by_whatever_compares_and_repairs() {
    let mut stage = copying::stage(pair().await, 20, |_| {}).await;
    stage.pair.legacy.run("UPDATE users SET name = 'a legacy secret' WHERE id IN (1, 3)").await;
    assert!(copy(&stage).await.is_whole());
    let folder = folder_of(&stage, HIDING);
    let mapping = stage.config.entities[0].mapping.clone().unwrap().text;
    std::fs::write(folder.path().join("user.sql"), mapping).unwrap();
    let wrong = "UPDATE users SET name = 'a new secret', version = 77 WHERE id = 1; DELETE FROM users WHERE id = 3; DELETE FROM gone;
         INSERT INTO users VALUES (1000, 'a new secret', 77)";
    let last = "SELECT max(id) FROM outbox_relay.verify_report";
    let said = |command: &str, more: &[&str]| {
        let output = outbox_relay(&folder).args(command.split(' ')).args(more).output().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        assert!(!said.contains("secret"), "{command} {more:?}: {said}");
        said
    };
    for more in [&[][..], &["--json"]] {
        stage.pair.new.run(wrong).await;
        let values = |said: &str, what: &str| {
            // Of the same row, the columns that are not hidden are told.
            assert!(said.contains(HIDDEN) && said.contains("77"), "{what} {more:?}: {said}");
        };
        values(&said("verify", more), "verify");
        let report: i64 = stage.pair.new.value(last).await;
        values(&said(&format!("verify --report {report}"), more), "its report");
        values(&said("verify --sample 100", more), "a sample");
        values(&said("repair", more), "a dry run");
        values(&said("resync users --keys 1", more), "a resync");
        values(&said("repair --apply --yes --reason x", more), "a repair");
        assert!(said("verify", more).contains(if more.is_empty() { "Equal." } else { "\"outcome\": \"equal\"" }));
    }
    for database in [&stage.pair.legacy, &stage.pair.new] {
        assert_eq!(kept(database, "secret").await, Vec::<String>::new());
    }
    for table in ["verify_difference", "repaired"] {
        assert!(kept(&stage.pair.new, "redacted").await.contains(&table.to_owned()), "{table}");
    }
    let repaired: String = stage
        .pair
        .new
        .value(
            "SELECT string_agg(DISTINCT concat_ws(' ', action, key->>0, before->>'name', before->>'version', '->', after->>'name', after->>'version'), ', ')
             FROM outbox_relay.repaired",
        )
        .await;
    let expected = ["delete 1000 [redacted] 77 ->", "write 1 [redacted] 77 -> [redacted] 1", "write 3 -> [redacted] 1"];
    assert_eq!(repaired, expected.join(", "));

    // And of what was kept before anybody said so.
    stage.pair.new.run(wrong).await;
    let before = verified(&stage).await.id;
    crate::repair::repaired(&stage, None, true).await.unwrap();
    assert!(kept(&stage.pair.new, "secret").await.len() > 1, "or the rest shows nothing");
    for more in [&[][..], &["--json"]] {
        said(&format!("verify --report {before}"), more);
    }
    let column = Column { schema: "public".into(), table: "users".into(), column: Some("name".into()) };
    for payloads_for_readers in [false, true] {
        let rules = Rules { columns: vec![column.clone()], payloads_for_readers, ..Rules::default() };
        stage.config.redact = Arc::new(rules);
        let api = Api::start(&stage.config, tokens(), Some(stage.shared().await)).await;
        for (token, sees) in [("all-of-it", true), ("only-look", payloads_for_readers)] {
            let client = api.client.with(Some(token));
            let report = format!("/v1/verify/reports/{before}");
            for path in [&report, "/v1/repairs", "/v1/jobs", "/v1/migration", "/v1/audit", "/"] {
                let answer = client.get(path).await;
                assert!(answer.status == 200 && !answer.text.contains("secret"), "{token} {path}: {}", answer.text);
            }
            let version = |shown: &str| if sees { json!(shown) } else { json!(HIDDEN) };
            let (report, repairs) = (client.get(&report).await.ok(), client.get("/v1/repairs").await.ok());
            let of = |items: &Value| items.as_array().unwrap().iter().find(|of| of["key"][0] == "1").unwrap().clone();
            let expected = json!([
                {"column": "name", "legacy": HIDDEN, "new": HIDDEN},
                {"column": "version", "legacy": version("1"), "new": version("77")},
            ]);
            assert_eq!(of(&report["differences"])["columns"], expected, "{token}");
            let row =
                |version: i32| if sees { json!({"id": 1, "name": HIDDEN, "version": version}) } else { json!(HIDDEN) };
            let changed = of(&repairs["items"]);
            assert_eq!((&changed["before"], &changed["after"]), (&row(77), &row(1)), "{token}");
        }
        api.stop().await;
    }
}
