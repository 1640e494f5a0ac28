//! Capture: every change of a row is an event, in the order of the changes, and the application notices nothing.

use std::time::Duration;

use outbox_relay::capture::{self, State};
use outbox_relay::config::{Action, Capture, Config, DeletePayload, Entity, RowsFrom, TableName};
use outbox_relay::connect;
use outbox_relay::init;
use outbox_relay::job::Who;
use outbox_relay::source::Source;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::copying::{self, agree, install};
use crate::support::stage::Stage;
use crate::support::{DEADLINE, eventually, pair};

async fn source(stage: &Stage) -> Source {
    connect::open(&stage.config).await.unwrap().0
}

async fn events(stage: &Stage) -> Vec<(String, String, String)> {
    sqlx::query_as("SELECT event_type::text, aggregate_id::text, payload::text FROM outbox ORDER BY id")
        .fetch_all(&stage.pair.legacy.pool)
        .await
        .unwrap()
}

async fn state(stage: &Stage) -> State {
    capture::status(&stage.config, &stage.config.entities[0], &source(stage).await).await.unwrap().state
}

async fn refusal(stage: &Stage) -> String {
    let source = source(stage).await;
    capture::install(&stage.config, &stage.config.entities[0], &source, &Who::default()).await.unwrap_err().to_string()
}

