//! The mapping: one SELECT from the old shape to the new, whatever an operator writes.

use std::collections::BTreeMap;

use outbox_relay::config::{Action, Entity, OnFailure, TableName};
use outbox_relay::event::{Aggregate, Event, EventId};
use outbox_relay::mapping::{self, Mapping, MappingError};
use outbox_relay::target::Events;
use sqlx::{Connection, PgConnection};

use crate::support::stage::{Stage, file};
use crate::support::{Database, pair};

const SEARCH_PATH: &str = "SET LOCAL search_path = pg_catalog, \"public\";";

/// A new database with a table, and what the mappings need of the relay's.
struct Ground {
    db: Database,
}

impl Ground {
    async fn new(tables: &str) -> Ground {
        let db = pair().await.new;
        let names = [("relay", "\"outbox_relay\"".to_owned())];
        db.run(&outbox_relay::sql::render(include_str!("../../sql/target/schema.sql"), &names)).await;
        db.run(tables).await;
        Ground { db }
    }

    async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.db.url).await.unwrap()
    }

    async fn compile(&self, entity: &Entity) -> Result<Mapping, MappingError> {
        let mut connection = self.connection().await;
        let mut transaction = connection.begin().await.unwrap();
        mapping::compile(entity, &mut transaction, SEARCH_PATH, "outbox_relay").await
    }

    async fn run(&self, statement: &outbox_relay::target::Prepared, events: &[Event]) -> Result<u64, String> {
        let mut connection = self.connection().await;
        let mut transaction = connection.begin().await.unwrap();
        sqlx::Executor::execute(&mut *transaction, SEARCH_PATH).await.unwrap();
        let events: Events<'_> = events.iter().collect();
        let done = statement.execute(&mut transaction, &events, false).await.map_err(|error| {
            let said = outbox_relay::disposition::said(&error);
            format!("{}: {}", said.code, said.message)
        })?;
        transaction.commit().await.map_err(|e| e.to_string())?;
        Ok(done)
    }

    async fn upsert(&self, entity: &Entity, payloads: &[&str]) -> Result<u64, String> {
        let mapping = self.compile(entity).await.map_err(|e| e.to_string())?;
        self.run(&mapping.upsert.unwrap(), &events(payloads)).await
    }

    async fn delete(&self, entity: &Entity, payloads: &[&str]) -> Result<u64, String> {
        let mapping = self.compile(entity).await.map_err(|e| e.to_string())?;
        self.run(&mapping.delete.unwrap(), &events(payloads)).await
    }

    /// The table as JSON, a row a line.
    async fn rows(&self, table: &str) -> String {
        let sql = format!(
            "SELECT coalesce(string_agg(to_jsonb(t)::text, E'\\n' ORDER BY to_jsonb(t)::text), '') FROM {table} t"
        );
        self.db.value(&sql).await
    }
}

fn entity(table: &str, key: &[&str], sql: Option<&str>) -> Entity {
    Entity {
        name: table.to_owned(),
        line: 1,
        aggregate_type: "A".into(),
        table: Some(TableName { schema: "public".into(), table: table.into() }),
        key: key.iter().map(|k| (*k).to_owned()).collect(),
        replace_by: Vec::new(),
        legacy: None,
        verify: Default::default(),
        mapping: sql.map(|sql| file("mappings/m.sql", sql)),
        string_payloads: false,
        on_failure: OnFailure::Hold,
        events: [("Set".to_owned(), Action::Upsert), ("Gone".to_owned(), Action::Delete)].into(),
    }
}

fn events(payloads: &[&str]) -> Vec<Event> {
    payloads
        .iter()
        .enumerate()
        .map(|(at, payload)| {
            let aggregate = Aggregate { kind: "A".into(), id: at.to_string() };
            Event { id: EventId(at as i64 + 1), ..Event::made_up(aggregate, "Set", (*payload).to_owned()) }
        })
        .collect()
}

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, name text)";

#[tokio::test]
async fn a_mapping_may_be_written_as_one_likes() {
    let ground = Ground::new(T).await;
    for sql in [
        "SELECT payload->>'id' AS id, payload->>'name' AS name FROM event",
        "SELECT payload->>'id' AS id, payload->>'name' AS name FROM event;\n-- done;\n",
        "select payload->>'id' AS id, payload->>'name' AS name FROM event -- no newline",
        "/* WITH */ WITH p AS (SELECT payload AS q FROM event) SELECT q->>'id' AS id, q->>'name' AS name FROM p",
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3)\nSELECT payload->>'id' AS id, payload->>'name' AS name FROM event, n WHERE i = 3;",
        "SELECT e.payload->>'id' AS id, e.payload->>'name' AS name FROM event e ORDER BY 1 LIMIT 1",
        "SELECT payload->>'id' AS id, max(payload->>'name') AS name FROM event GROUP BY 1",
    ] {
        ground.db.run("TRUNCATE t").await;
        let done = ground
            .upsert(&entity("t", &["id"], Some(sql)), &[r#"{"id": 1, "name": "Ada"}"#, r#"{"id": 2, "name": "Bob"}"#])
            .await;
        assert_eq!(done, Ok(2), "{sql}");
        assert_eq!(ground.rows("t").await, "{\"id\": 1, \"name\": \"Ada\"}\n{\"id\": 2, \"name\": \"Bob\"}", "{sql}");
    }
}

#[tokio::test]
async fn an_event_may_yield_several_rows_or_none_and_the_last_of_a_key_wins() {
    let ground = Ground::new(T).await;
    let sql = "SELECT i->>'id' AS id, i->>'name' AS name FROM event, jsonb_array_elements(payload->'items') AS i WHERE i->>'name' <> 'no'";
    let done = ground
        .upsert(
            &entity("t", &["id"], Some(sql)),
            &[
                r#"{"items": [{"id": 1, "name": "old"}, {"id": 2, "name": "two"}]}"#,
                r#"{"items": []}"#,
                r#"{"items": [{"id": 1, "name": "new"}, {"id": 3, "name": "no"}]}"#,
            ],
        )
        .await;
    assert_eq!(done, Ok(2));
    assert_eq!(ground.rows("t").await, "{\"id\": 1, \"name\": \"new\"}\n{\"id\": 2, \"name\": \"two\"}");
}

#[tokio::test]
async fn text_is_read_as_input_would_be_and_never_cut() {
    let ground = Ground::new(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN positive AS int CHECK (value > 0);
         CREATE TABLE t (id int PRIMARY KEY, v varchar(3), c char(3), n numeric(5,2), at timestamptz, tags text[], j jsonb, m mood, p positive,
                         b boolean, u uuid, d date)",
    )
    .await;
    let sql =
        "SELECT payload->>'id' AS id, payload->>'v' AS v, payload->>'c' AS c, payload->>'n' AS n, payload->>'at' AS at,
               payload->>'tags' AS tags, payload->>'j' AS j, payload->>'m' AS m, payload->>'p' AS p, payload->>'b' AS b,
               payload->>'u' AS u, payload->>'d' AS d FROM event";
    let entity = entity("t", &["id"], Some(sql));
    let good = r#"{"id": "1", "v": "abc", "c": "xyz", "n": "123.456", "at": "2026-01-02T03:04:05+02:00", "tags": "{a,\"b c\"}",
        "j": "{\"k\": [1]}", "m": "ok", "p": "7", "b": "true", "u": "0192a3b4-0000-7000-8000-000000000000", "d": "2026-01-02"}"#;
    assert_eq!(ground.upsert(&entity, &[good]).await, Ok(1));
    let row: String =
        ground.db.value("SELECT concat_ws('|', v, c, n, at AT TIME ZONE 'UTC', tags, j, m, p, b, d) FROM t").await;
    assert_eq!(row, "abc|xyz|123.46|2026-01-02 01:04:05|{a,\"b c\"}|{\"k\": [1]}|ok|7|t|2026-01-02");
    for (bad, code) in [
        (r#"{"id": 2, "v": "abcd"}"#, "22001"),
        (r#"{"id": 2, "c": "abcd"}"#, "22001"),
        (r#"{"id": 2, "n": "12345"}"#, "22003"),
        (r#"{"id": 2, "m": "happy"}"#, "22P02"),
        (r#"{"id": 2, "p": "0"}"#, "23514"),
        (r#"{"id": 2, "at": "yesterdayish"}"#, "22007"),
    ] {
        let error = ground.upsert(&entity, &[bad]).await.unwrap_err();
        assert!(error.starts_with(code), "{bad}: {error}");
    }
}

#[tokio::test]
async fn a_wrong_type_shows_the_cast_to_write() {
    let ground = Ground::new("CREATE TABLE t (id int PRIMARY KEY, n int)").await;
    let sql = "SELECT payload->>'id' AS id,\n       payload->'n' AS n\nFROM event";
    let error = ground.compile(&entity("t", &["id"], Some(sql))).await.unwrap_err();
    assert_eq!((error.code, error.sqlstate.as_deref()), ("mapping.type", Some("42804")));
    let text = error.to_string();
    assert!(text.contains("mappings/m.sql:2:") && text.contains("::integer AS n"), "{text}");
}

#[tokio::test]
async fn a_mistake_is_shown_at_its_place_in_the_operators_file() {
    let ground = Ground::new(T).await;
    let compile = async |sql: &str| ground.compile(&entity("t", &["id"], Some(sql))).await.unwrap_err();
    let error = compile("-- a comment\nSELECT\n  payload->>'id' AS id,\n  payloud->>'name' AS name\nFROM event;").await;
    assert_eq!(
        (error.code, error.place, error.suggestion.as_deref()),
        ("mapping.column", Some((4, 3)), Some("did you mean \"payload\"?"))
    );
    let text = error.to_string();
    assert!(
        text.contains("  --> mappings/m.sql:4:3\n 4 |   payloud->>'name' AS name\n   |   ^^^^^^^ did you mean"),
        "{text}"
    );
    let error = compile("WITH p AS (SELECT payload FROM event)\nSELECT pay->>'id' AS id FROM p").await;
    assert_eq!(error.place, Some((2, 8)), "{error}");
    let error = compile("SELECT payload->>'id' AS id, payload->>'x' AS naem FROM event").await;
    assert_eq!((error.code, error.suggestion.as_deref()), ("mapping.column", Some("did you mean \"name\"?")));
    assert_eq!(error.place, Some((1, 47)));
    assert_eq!(compile("SELECT payload->>'id' AS id FROM evnt").await.code, "mapping.table");
    assert_eq!(compile("SELECT payload->>'id' AS id FRM event").await.code, "mapping.syntax");
    assert_eq!(compile("SELECT lowr(payload->>'id') AS id FROM event").await.code, "mapping.function");
    assert_eq!(compile("SELECT payload->>'name' AS name FROM event").await.code, "mapping.key");
    assert_eq!(compile("SELECT 1 AS id FROM event; SELECT 2").await.code, "mapping.several");
    // Postgres cannot do it (0A000): the operator's error, not a server that is away.
    let writes = compile("WITH w AS (DELETE FROM t RETURNING id) SELECT id FROM w").await;
    assert_eq!((writes.code, writes.unreachable), ("mapping.refused", false));
    assert_eq!(compile("").await.code, "mapping.syntax");
    assert_eq!(compile("DELETE FROM t").await.code, "mapping.syntax");
    let unknown = ground.compile(&entity("tt", &["id"], None)).await.unwrap_err();
    assert_eq!(unknown.code, "mapping.table");
    let no_key = ground.compile(&entity("t", &["ident"], None)).await.unwrap_err();
    assert_eq!(no_key.code, "mapping.key");
    let not_unique = ground.compile(&entity("t", &["name"], None)).await.unwrap_err();
    assert_eq!((not_unique.code, not_unique.sqlstate.as_deref()), ("mapping.key", Some("42P10")));
}

#[tokio::test]
async fn without_a_mapping_columns_come_by_their_names() {
    let ground = Ground::new("CREATE TABLE t (id bigint PRIMARY KEY, name varchar(5), n numeric(10,2), twice int GENERATED ALWAYS AS (1) STORED)").await;
    let entity = entity("t", &["id"], None);
    assert_eq!(
        ground.upsert(&entity, &[r#"{"id": 9007199254740993, "name": null, "n": 1.10, "more": 1}"#]).await,
        Ok(1)
    );
    assert_eq!(ground.rows("t").await, r#"{"n": 1.10, "id": 9007199254740993, "name": null, "twice": 1}"#);
    let error = ground.upsert(&entity, &[r#"{"id": 1, "n": 1}"#]).await.unwrap_err();
    assert_eq!(error, "22023: the payload has no key name");
    let error = ground.upsert(&entity, &[r#""{\"id\": 1}""#]).await.unwrap_err();
    assert!(error.contains("serialised twice"), "{error}");
    let error = ground.upsert(&entity, &[r#"{"id": 1, "n": 1, "name": "longer"}"#]).await.unwrap_err();
    assert!(error.starts_with("22001"), "never cut: {error}");
    // A delete needs the key alone.
    assert_eq!(ground.delete(&entity, &[r#"{"id": 9007199254740993}"#]).await, Ok(1));
    assert!(ground.delete(&entity, &[r#"{"name": "x"}"#]).await.unwrap_err().contains("has no key id"));
}

#[tokio::test]
async fn a_null_key_is_the_events_error_and_never_no_row() {
    let ground = Ground::new(T).await;
    let entity = entity("t", &["id"], Some("SELECT payload->>'id' AS id, payload->>'name' AS name FROM event"));
    for error in [ground.upsert(&entity, &["{}"]).await, ground.delete(&entity, &["{}"]).await] {
        assert_eq!(error, Err("23502: the mapping yields NULL for key column id".to_owned()));
    }
    for error in
        [ground.upsert(&entity, &[r#""{\"id\": 1}""#]).await, ground.delete(&entity, &[r#""{\"id\": 1}""#]).await]
    {
        assert!(error.unwrap_err().contains("it was serialised twice"));
    }
    assert_eq!(ground.upsert(&entity, &[]).await, Ok(0));
}

#[tokio::test]
async fn a_payload_that_was_serialised_twice_empties_no_row() {
    let ground = Ground::new(T).await;
    let sql = "SELECT 1 AS id, payload->>'name' AS name FROM event";
    let mapped = entity("t", &["id"], Some(sql));
    assert_eq!(ground.upsert(&mapped, &[r#"{"name": "x"}"#]).await, Ok(1));
    let before = ground.rows("t").await;
    let error = ground.upsert(&mapped, &[r#""{\"name\": \"y\"}""#]).await.unwrap_err();
    assert_eq!(error, "22023: the payload is a JSON string, not an object: it was serialised twice");
    assert_eq!(ground.rows("t").await, before);
    // Nothing is written by a delete.
    assert_eq!(ground.delete(&mapped, &[r#""gone""#]).await, Ok(1));
    let unwraps = "SELECT 1 AS id, (payload #>> '{}')::jsonb->>'name' AS name FROM event";
    let unwrapping = Entity { string_payloads: true, ..entity("t", &["id"], Some(unwraps)) };
    assert_eq!(ground.upsert(&unwrapping, &[r#""{\"name\": \"y\"}""#]).await, Ok(1));
    assert!(ground.rows("t").await.contains("\"y\""));
}

#[tokio::test]
async fn replace_by_deletes_what_an_owner_no_longer_has() {
    let ground = Ground::new("CREATE TABLE t (user_id int, kind text, v text, PRIMARY KEY (user_id, kind)); INSERT INTO t VALUES (2, 'a', 'stays')").await;
    let sql = "SELECT payload->>'user' AS user_id, a->>'kind' AS kind, a->>'v' AS v
               FROM event LEFT JOIN LATERAL jsonb_array_elements(payload->'all') AS a ON true";
    let entity = Entity { replace_by: vec!["user_id".into()], ..entity("t", &["user_id", "kind"], Some(sql)) };
    let set = |all: &str| format!(r#"{{"user": 1, "all": [{all}]}}"#);
    let one = set(r#"{"kind": "a", "v": "1"}, {"kind": "b", "v": "1"}"#);
    assert_eq!(ground.upsert(&entity, &[&one]).await, Ok(2));
    let two = set(r#"{"kind": "b", "v": "2"}, {"kind": "c", "v": "2"}"#);
    ground.upsert(&entity, &[&one, &two]).await.unwrap();
    let rows = ground.rows("t").await;
    assert_eq!(
        rows,
        "{\"v\": \"2\", \"kind\": \"b\", \"user_id\": 1}\n{\"v\": \"2\", \"kind\": \"c\", \"user_id\": 1}\n{\"v\": \"stays\", \"kind\": \"a\", \"user_id\": 2}"
    );
    // One row with the owner alone: it has none any more.
    assert_eq!(ground.upsert(&entity, &[&set("")]).await, Ok(0));
    assert_eq!(ground.rows("t").await, r#"{"v": "stays", "kind": "a", "user_id": 2}"#);
    let error = ground.upsert(&entity, &[r#"{"all": []}"#]).await.unwrap_err();
    assert!(error.contains("does not name the owner (user_id)"), "{error}");
    ground.upsert(&entity, &[&one]).await.unwrap();
    assert_eq!(ground.delete(&entity, &[r#"{"user": 1}"#]).await, Ok(2));
}

/// Off the search path an extension's `=` is not seen, and a word would be compared as text.
#[tokio::test]
async fn a_key_of_an_extensions_type_is_compared_as_its_type_compares() {
    let ground = Ground::new(
        "CREATE SCHEMA \"An Extension\"; CREATE EXTENSION citext SCHEMA \"An Extension\";
         CREATE DOMAIN mail AS \"An Extension\".citext;
         CREATE TABLE t (mail mail, kind \"An Extension\".citext, PRIMARY KEY (mail, kind));
         INSERT INTO t VALUES ('Ada', 'Home'), ('Ada', 'Work'), ('bob', 'Home')",
    )
    .await;
    let one =
        entity("t", &["mail", "kind"], Some("SELECT payload->>'mail' AS mail, payload->>'kind' AS kind FROM event"));
    // It is the same row, and as the event writes it.
    assert_eq!(ground.upsert(&one, &[r#"{"mail": "ADA", "kind": "HOME"}"#]).await, Ok(1));
    assert!(ground.rows("t").await.contains(r#"{"kind": "HOME", "mail": "ADA"}"#));
    assert_eq!(ground.delete(&one, &[r#"{"mail": "BOB", "kind": "home"}"#]).await, Ok(1));
    let all = Entity { replace_by: vec!["mail".into()], ..one };
    assert_eq!(ground.upsert(&all, &[r#"{"mail": "aDA", "kind": "work"}"#]).await, Ok(1));
    assert_eq!(ground.rows("t").await, r#"{"kind": "work", "mail": "aDA"}"#);
    assert_eq!(ground.delete(&all, &[r#"{"mail": "ada"}"#]).await, Ok(1));
}

#[tokio::test]
async fn a_key_that_its_collation_folds_is_written_as_the_event_has_it() {
    let ground = Ground::new("CREATE TABLE t (name text PRIMARY KEY, v text)").await;
    let folds = "CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
                 ALTER TABLE t ALTER name TYPE text COLLATE folded";
    if let Err(error) = sqlx::raw_sql(folds).execute(&ground.db.pool).await {
        // Some builds come without.
        assert!(error.to_string().contains("ICU is not supported"), "{error}");
        return;
    }
    let one = entity("t", &["name"], Some("SELECT payload->>'name' AS name, payload->>'v' AS v FROM event"));
    assert_eq!(ground.upsert(&one, &[r#"{"name": "Ada", "v": "1"}"#, r#"{"name": "ADA", "v": "2"}"#]).await, Ok(1));
    assert_eq!(ground.rows("t").await, r#"{"v": "2", "name": "ADA"}"#);
    assert_eq!(ground.upsert(&one, &[r#"{"name": "ada", "v": "3"}"#]).await, Ok(1));
    assert_eq!(ground.rows("t").await, r#"{"v": "3", "name": "ada"}"#);
    // What has no collation is assigned as a text.
    let one =
        entity("t", &["name"], Some("SELECT (payload->>'name')::uuid AS name, (payload->>'v')::int AS v FROM event"));
    let uuid = "ffffffff-ffff-ffff-ffff-ffffffffffff";
    assert_eq!(ground.upsert(&one, &[&format!(r#"{{"name": "{uuid}", "v": "4"}}"#)]).await, Ok(1));
    assert!(ground.rows("t").await.contains(uuid));
}

#[tokio::test]
async fn composite_keys_and_identities_that_are_always_generated_are_written() {
    let ground = Ground::new(
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, at date, \"Note\" text, PRIMARY KEY (id, at))",
    )
    .await;
    let sql = "SELECT payload->>'id' AS id, payload->>'at' AS at, payload->>'note' AS \"Note\" FROM event";
    let entity = entity("t", &["id", "at"], Some(sql));
    let payload = r#"{"id": 7, "at": "2026-01-02", "note": "x"}"#;
    assert_eq!(ground.upsert(&entity, &[payload, payload]).await, Ok(1));
    assert_eq!(ground.upsert(&entity, &[&payload.replace("\"x\"", "\"y\"")]).await, Ok(1));
    assert_eq!(ground.rows("t").await, r#"{"at": "2026-01-02", "id": 7, "Note": "y"}"#);
    assert_eq!(ground.delete(&entity, &[payload]).await, Ok(1));
}

#[tokio::test]
async fn a_table_of_nothing_but_its_key_is_written() {
    let ground = Ground::new("CREATE TABLE t (id int PRIMARY KEY)").await;
    let entity = entity("t", &["id"], None);
    assert_eq!(ground.upsert(&entity, &[r#"{"id": 1}"#]).await, Ok(1));
    assert_eq!(ground.upsert(&entity, &[r#"{"id": 1}"#]).await, Ok(0));
}

#[tokio::test]
async fn a_handler_may_be_any_one_statement() {
    let ground =
        Ground::new("CREATE TABLE t (id int PRIMARY KEY, name text); CREATE TABLE log (event bigint, n int)").await;
    for (sql, expected) in [
        ("INSERT INTO t SELECT (payload->>'id')::int, 'a' FROM event;", 1),
        (
            "WITH changed AS (UPDATE t SET name = 'b' FROM event WHERE t.id = (payload->>'id')::int RETURNING t.id)\nINSERT INTO log SELECT event.id, changed.id FROM event, changed",
            1,
        ),
        (
            "-- gone\nwith d as (delete from t using event where t.id = (payload->>'id')::int returning 1) select * from d",
            1,
        ),
    ] {
        let mut own = entity("t", &["id"], None);
        own.events = BTreeMap::from([("Set".to_owned(), Action::Sql(file("handlers/h.sql", sql)))]);
        let mapping = ground.compile(&own).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(ground.run(&mapping.handlers["Set"], &events(&[r#"{"id": 5}"#])).await, Ok(expected), "{sql}");
    }
    assert_eq!(ground.rows("log").await, r#"{"n": 5, "event": 1}"#);
    assert_eq!(ground.rows("t").await, "");
    let mut own = entity("t", &["id"], None);
    own.events = BTreeMap::from([("Set".to_owned(), Action::Sql(file("handlers/h.sql", "UPDATE t\nSET nome = 'x'")))]);
    let error = ground.compile(&own).await.unwrap_err();
    assert!(error.to_string().contains("handlers/h.sql:2:5"), "{error}");
}

#[tokio::test]
async fn deferred_constraints_find_the_failing_event() {
    let stage = Stage::new().await;
    stage.pair.new.run("ALTER TABLE users ADD CONSTRAINT one_name UNIQUE (name) DEFERRABLE INITIALLY DEFERRED; INSERT INTO users VALUES (100, 'taken', 1)").await;
    let shared = stage.shared().await;
    let good = stage.user(1, "UserCreated", "free", 1).await;
    let bad = stage.user(2, "UserCreated", "taken", 1).await;
    stage.drain_by_hand(&shared).await;
    assert_eq!((stage.status(good).await.as_str(), stage.status(bad).await.as_str()), ("processed", "retry"));
}

#[tokio::test]
async fn two_entities_of_one_aggregate_type_take_an_event_both_or_neither() {
    let stage = Stage::with(|config| {
        let mut profiles = config.entities[0].clone();
        profiles.name = "profiles".into();
        profiles.table = Some(TableName { schema: "public".into(), table: "profiles".into() });
        profiles.mapping = Some(file(
            "mappings/profile.sql",
            "SELECT payload->>'id' AS id, (payload->>'version')::int AS n FROM event",
        ));
        config.entities.insert(1, profiles);
        config.retry.attempts = 1;
    })
    .await;
    stage.pair.new.run("CREATE TABLE profiles (id bigint PRIMARY KEY, n int CHECK (n < 10))").await;
    let shared = stage.shared().await;
    assert_eq!(shared.router().errors, vec![]);
    let both = stage.user(1, "UserCreated", "Ada", 1).await;
    let neither = stage.user(2, "UserCreated", "Bob", 10).await;
    stage.drain_by_hand(&shared).await;
    assert_eq!((stage.status(both).await.as_str(), stage.status(neither).await.as_str()), ("processed", "failed"));
    let rows: String = stage.pair.new.value("SELECT concat_ws(' ', (SELECT string_agg(id::text, ',') FROM users), (SELECT string_agg(id::text, ',') FROM profiles))").await;
    assert_eq!(rows, "1 1");
}