#[tokio::test]
async fn every_change_of_a_row_is_an_event_and_no_other_statement_is() {
    let stage = copying::stage(pair().await, 0, |_| {}).await;
    install(&stage).await;
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO users VALUES (1, 'one', 1), (2, 'it''s \"two\" \\', 1);
             UPDATE users SET name = name;
             UPDATE users SET version = 2 WHERE id = 1;
             UPDATE users SET id = 3 WHERE id = 2;
             DELETE FROM users WHERE id = 3;
             BEGIN; SET LOCAL outbox_relay.applying = 'on'; UPDATE users SET version = 9; COMMIT;
             BEGIN; DELETE FROM users; ROLLBACK;
             INSERT INTO users VALUES (1, 'clash', 1) ON CONFLICT (id) DO UPDATE SET version = 10",
        )
        .await;
    let expected = [
        ("UserCreated", "1", r#"{"id": 1, "name": "one", "noise": null, "version": 1}"#),
        ("UserCreated", "2", r#"{"id": 2, "name": "it's \"two\" \\", "noise": null, "version": 1}"#),
        ("UserUpdated", "1", r#"{"id": 1, "name": "one", "noise": null, "version": 2}"#),
        ("UserDeleted", "2", r#"{"id": 2}"#),
        ("UserCreated", "3", r#"{"id": 3, "name": "it's \"two\" \\", "noise": null, "version": 1}"#),
        ("UserDeleted", "3", r#"{"id": 3}"#),
        ("UserUpdated", "1", r#"{"id": 1, "name": "one", "noise": null, "version": 10}"#),
    ];
    let found = events(&stage).await;
    let found: Vec<_> =
        found.iter().map(|(kind, id, payload)| (kind.as_str(), id.as_str(), payload.as_str())).collect();
    assert_eq!(found, expected);
    // It is what the relay takes.
    let relay = stage.start().await;
    stage.drained().await;
    relay.stop().await;
    agree(&stage).await;
}

#[tokio::test]
async fn what_the_applications_triggers_and_cascades_do_to_a_row_comes_after_the_change_that_they_follow() {
    let stage = copying::stage(pair().await, 0, |_| {}).await;
    stage
        .pair
        .legacy
        .run(
            "ALTER TABLE users ADD boss bigint REFERENCES users ON UPDATE CASCADE;
             CREATE FUNCTION after_user_insert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 UPDATE users SET version = 2 WHERE id = NEW.id AND name <> 'gone';
                 DELETE FROM users WHERE id = NEW.id AND name = 'gone';
                 RETURN NULL;
             END $$;
             CREATE TRIGGER after_user_insert AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION after_user_insert();",
        )
        .await;
    install(&stage).await;
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO users VALUES (1, 'one', 1); INSERT INTO users VALUES (2, 'gone', 1);
             INSERT INTO users VALUES (3, 'three', 1, NULL, 3)",
        )
        .await;
    stage.pair.legacy.run("UPDATE users SET id = 4 WHERE id = 3").await;
    let found: Vec<_> = events(&stage).await.into_iter().map(|(kind, id, _)| format!("{kind} {id}")).collect();
    let expected = [
        "UserCreated 1",
        "UserUpdated 1",
        "UserCreated 2",
        "UserDeleted 2",
        "UserCreated 3",
        "UserUpdated 3",
        "UserDeleted 3",
        "UserCreated 4",
        "UserUpdated 4",
    ];
    assert_eq!(found, expected);
    let relay = stage.start().await;
    stage.drained().await;
    relay.stop().await;
    agree(&stage).await;
}

/// A cascade's triggers fire behind those of the row that went, whatever they are called.
#[tokio::test]
async fn rows_that_a_delete_takes_along_go_with_it_where_the_new_foreign_key_cascades_too() {
    const ORDERS: &str = "CREATE TABLE orders (id int PRIMARY KEY);
                          CREATE TABLE lines (id int PRIMARY KEY, order_id int NOT NULL REFERENCES orders ON DELETE CASCADE)";
    let pair = pair().await;
    for database in [&pair.legacy, &pair.new] {
        database.run(ORDERS).await;
    }
    let stage = Stage::on(pair, |config| {
        let of = |name: &str, id: &str, word: &str| {
            let table = TableName { schema: "public".into(), table: name.into() };
            let mut entity = Entity::new("Order", table.clone(), &["id"]).made_of(table, "id");
            entity.name = name.to_owned();
            let legacy = entity.legacy.as_mut().unwrap();
            legacy.aggregate_id = format!("{id}::text");
            let called = |what: &str| format!("{word}{what}");
            (legacy.capture.insert, legacy.capture.update, legacy.capture.delete) =
                (called("Created"), called("Updated"), called("Deleted"));
            let entity = entity.on(&called("Created"), Action::Upsert).on(&called("Updated"), Action::Upsert);
            entity.on(&called("Deleted"), Action::Delete)
        };
        config.entities = vec![of("orders", "id", "Order"), of("lines", "order_id", "Line")];
    })
    .await;
    let source = source(&stage).await;
    for entity in &stage.config.entities {
        assert!(capture::install(&stage.config, entity, &source, &Who::default()).await.unwrap());
    }
    let relay = stage.start().await;
    stage.pair.legacy.run("INSERT INTO orders VALUES (1), (2); INSERT INTO lines VALUES (1, 1), (2, 1), (3, 2)").await;
    stage.drained().await;
    stage.pair.legacy.run("DELETE FROM orders WHERE id = 1").await;
    stage.drained().await;
    relay.stop().await;
    let kinds: Vec<String> = events(&stage).await.into_iter().skip(5).map(|(kind, ..)| kind).collect();
    assert_eq!(kinds, ["OrderDeleted", "LineDeleted", "LineDeleted"]);
    assert_eq!(stage.count("processed").await, 8);
    assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM orders, lines").await, 1);
}

/// By the name that the trigger of rows has, and the one that it had before.
async fn as_before(stage: &Stage) {
    let name: String = stage
        .pair
        .legacy
        .value(
            "SELECT tgname::text FROM pg_trigger WHERE tgrelid = 'users'::regclass AND starts_with(tgname::text, '!')",
        )
        .await;
    let before = name.trim_start_matches('!');
    stage.pair.legacy.run(&format!("ALTER TRIGGER \"{name}\" ON users RENAME TO \"{before}\"")).await;
}

#[tokio::test]
async fn a_trigger_that_an_earlier_version_installed_is_outdated_and_replaced_or_taken_away() {
    let stage = copying::stage(pair().await, 1, |_| {}).await;
    let triggers =
        "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'users'::regclass AND tgname::text LIKE '%outbox_relay_%'";
    install(&stage).await;
    as_before(&stage).await;
    assert_eq!(state(&stage).await, State::Outdated);
    install(&stage).await;
    assert_eq!(state(&stage).await, State::Installed);
    assert_eq!(stage.pair.legacy.value::<i64>(triggers).await, 2);
    stage.pair.legacy.run("UPDATE users SET version = 2").await;
    assert_eq!(events(&stage).await.len(), 1);
    as_before(&stage).await;
    stage.pair.legacy.run(&capture::print(&stage.config, &stage.config.entities[0], false).unwrap()).await;
    assert_eq!(state(&stage).await, State::Installed);
    as_before(&stage).await;
    let source = source(&stage).await;
    assert!(capture::remove(&stage.config, &stage.config.entities[0], &source, &Who::default()).await.unwrap());
    assert_eq!(state(&stage).await, State::Absent);
    assert_eq!(stage.pair.legacy.value::<i64>(triggers).await, 0);
}

#[tokio::test]
async fn a_key_that_is_only_written_otherwise_leaves_no_row_under_its_old_text() {
    let pair = pair().await;
    for (database, of) in [(&pair.legacy, "numeric"), (&pair.new, "text")] {
        database.run(&format!("CREATE TABLE codes (code {of} PRIMARY KEY, n int NOT NULL)")).await;
    }
    let stage = Stage::on(pair, |config| {
        let table = TableName { schema: "public".into(), table: "codes".into() };
        let mut codes = Entity::new("Code", table.clone(), &["code"]).made_of(table, "code");
        for (name, action) in [("Created", Action::Upsert), ("Updated", Action::Upsert), ("Deleted", Action::Delete)] {
            codes = codes.on(&format!("Code{name}"), action);
        }
        config.entities[0] = codes;
    })
    .await;
    install(&stage).await;
    let relay = stage.start().await;
    stage.pair.legacy.run("INSERT INTO codes VALUES (1.5, 1)").await;
    stage.drained().await;
    stage.pair.legacy.run("UPDATE codes SET code = 1.50").await;
    stage.drained().await;
    relay.stop().await;
    let found: Vec<_> =
        events(&stage).await.into_iter().map(|(kind, id, payload)| format!("{kind} {id} {payload}")).collect();
    let expected = [
        r#"CodeCreated 1.5 {"n": 1, "code": 1.5}"#,
        // Of one aggregate with what comes, for where both are one row.
        r#"CodeDeleted 1.50 {"code": 1.5}"#,
        r#"CodeCreated 1.50 {"n": 1, "code": 1.50}"#,
    ];
    assert_eq!(found, expected);
    let codes: String = stage.pair.new.value("SELECT string_agg(code, ', ' ORDER BY code) FROM codes").await;
    assert_eq!(codes, "1.50");
}

#[tokio::test]
async fn a_row_whose_aggregate_is_null_is_written_as_before_and_its_event_has_the_keys_text() {
    let noise = |config: &mut Config| config.entities[0].legacy.as_mut().unwrap().aggregate_id = "noise".into();
    let stage = copying::stage(pair().await, 0, noise).await;
    install(&stage).await;
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO users VALUES (7, 'seven', 1, NULL); UPDATE users SET version = 2;
             UPDATE users SET noise = 'x'; UPDATE users SET noise = NULL, id = 8; DELETE FROM users",
        )
        .await;
    let found: Vec<_> = events(&stage).await.into_iter().map(|(kind, id, _)| format!("{kind} {id}")).collect();
    let expected =
        ["UserCreated 7", "UserUpdated 7", "UserUpdated x", "UserDeleted x", "UserCreated 8", "UserDeleted 8"];
    assert_eq!(found, expected);
    // A copy, which holds the lane of a row's aggregate, tells of it.
    stage.pair.legacy.run("INSERT INTO users VALUES (9, 'nine', 1, NULL)").await;
    let copied = copying::copy(&stage).await.copies.remove(0);
    assert_eq!((copied.rows, copied.refused), (0, 1), "{copied:?}");
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let why = target.left_rows("users", None, 10).await.unwrap().remove(0).message.unwrap();
    assert!(why.contains("NULL") && why.contains("coalesce"), "{why}");
}

#[tokio::test]
async fn what_is_done_to_one_partition_as_a_whole_is_not_captured() {
    let pair = pair().await;
    pair.legacy
        .run(
            "CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, version int NOT NULL) PARTITION BY RANGE (id);
             CREATE TABLE users_0 PARTITION OF users FOR VALUES FROM (0) TO (10);
             CREATE TABLE users_1 PARTITION OF users FOR VALUES FROM (10) TO (20);
             CREATE TABLE users_2 PARTITION OF users FOR VALUES FROM (20) TO (30);",
        )
        .await;
    let stage = Stage::on(pair, copying::copied).await;
    install(&stage).await;
    let legacy = &stage.pair.legacy;
    legacy.run("INSERT INTO users VALUES (1, 'one', 1), (11, 'eleven', 1), (21, 'more', 1); DELETE FROM users_0").await;
    assert_eq!(events(&stage).await.len(), 4);
    assert!(legacy.pool.execute("TRUNCATE users").await.unwrap_err().to_string().contains("is refused"));
    legacy.run("TRUNCATE users_1; ALTER TABLE users DETACH PARTITION users_2; DROP TABLE users_2").await;
    assert_eq!(events(&stage).await.len(), 4);
}

#[tokio::test]
async fn events_are_called_as_is_configured_and_the_relay_takes_them() {
    let stage = copying::stage(pair().await, 0, |config| {
        let users = &mut config.entities[0];
        let names = ["person.came", "person.changed", "person.left"].map(str::to_owned);
        let [insert, update, delete] = names.clone();
        let capture = &mut users.legacy.as_mut().unwrap().capture;
        *capture = Capture { insert, update, delete, ..capture.clone() };
        users.events = names.into_iter().zip([Action::Upsert, Action::Upsert, Action::Delete]).collect();
    })
    .await;
    install(&stage).await;
    let relay = stage.start().await;
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO users VALUES (1, 'one', 1), (2, 'two', 1), (3, 'three', 1);
             UPDATE users SET name = 'first', version = 2 WHERE id = 1;
             DELETE FROM users WHERE id = 2;
             UPDATE users SET id = 4 WHERE id = 3",
        )
        .await;
    let found = events(&stage).await;
    let found: Vec<_> = found.iter().map(|(kind, id, _)| (kind.as_str(), id.as_str())).collect();
    let expected = [
        ("person.came", "1"),
        ("person.came", "2"),
        ("person.came", "3"),
        ("person.changed", "1"),
        ("person.left", "2"),
        ("person.left", "3"),
        ("person.came", "4"),
    ];
    assert_eq!(found, expected);
    stage.drained().await;
    relay.stop().await;
    assert_eq!(stage.count("processed").await, 7);
    assert_eq!(copying::rows(&stage.pair.new).await, [(1, "first".into(), 2), (4, "three".into(), 1)]);
    agree(&stage).await;
}

/// Of a key of two columns: which events there are, and what they bring, where either column changes and two rows change places.
#[tokio::test]
async fn a_row_whose_key_of_two_columns_changes_goes_and_comes_and_both_databases_have_the_same_rows() {
    const TABLE: &str = "CREATE TABLE lines (tenant text, line uuid, amount numeric, PRIMARY KEY (tenant, line))";
    let pair = pair().await;
    for database in [&pair.legacy, &pair.new] {
        database.run(TABLE).await;
    }
    let stage = Stage::on(pair, |config| {
        let table = TableName { schema: "public".into(), table: "lines".into() };
        let mut lines = Entity::new("Line", table.clone(), &["tenant", "line"]).made_of(table, "tenant");
        let rows = lines.legacy.as_mut().unwrap();
        (rows.key, rows.aggregate_id) = (lines.key.clone(), "tenant || '/' || line".into());
        for (name, action) in [("Created", Action::Upsert), ("Updated", Action::Upsert), ("Deleted", Action::Delete)] {
            lines = lines.on(&format!("Line{name}"), action);
        }
        config.entities[0] = lines;
    })
    .await;
    install(&stage).await;
    let relay = stage.start().await;
    let line = |n: u32| format!("00000000-0000-0000-0000-00000000000{n}");
    let (one, two, three) = (line(1), line(2), line(3));
    stage
        .pair
        .legacy
        .run(&format!(
            "INSERT INTO lines VALUES ('it''s \"a\"', '{one}', 1.50), ('b', '{two}', 2);
             UPDATE lines SET amount = 3 WHERE tenant = 'b';
             UPDATE lines SET tenant = 'c' WHERE tenant = 'b';
             UPDATE lines SET line = '{three}' WHERE line = '{one}'"
        ))
        .await;
    let a = r#"it's "a""#;
    let key = |tenant: &str, line: &str| json!({"tenant": tenant, "line": line});
    let row = |tenant: &str, line: &str, amount: &str| format!("{tenant} {line} {amount}");
    let found: Vec<(String, String, Value)> = events(&stage)
        .await
        .into_iter()
        .map(|(kind, id, payload)| (kind, id, serde_json::from_str(&payload).unwrap()))
        .collect();
    let of = |kind: &str, tenant: &str, line: &str, amount: Option<Value>| {
        let mut payload = key(tenant, line);
        if let Some(amount) = amount {
            payload["amount"] = amount;
        }
        (kind.to_owned(), format!("{tenant}/{line}"), payload)
    };
    let expected = [
        of("LineCreated", a, &one, Some(json!(1.50))),
        of("LineCreated", "b", &two, Some(json!(2))),
        of("LineUpdated", "b", &two, Some(json!(3))),
        of("LineDeleted", "b", &two, None),
        of("LineCreated", "c", &two, Some(json!(3))),
        of("LineDeleted", a, &one, None),
        of("LineCreated", a, &three, Some(json!(1.50))),
    ];
    assert_eq!(found, expected);
    let rows = "SELECT string_agg(concat_ws(' ', tenant, line, amount), ', ' ORDER BY tenant, line) FROM lines";
    stage.drained().await;
    let (legacy, new): (String, String) = (stage.pair.legacy.value(rows).await, stage.pair.new.value(rows).await);
    assert_eq!(new, [row("c", &two, "3"), row(a, &three, "1.50")].join(", "));
    assert_eq!(new, legacy);
    // Two rows change places, and one goes.
    stage
        .pair
        .legacy
        .run(&format!(
            "BEGIN; UPDATE lines SET line = '{one}' WHERE tenant = 'c'; UPDATE lines SET tenant = 'c', line = '{two}' WHERE line = '{three}';
             UPDATE lines SET tenant = 'a', line = '{three}' WHERE line = '{one}'; COMMIT;
             INSERT INTO lines VALUES ('d', '{one}', 4); DELETE FROM lines WHERE tenant = 'd'"
        ))
        .await;
    stage.drained().await;
    relay.stop().await;
    let (legacy, new): (String, String) = (stage.pair.legacy.value(rows).await, stage.pair.new.value(rows).await);
    assert_eq!(new, [row("a", &three, "3"), row("c", &two, "1.50")].join(", "));
    assert_eq!(new, legacy);
    assert_eq!(stage.count("failed").await + stage.count("held").await, 0);
}

#[tokio::test]
async fn a_captured_row_reads_like_a_copied_one_whatever_the_applications_settings() {
    let stage = copying::stage(pair().await, 0, |config| {
        config.entities[0].legacy.as_mut().unwrap().capture.delete_payload = DeletePayload::Row;
    })
    .await;
    stage.pair.legacy.run("ALTER TABLE users ADD at timestamptz, ADD span interval, ADD raw bytea, ADD doc json").await;
    install(&stage).await;
    stage
        .pair
        .legacy
        .run(
            "BEGIN; SET LOCAL TimeZone = 'Asia/Tokyo'; SET LOCAL IntervalStyle = 'iso_8601'; SET LOCAL bytea_output = 'escape';
             SET LOCAL search_path = ''; SET LOCAL extra_float_digits = -10;
             INSERT INTO public.users VALUES (1, 'one', 1, NULL, '2026-01-01 12:00+09', '1 day 2 hours', '\\xdead', '{\"a\": 1}');
             UPDATE public.users SET name = name; COMMIT;
             DELETE FROM users",
        )
        .await;
    let found = events(&stage).await;
    let row = r#"{"at": "2026-01-01T03:00:00+00:00", "id": 1, "doc": {"a": 1}, "raw": "\\xdead", "name": "one", "span": "1 day 02:00:00", "noise": null, "version": 1}"#;
    let payloads: Vec<&str> = found.iter().map(|(_, _, payload)| payload.as_str()).collect();
    assert_eq!(payloads, [row, row]);
}

#[tokio::test]
async fn an_application_without_a_grant_on_the_outbox_writes_as_before() {
    let stage = copying::stage(pair().await, 0, |_| {}).await;
    install(&stage).await;
    let role = format!("app_{}", uuid::Uuid::new_v4().simple());
    stage
        .pair
        .legacy
        .run(&format!("CREATE ROLE {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON users TO {role}"))
        .await;
    let as_app = format!(
        "BEGIN; SET LOCAL ROLE {role}; INSERT INTO users VALUES (1, 'one', 1); UPDATE users SET version = 2; DELETE FROM users; COMMIT"
    );
    stage.pair.legacy.run(&as_app).await;
    assert_eq!(events(&stage).await.len(), 3);
    // And cannot put the function to a use of its own.
    let function: String =
        stage.pair.legacy.value("SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'capture%'").await;
    let misuse = format!(
        "BEGIN; SET LOCAL ROLE {role}; CREATE TEMP TABLE mine (id bigint); \
         CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION {function}; ROLLBACK"
    );
    let mut connection = PgConnection::connect(&stage.pair.legacy.url).await.unwrap();
    let error = connection.execute(AssertSqlSafe(misuse)).await.unwrap_err();
    assert!(error.to_string().contains("permission denied"), "{error}");
    drop(connection);
    stage.pair.legacy.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn truncate_is_refused_with_what_to_do_instead() {
    let stage = copying::stage(pair().await, 3, |_| {}).await;
    install(&stage).await;
    let error = stage.pair.legacy.pool.execute("TRUNCATE users").await.unwrap_err();
    assert!(error.to_string().contains("TRUNCATE of public.users is refused"), "{error}");
    stage.pair.legacy.run("BEGIN; SET LOCAL outbox_relay.applying = 'on'; TRUNCATE users; COMMIT").await;
    assert_eq!(events(&stage).await, []);
}

#[tokio::test]
async fn installing_gives_way_to_the_application_and_misses_nothing_of_who_wrote_before() {
    let stage = copying::stage(pair().await, 3, |_| {}).await;
    let mut writer = PgConnection::connect(&stage.pair.legacy.url).await.unwrap();
    writer.execute("BEGIN; UPDATE users SET version = 7 WHERE id = -5").await.unwrap();
    let source = source(&stage).await;
    let who = Who::default();
    let installing = capture::install(&stage.config, &stage.config.entities[0], &source, &who);
    let application = async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%DO $guard$%' \
                     AND datname = current_database()";
        eventually(DEADLINE, "the triggers wait", || async { stage.pair.legacy.value::<i64>(waits).await > 0 }).await;
        // Queued behind it for a moment, and then served although the first writer is still there.
        stage
            .pair
            .legacy
            .run("SET statement_timeout = '20s'; INSERT INTO users VALUES (100, 'x', 1); RESET statement_timeout")
            .await;
        writer.execute("COMMIT").await.unwrap();
    };
    let (installed, ()) = tokio::join!(installing, application);
    assert!(installed.unwrap());
    assert_eq!(state(&stage).await, State::Installed);
    stage.pair.legacy.run("UPDATE users SET version = 8 WHERE id = -5").await;
    assert_eq!(events(&stage).await.len(), 1);
}

#[tokio::test]
async fn what_stands_there_is_told_and_taken_away() {
    let mut stage = copying::stage(pair().await, 1, |_| {}).await;
    assert_eq!(state(&stage).await, State::Absent);
    install(&stage).await;
    assert_eq!(state(&stage).await, State::Installed);
    let source = source(&stage).await;
    assert!(
        !capture::install(&stage.config, &stage.config.entities[0], &source, &Who::default()).await.unwrap(),
        "once is enough"
    );
    stage.pair.legacy.run("ALTER TABLE users DISABLE TRIGGER USER").await;
    assert_eq!(state(&stage).await, State::Disabled);
    stage.pair.legacy.run("ALTER TABLE users ENABLE TRIGGER USER").await;
    // Another configuration makes it outdated; installing again replaces it.
    stage.config.entities[0].legacy.as_mut().unwrap().aggregate_id = "'u-' || id".into();
    assert_eq!(state(&stage).await, State::Outdated);
    install(&stage).await;
    stage.pair.legacy.run("UPDATE users SET version = 2").await;
    assert_eq!(events(&stage).await[0].1, "u--5");
    // Triggers whose function is dropped would break the application's writes, and others would write events for nobody.
    let removed = init::remove(&stage.config, &stage.pair.legacy.pool, &stage.pair.new.pool).await;
    assert!(removed.unwrap_err().to_string().contains("outbox-relay capture remove"));
    assert!(capture::remove(&stage.config, &stage.config.entities[0], &source, &Who::default()).await.unwrap());
    assert!(!capture::remove(&stage.config, &stage.config.entities[0], &source, &Who::default()).await.unwrap());
    assert_eq!(state(&stage).await, State::Absent);
    stage.pair.legacy.run("UPDATE users SET version = 3").await;
    assert_eq!(events(&stage).await.len(), 1);
    let done: String = stage
        .pair
        .legacy
        .value("SELECT string_agg(action || ' ' || (subject->>'entity'), ', ' ORDER BY id) FROM outbox_relay.audit WHERE action LIKE 'capture%'")
        .await;
    assert_eq!(done, "capture.install users, capture.install users, capture.remove users");
    // What is printed for a DBA is what is run.
    let script = capture::print(&stage.config, &stage.config.entities[0], false).unwrap();
    stage.pair.legacy.run(&script).await;
    assert_eq!(state(&stage).await, State::Installed);
    stage.pair.legacy.run(&capture::print(&stage.config, &stage.config.entities[0], true).unwrap()).await;
    assert_eq!(state(&stage).await, State::Absent);
}

#[tokio::test]
async fn what_would_fail_the_applications_own_writes_is_refused() {
    let mut stage = copying::stage(pair().await, 1, |_| {}).await;
    let sound = stage.config.entities[0].clone();
    stage.config.entities[0].events.remove("UserDeleted");
    assert!(refusal(&stage).await.contains("takes no event type UserDeleted"));
    let printed = capture::print(&stage.config, &stage.config.entities[0], false);
    assert!(printed.unwrap_err().to_string().contains("takes no event type UserDeleted"));
    stage.config.entities[0] = sound.clone();
    // The same triggers write the events of both.
    let mut other = outbox_relay::config::Entity { name: "others".to_owned(), ..sound.clone() };
    stage.config.entities.push(other.clone());
    assert_eq!(capture::shared_with(&stage.config, &sound), [&other]);
    assert!(capture::print(&stage.config, &other, false).is_ok());
    other.legacy.as_mut().unwrap().aggregate_id = "'u-' || id".into();
    *stage.config.entities.last_mut().unwrap() = other;
    assert!(refusal(&stage).await.contains("entities users and others are made of the same table's rows"));
    stage.config.entities.pop();
    stage.config.entities[0].legacy.as_mut().unwrap().aggregate_id = "no_such(id)".into();
    assert!(refusal(&stage).await.contains("no_such"));
    stage.config.entities[0] = sound.clone();
    stage.pair.legacy.run("ALTER TABLE outbox ADD tenant text NOT NULL").await;
    assert!(refusal(&stage).await.contains("column tenant may not be NULL"));
    stage.pair.legacy.run("ALTER TABLE outbox DROP tenant; DROP TABLE users").await;
    assert!(refusal(&stage).await.contains("there is no table public.users"));
    assert_eq!(events(&stage).await, []);
}

/// A type that the application gave the outbox is met by no key's text, or by a word that it does not have.
#[tokio::test]
async fn an_outbox_of_the_applications_own_types_is_written_or_refused_before_the_triggers_stand() {
    let pair = pair().await;
    pair.legacy
        .run(
            "CREATE TYPE kind AS ENUM ('MemberCreated', 'MemberUpdated');
             CREATE TABLE outbox (id bigserial PRIMARY KEY, event_id uuid NOT NULL DEFAULT gen_random_uuid(), aggregate_type varchar(10) NOT NULL,
                                  aggregate_id uuid NOT NULL, event_type kind NOT NULL, payload json NOT NULL,
                                  created_at timestamptz NOT NULL DEFAULT now());
             CREATE TABLE members (id uuid PRIMARY KEY, relay_aggregate text);
             INSERT INTO members VALUES (gen_random_uuid(), 'one')",
        )
        .await;
    pair.new.run("CREATE TABLE members (id uuid PRIMARY KEY, relay_aggregate text)").await;
    let stage = Stage::on(pair, |config| {
        let table = TableName { schema: "public".into(), table: "members".into() };
        let mut members = Entity::new("Member", table.clone(), &["id"]).made_of(table, "id");
        for (name, action) in [("Created", Action::Upsert), ("Updated", Action::Upsert), ("Deleted", Action::Delete)] {
            members = members.on(&format!("Member{name}"), action);
        }
        config.entities[0] = members;
    })
    .await;
    for said in [refusal(&stage).await, refusal_of_the_script(&stage).await] {
        for part in
            ["the outbox does not take what capture would write of public.members", "kind", "MemberDeleted", "22P02"]
        {
            assert!(said.contains(part), "{part}\n{said}");
        }
    }
    assert_eq!(state(&stage).await, State::Absent);
    stage.pair.legacy.run("ALTER TYPE kind ADD VALUE 'MemberDeleted'").await;
    install(&stage).await;
    assert_eq!(events(&stage).await, [], "what was tried is taken back");
    let relay = stage.start().await;
    stage
        .pair
        .legacy
        .run(
            "UPDATE members SET relay_aggregate = 'two'; INSERT INTO members VALUES (gen_random_uuid(), 'three');
             DELETE FROM members WHERE relay_aggregate = 'two'",
        )
        .await;
    stage.drained().await;
    relay.stop().await;
    let kinds: Vec<String> = events(&stage).await.into_iter().map(|(kind, ..)| kind).collect();
    assert_eq!(kinds, ["MemberUpdated", "MemberCreated", "MemberDeleted"]);
    assert_eq!(stage.pair.new.value::<String>("SELECT string_agg(relay_aggregate, ' ') FROM members").await, "three");
}

/// A session of the application has compiled the function before.
#[tokio::test]
async fn an_outbox_whose_types_are_changed_while_its_table_is_captured_is_written_on() {
    let stage = copying::stage(pair().await, 1, |_| {}).await;
    install(&stage).await;
    let mut application = PgConnection::connect(&stage.pair.legacy.url).await.unwrap();
    application.execute("UPDATE users SET version = 2").await.unwrap();
    stage
        .pair
        .legacy
        .run(
            "CREATE DOMAIN word AS varchar(60) NOT NULL CHECK (VALUE IS NOT NULL); ALTER TABLE outbox ALTER event_type TYPE word;
             ALTER TABLE outbox ALTER payload TYPE json",
        )
        .await;
    application.execute("UPDATE users SET version = 3").await.unwrap();
    stage.pair.legacy.run(&capture::print(&stage.config, &stage.config.entities[0], false).unwrap()).await;
    application.execute("UPDATE users SET version = 4").await.unwrap();
    assert_eq!(events(&stage).await.len(), 3);
}

#[tokio::test]
async fn a_table_whose_changes_its_triggers_would_not_see_or_would_tell_twice_is_refused() {
    let mut stage = copying::stage(pair().await, 1, |_| {}).await;
    stage.pair.legacy.run("CREATE TABLE users_2019 () INHERITS (users)").await;
    for said in [refusal(&stage).await, refusal_of_the_script(&stage).await] {
        assert!(said.contains("public.users has tables that inherit from it") && said.contains("users_2019"), "{said}");
    }
    stage.pair.legacy.run("DROP TABLE users_2019").await;
    install(&stage).await;
    // The table is called otherwise, and those triggers go with it.
    stage.pair.legacy.run("ALTER TABLE users RENAME TO members").await;
    let legacy = stage.config.entities[0].legacy.as_mut().unwrap();
    legacy.from = RowsFrom::Table(TableName { schema: "public".into(), table: "members".into() });
    for said in [refusal(&stage).await, refusal_of_the_script(&stage).await] {
        assert!(said.contains("write its changes once more") && said.matches("DROP TRIGGER").count() == 2, "{said}");
    }
    let drops: Vec<String> = stage.pair.legacy.pool.fetch_all(
        "SELECT format('DROP TRIGGER %I ON members', tgname) FROM pg_trigger WHERE tgrelid = 'members'::regclass AND NOT tgisinternal",
    ).await.unwrap().iter().map(|row| sqlx::Row::get(row, 0)).collect();
    stage.pair.legacy.run(&drops.join(";")).await;
    install(&stage).await;
    stage.pair.legacy.run("UPDATE members SET version = 2").await;
    assert_eq!(events(&stage).await.len(), 1);
}

#[tokio::test]
async fn triggers_that_fire_for_replicated_changes_go_on_to_when_they_are_installed_again() {
    let mut stage = copying::stage(pair().await, 1, |_| {}).await;
    install(&stage).await;
    let enabled = "SELECT string_agg(tgenabled::text, '' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = 'users'::regclass AND NOT tgisinternal";
    assert_eq!(stage.pair.legacy.value::<String>(enabled).await, "OO");
    let always = |like: &str| {
        format!(
            "DO $$ DECLARE name text; BEGIN
                 FOR name IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'users'::regclass AND tgname LIKE '{like}' LOOP
                     EXECUTE format('ALTER TABLE users ENABLE ALWAYS TRIGGER %I', name);
                 END LOOP;
             END $$"
        )
    };
    // The one of rows, also by the name that it had; that of TRUNCATE would end a subscription.
    stage.pair.legacy.run(&always("%capture%")).await;
    as_before(&stage).await;
    install(&stage).await;
    assert_eq!(stage.pair.legacy.value::<String>(enabled).await, "AO");
    stage.pair.legacy.run(&always("%truncate%")).await;
    stage.config.entities[0].legacy.as_mut().unwrap().aggregate_id = "'u-' || id".into();
    install(&stage).await;
    assert_eq!(stage.pair.legacy.value::<String>(enabled).await, "AA");
    assert_eq!(state(&stage).await, State::Installed);
}

/// Two of them cannot be compared, and no index tells their order.
#[tokio::test]
async fn a_key_of_a_type_without_an_order_is_refused() {
    let mut stage = copying::stage(pair().await, 1, |_| {}).await;
    stage.pair.legacy.run("CREATE DOMAIN spot AS point; ALTER TABLE users ADD at spot NOT NULL DEFAULT '(1,2)'").await;
    stage.config.entities[0].legacy.as_mut().unwrap().key.push("at".to_owned());
    for said in [refusal(&stage).await, refusal_of_the_script(&stage).await] {
        assert!(
            said.contains("of the key of public.users is of a type without an order") && said.contains("at ("),
            "{said}"
        );
    }
    // What has one by way of another type, or of its parts.
    stage
        .pair
        .legacy
        .run(
            "CREATE TYPE pair AS (a varchar, b cidr[]);
             ALTER TABLE users ALTER at DROP DEFAULT, ALTER at TYPE pair[] USING ARRAY[ROW('a', ARRAY['10.0.0.0/8'::cidr])::pair]",
        )
        .await;
    install(&stage).await;
    stage.pair.legacy.run("UPDATE users SET at = '{}', version = 2").await;
    assert_eq!(events(&stage).await.len(), 2);
}

/// What the printed script says where it is run.
async fn refusal_of_the_script(stage: &Stage) -> String {
    let script = capture::print(&stage.config, &stage.config.entities[0], false).unwrap();
    let mut connection = PgConnection::connect(&stage.pair.legacy.url).await.unwrap();
    connection.execute(AssertSqlSafe(script)).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_function_whose_owner_may_not_write_the_outbox_is_refused_with_the_grant() {
    let mut stage = copying::stage(pair().await, 1, |_| {}).await;
    install(&stage).await;
    let role = format!("owner_{}", uuid::Uuid::new_v4().simple());
    let function: String =
        stage.pair.legacy.value("SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'capture%'").await;
    stage.pair.legacy.run(&format!("CREATE ROLE {role}; ALTER FUNCTION {function} OWNER TO {role}")).await;
    // What is to be written has changed.
    stage.config.entities[0].legacy.as_mut().unwrap().aggregate_id = "'u-' || id".into();
    let grant =
        format!("GRANT INSERT (aggregate_type, aggregate_id, event_type, payload) ON \"public\".\"outbox\" TO {role};");
    for said in [refusal(&stage).await, refusal_of_the_script(&stage).await] {
        for part in [grant.as_str(), role.as_str(), "may not insert into the outbox", "public.users"] {
            assert!(said.contains(part), "{part}\n{said}");
        }
    }
    stage.pair.legacy.run(&grant).await;
    install(&stage).await;
    stage.pair.legacy.run("UPDATE users SET version = 2").await;
    assert_eq!(events(&stage).await.len(), 1);
    stage
        .pair
        .legacy
        .run(&format!("REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}"))
        .await;
}

#[tokio::test]
async fn a_key_whose_rows_may_change_places_within_a_statement_is_refused() {
    let stage = copying::stage(pair().await, 1, |_| {}).await;
    stage
        .pair
        .legacy
        .run("ALTER TABLE users DROP CONSTRAINT users_pkey; ALTER TABLE users ADD CONSTRAINT late PRIMARY KEY (id) DEFERRABLE")
        .await;
    for said in [refusal(&stage).await, refusal_of_the_script(&stage).await] {
        for part in
            ["public.users", "late", "DEFERRABLE", "CREATE UNIQUE INDEX CONCURRENTLY ON \"public\".\"users\" (id);"]
        {
            assert!(said.contains(part), "{part}\n{said}");
        }
    }
    // To be copied it is good enough, and beside another one to be captured.
    assert!(source(&stage).await.legacy(&stage.config.entities[0]).await.unwrap().is_some());
    stage.pair.legacy.run("CREATE UNIQUE INDEX ON users (id)").await;
    install(&stage).await;
}

#[tokio::test]
async fn columns_that_are_null_to_a_trigger_are_refused() {
    let stage = copying::stage(pair().await, 1, |_| {}).await;
    let stored = "ALTER TABLE users ADD shown text GENERATED ALWAYS AS (upper(name)) STORED";
    if stage.pair.legacy.value::<i32>("SELECT current_setting('server_version_num')::int").await >= 180_000 {
        stage.pair.legacy.run(&stored.replace("STORED", "VIRTUAL")).await;
        for said in [refusal(&stage).await, refusal_of_the_script(&stage).await] {
            assert!(said.contains("public.users has VIRTUAL generated columns") && said.contains(": shown."), "{said}");
        }
        stage.pair.legacy.run("ALTER TABLE users DROP shown").await;
    }
    stage.pair.legacy.run(stored).await;
    install(&stage).await;
    stage.pair.legacy.run("UPDATE users SET name = 'one'").await;
    assert!(events(&stage).await[0].2.contains(r#""shown": "ONE""#));
}

/// By hand: what capture costs a writer.
#[tokio::test]
#[ignore = "a measurement"]
async fn what_a_captured_write_costs() {
    let stage = copying::stage(pair().await, 50_000, |_| {}).await;
    let mut connection = PgConnection::connect(&stage.pair.legacy.url).await.unwrap();
    let mut measure = async |what: &str| {
        for (name, sql) in [
            (
                "rows updated one by one",
                "DO $$ BEGIN FOR i IN 1..20000 LOOP UPDATE users SET version = version + 1 WHERE id = i; END LOOP; END $$",
            ),
            (
                "rows that do not change",
                "DO $$ BEGIN FOR i IN 1..20000 LOOP UPDATE users SET version = version WHERE id = i; END LOOP; END $$",
            ),
            ("20,000 rows in one statement", "UPDATE users SET version = version + 1 WHERE id BETWEEN 1 AND 20000"),
        ] {
            let mut best = Duration::MAX;
            for _ in 0..3 {
                connection.execute("VACUUM users").await.unwrap();
                let started = std::time::Instant::now();
                connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
                best = best.min(started.elapsed());
            }
            eprintln!("{what}: {name}: {:.1} us a row", best.as_secs_f64() * 1e6 / 20_000.0);
        }
    };
    measure("without capture").await;
    install(&stage).await;
    measure("with capture").await;
}
