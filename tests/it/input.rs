//! What nobody would write on purpose: every oddity of JSON, of names and of ids, through a running relay.
//!
//! The databases are the oracle: a value must stand in the new one just as the legacy one's own `jsonb` reads it.

use std::collections::BTreeMap;

use outbox_relay::config::{Action, Entity, OnFailure, TableName};
use outbox_relay::init::{self, Choices, InitError};
use serde_json::{Value, json};

use crate::admin::Api;
use crate::support::child::Child;
use crate::support::stage::{Stage, file, oracle, users};
use crate::support::{DEADLINE, eventually, pair};

/// `docs`: one payload field in a column of each type.
fn docs() -> Entity {
    Entity {
        name: "docs".into(),
        aggregate_type: "Doc".into(),
        table: Some(TableName { schema: "public".into(), table: "docs".into() }),
        key: vec!["id".into()],
        mapping: Some(file(
            "mappings/doc.sql",
            "SELECT aggregate_id AS id, payload->'v' AS b, (payload->'v')::json AS j, payload->>'v' AS t,
                    CASE jsonb_typeof(payload->'v') WHEN 'number' THEN payload->>'v' END AS n
             FROM event",
        )),
        events: [("Saved".to_owned(), Action::Upsert)].into(),
        ..users()
    }
}

const DOCS: &str = "CREATE TABLE docs (id text PRIMARY KEY, b jsonb, j json, t text, n numeric)";

/// A stage with `docs`, a relay, and one attempt for each event.
async fn stage() -> Stage {
    let pair = pair().await;
    pair.new.run(DOCS).await;
    Stage::on(pair, |config| {
        config.retry.attempts = 1;
        config.entities.push(docs());
    })
    .await
}

/// Every document as the legacy database reads it, and as the new one has it.
async fn both(stage: &Stage) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let legacy = "SELECT aggregate_id, format('%s|%s|%L|%s', payload->'v', (payload->'v')::json, payload->>'v',
                         CASE jsonb_typeof(payload->'v') WHEN 'number' THEN (payload->>'v')::numeric END)
                  FROM outbox WHERE aggregate_type = 'Doc'";
    let new = "SELECT id, format('%s|%s|%L|%s', b, j, t, n) FROM docs";
    let rows = |sql: &'static str, pool: sqlx::PgPool| async move {
        sqlx::query_as::<_, (String, String)>(sql).fetch_all(&pool).await.unwrap().into_iter().collect()
    };
    (rows(legacy, stage.pair.legacy.pool.clone()).await, rows(new, stage.pair.new.pool.clone()).await)
}

fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

/// JSON that parsers disagree about.
fn oddities() -> Vec<(String, String)> {
    let plain = [
        "1e400",
        "-1e400",
        "1e-400",
        "1.5E+3",
        "0e0",
        "-0",
        "-0.0",
        "1.10",
        "0.1000000000000000055511151231257827",
        "1234567890123456789012345678901234567890",
        "-9223372036854775809",
        "18446744073709551616",
        "9007199254740993",
        "null",
        "true",
        "[]",
        "{}",
        r#""""#,
        r#"{"": 1}"#,
        r#"{"": {"": [""]}}"#,
        r#"{"a": 1, "a": 2, "A": 3}"#,
        r#"{"b": 1, "aa": 2, "a": {"z": 1, "y": 2}}"#,
        "[ 1 ,\n\t2\r\n, 3 ]",
        r#""\u00e9\ud83d\ude00\/\b\f\n\r\t\\\"""#,
        r#""{\"a\": [1e400]}""#,
        r#""مرحبا \u202e שלום""#,
        r#""e\u0301 \ufeff \u200b \u007f \u0001""#,
        r#"{"\\\"{}[],": "{\"NULL\",NULL}"}"#,
        r#"["NULL", null, "null", "\\N"]"#,
        r#"{"traceparent": {"a": 1}}"#,
        r#""2026-02-30T25:61:61Z""#,
        r#""\\u0000""#,
        r#"[[[[]]], [[], [{}]]]"#,
        "0.00000000000000000000000000000001e32",
    ];
    let mut all: Vec<(String, String)> = plain.iter().map(|text| ((*text).to_owned(), (*text).to_owned())).collect();
    all.push(("a huge key".to_owned(), format!("{{\"{}\": 1}}", "k".repeat(200_000))));
    all.push((
        "many keys".to_owned(),
        format!("{{{}}}", (0..5000).map(|n| format!("\"k{n}\": {n}")).collect::<Vec<_>>().join(",")),
    ));
    all.push(("a long text".to_owned(), format!("\"{}\"", "ü\\n".repeat(300_000))));
    all.push(("a long number".to_owned(), format!("{}.{}", "9".repeat(5000), "7".repeat(5000))));
    all.push(("deep".to_owned(), nested(1000)));
    all
}

#[tokio::test]
async fn every_oddity_of_json_arrives_as_jsonb_reads_it() {
    let stage = stage().await;
    let running = stage.start().await;
    let all = oddities();
    for (name, text) in &all {
        stage.event("Doc", name, "Saved", &format!("{{\"v\": {text}}}")).await;
    }
    stage.drained().await;
    running.stop().await;
    let (legacy, new) = both(&stage).await;
    assert_eq!(new.len(), all.len());
    for (name, text) in &legacy {
        assert!(new[name] == *text, "{name}: {} instead of {text}", new[name]);
    }
    // Not merely alike: nothing was rounded on the way to the outbox either.
    assert!(new["1e400"].ends_with(&format!("|1{}", "0".repeat(400))), "{}", new["1e400"]);
    assert!(new["1234567890123456789012345678901234567890"].ends_with("|1234567890123456789012345678901234567890"));
    assert!(new["1.10"].ends_with("|1.10"));
    assert_eq!(new[r#"{"a": 1, "a": 2, "A": 3}"#].split('|').next(), Some(r#"{"A": 3, "a": 2}"#));
    // The same by the API: as it stands there, digit by digit.
    let api = Api::start(&stage.config, Vec::new(), None).await;
    for (name, _) in &all {
        let sql = "SELECT id, payload::text FROM outbox WHERE aggregate_id = $1";
        let (id, payload): (i64, String) =
            sqlx::query_as(sql).bind(name).fetch_one(&stage.pair.legacy.pool).await.unwrap();
        let shown = api.client.get(&format!("/v1/events/{id}")).await;
        assert!(shown.status == 200 && shown.text.contains(&format!("\"payload\":{payload}")), "{name}");
    }
    api.stop().await;
}

#[tokio::test]
async fn what_jsonb_cannot_hold_the_legacy_database_refuses_and_the_writer_learns_it() {
    let stage = stage().await;
    for (text, code) in [
        (r#"{"v": "\u0000"}"#, "22P05"),
        (r#"{"v": "\ud800"}"#, "22P02"),
        (r#"{"v": "\udc00\ud800"}"#, "22P02"),
        (r#"{"v": 1e131073}"#, "22003"),
        (r#"{"v": 01}"#, "22P02"),
        (r#"{"v": NaN}"#, "22P02"),
        (r#"{"v": 1,}"#, "22P02"),
        (r#"{'v': 1}"#, "22P02"),
        ("", "22P02"),
        (&nested(200_000), "54001"),
    ] {
        let insert = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('Doc', 'x', 'Saved', $1::jsonb)";
        let error = sqlx::query(insert).bind(text).execute(&stage.pair.legacy.pool).await.unwrap_err();
        let found = error.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned();
        assert_eq!(found, code, "{}", &text[..text.len().min(30)]);
    }
    assert_eq!(stage.count("pending").await, 0);
}

#[tokio::test]
async fn what_the_new_database_refuses_fails_alone_and_says_why() {
    let pair = pair().await;
    pair.new
        .run("CREATE TABLE docs (id varchar(20) PRIMARY KEY, b jsonb, j json, t varchar(2000), n numeric(6,2))")
        .await;
    // Half the depth that the legacy database takes.
    let name: String = pair.new.value("SELECT current_database()::text").await;
    pair.new.run(&format!("ALTER DATABASE \"{name}\" SET max_stack_depth = '200kB'")).await;
    let stage = Stage::on(pair, |config| {
        config.retry.attempts = 1;
        config.relay.lanes = 1;
        config.entities.push(docs());
    })
    .await;
    let refused = [
        ("deep", nested(1500), "54001", "stack depth limit exceeded"),
        ("too long", format!("\"{}\"", "x".repeat(2001)), "22001", "value too long for type character varying(2000)"),
        ("1e400", "1e400".to_owned(), "22003", "numeric field overflow"),
        (
            "an id that is longer than the column",
            "1".to_owned(),
            "22001",
            "value too long for type character varying(20)",
        ),
    ];
    let mut failed = Vec::new();
    for (n, (id, text, ..)) in refused.iter().enumerate() {
        stage.event("Doc", &format!("good {n}"), "Saved", r#"{"v": "fine"}"#).await;
        failed.push(stage.event("Doc", id, "Saved", &format!("{{\"v\": {text}}}")).await);
        stage.event("Doc", &format!("good, too {n}"), "Saved", r#"{"v": [1]}"#).await;
    }
    let running = stage.start().await;
    stage.drained().await;
    running.stop().await;
    assert_eq!(
        (stage.count("processed").await, stage.count("failed").await),
        (2 * refused.len() as i64, refused.len() as i64)
    );
    for (event, (id, _, code, message)) in failed.iter().zip(&refused) {
        let told: String = stage.pair.legacy.value(&format!("SELECT last_error FROM outbox WHERE id = {event}")).await;
        assert!(told.contains(code) && told.contains(message), "{id}: {told}");
    }
}

/// An outbox that stands already, with a payload column of another type.
async fn adopted(payload: &str) -> Stage {
    let pair = pair().await;
    pair.new.run(DOCS).await;
    let table = format!(
        "CREATE TABLE outbox (id bigserial PRIMARY KEY, aggregate_type text, aggregate_id text, event_type text, payload {payload}, headers text)"
    );
    pair.legacy.run(&table).await;
    Stage::on(pair, |config| {
        config.retry.attempts = 1;
        config.relay.lanes = 2;
        config.entities.push(docs());
    })
    .await
}

#[tokio::test]
async fn an_adopted_outbox_of_json_or_text_is_read_as_jsonb_and_what_is_none_fails_alone() {
    // What is well-formed for the type `json`, and only there.
    let only_json = [(r#"{"v": "\u0000"}"#, "22P05"), (r#"{"v": "\ud800"}"#, "22P02"), (r#"{"v": 1e200000}"#, "22003")];
    let only_text = [
        ("", "22P02"),
        (" ", "22P02"),
        ("nul", "22P02"),
        ("{\"v\": 1", "22P02"),
        ("{\"v\": 1} {}", "22P02"),
        ("{v: 1}", "22P02"),
        ("<v>1</v>", "22P02"),
        ("{\"v\": 01}", "22P02"),
        ("{\"v\": \"a\nb\"}", "22P02"),
        ("\u{feff}{}", "22P02"),
        ("NaN", "22P02"),
    ];
    for payload in ["json", "text"] {
        let stage = adopted(payload).await;
        let write = async |id: &str, text: &str, headers: Option<&str>| -> i64 {
            let sql = format!(
                "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, headers) VALUES ('Doc', $1, 'Saved', $2::{payload}, $3) RETURNING id"
            );
            let query = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(id).bind(text).bind(headers);
            query.fetch_one(&stage.pair.legacy.pool).await.unwrap()
        };
        let mut refused = Vec::new();
        let wrong = only_json.iter().chain(if payload == "text" { &only_text[..] } else { &[] });
        for (n, (text, code)) in wrong.enumerate() {
            refused.push((write(&format!("bad {n}"), text, None).await, *code, *text));
        }
        refused.push((write("headers", r#"{"v": 1}"#, Some("{traceparent")).await, "22P02", "headers"));
        let good =
            [r#"{"v": {"b": 1, "a": 2, "a": 3}}"#, "{\"v\": [ 1 ,\n 2 ]}", r#"{"v": 1.10}"#, r#"{"v": 1, "v": 2}"#];
        for text in good {
            write(text, text, Some(r#"{"traceparent": 1}"#)).await;
        }
        let running = stage.start().await;
        stage.drained().await;
        running.stop().await;
        let new: Vec<(String, String)> =
            sqlx::query_as("SELECT id, b::text FROM docs").fetch_all(&stage.pair.new.pool).await.unwrap();
        let new: BTreeMap<_, _> = new.into_iter().collect();
        let expected = [r#"{"a": 3, "b": 1}"#, "[1, 2]", "1.10", "2"];
        for (id, expected) in good.iter().zip(expected) {
            assert_eq!(new.get(*id).map(String::as_str), Some(expected), "{payload}: {id}");
        }
        assert_eq!(new.len(), good.len(), "{payload}: {new:?}");
        let api = Api::start(&stage.config, Vec::new(), None).await;
        for (id, code, text) in refused {
            // As text: what is no number for Postgres is none for this test either.
            let event = api.client.get(&format!("/v1/events/{id}")).await.text;
            let wanted = [r#""status":"failed""#.to_owned(), format!(r#""code":"{code}""#)];
            assert!(wanted.iter().all(|wanted| event.contains(wanted)), "{payload}: {text}: {event}");
        }
        api.stop().await;
    }
}

/// Names that trip whoever puts them into text.
fn odd_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "",
        " ",
        "'",
        "\"",
        "\\",
        "''; DROP TABLE outbox; --",
        "a'b\"c\\d",
        "\\\\",
        "{}",
        "{\"a\"}",
        "NULL",
        "null",
        ",",
        "a,b",
        "(a)",
        "%",
        "_",
        "$1",
        "$$",
        "?",
        "/",
        "..",
        "a/b",
        "%2F",
        "\n",
        "\t\r\n",
        "line\nbreak",
        "\u{1}\u{7f}",
        "🙂👩‍👩‍👧‍👦",
        "é",
        "e\u{301}",
        "שלום",
        "\u{202e}abc",
        "\u{feff}",
        "ß",
        "İ",
        "ﬃ",
        "{{outbox}}",
        "{id}",
        "0",
        "-1",
        "1e400",
        "true",
    ]
    .map(str::to_owned)
    .into();
    names.push("x".repeat(10_000));
    names.push("🙂'\"\\".repeat(1000));
    names
}

#[tokio::test]
async fn aggregate_ids_and_types_and_event_types_may_be_anything() {
    let names = odd_names();
    let stage = Stage::with(|config| {
        config.retry.attempts = 1;
        config.relay.lanes = 3;
        config.relay.batch = 20;
        // The odd names as event types, and (but the empty one, which no entity may take) as aggregate types.
        let action = oracle().events["Happened"].clone();
        config.entities[1].events.extend(names.iter().map(|name| (name.clone(), action.clone())));
        for (n, name) in names.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            let entity = Entity { name: format!("odd {n}"), aggregate_type: name.clone(), ..oracle() };
            config.entities.push(entity);
        }
    })
    .await;
    let payload = |version: usize| json!({"version": version}).to_string();
    let mut failing = Vec::new();
    for (n, name) in names.iter().enumerate() {
        stage.event("Thing", name, name, &payload(1)).await;
        stage.event("Thing", name, "Happened", &payload(2)).await;
        // One that fails, and one behind it.
        let id = format!("{name}!");
        failing.push((stage.event("Thing", &id, name, r#"{"version": "no number"}"#).await, id.clone()));
        stage.event("Thing", &id, name, &payload(n)).await;
    }
    let running = stage.start().await;
    stage.drained().await;
    let count = names.len() as i64;
    assert_eq!((stage.count("failed").await, stage.count("held").await), (count, count));
    stage.oracle_agrees().await;
    // By the API, letter by letter: found by id and by kind, skipped, and what was behind it goes on.
    let api = Api::start(&stage.config, Vec::new(), Some(running.shared.clone())).await;
    for (event, id) in failing {
        let query = format!("/v1/events?status=failed&aggregate_type=Thing&aggregate_id={}", percent(&id));
        let found = api.client.get(&query).await.ok();
        assert_eq!((found["items"].as_array().unwrap().len(), &found["items"][0]["id"]), (1, &json!(event)), "{id:?}");
        assert_eq!(found["items"][0]["aggregate_id"], id);
        let filter = json!({"filter": {"aggregate_id": id, "status": "failed"}, "expected": 1, "reason": "'\"\\ 🙂"});
        assert_eq!(api.client.post("/v1/events/skip", filter).await.ok()["changed"], 1, "{id:?}");
    }
    stage.drained().await;
    assert_eq!((stage.count("held").await, stage.count("skipped").await), (0, count));
    stage.oracle_agrees().await;
    // As aggregate types.
    for name in names.iter().filter(|name| !name.is_empty()) {
        stage.event(name, "of an odd type", "Happened", &payload(7)).await;
    }
    stage.drained().await;
    let applied: i64 =
        stage.pair.new.value("SELECT count(DISTINCT event) FROM applied WHERE aggregate = 'of an odd type'").await;
    assert_eq!(applied, count - 1);
    // Pauses are by name, too.
    for name in names.iter().filter(|name| !name.is_empty()) {
        let body = json!({"aggregate_type": name, "reason": "odd"});
        api.client.post("/v1/pause", body.clone()).await.ok();
        let resumed = api.client.post("/v1/resume", body).await.ok();
        assert_eq!((&resumed["changed"], &resumed["paused"]), (&Value::Bool(true), &json!([])), "{name:?}");
    }
    api.stop().await;
    running.stop().await;
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn no_text_can_hold_a_nul_and_the_api_says_so() {
    let stage = stage().await;
    let insert =
        "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('Doc', $1, 'Saved', '{}')";
    let error = sqlx::query(insert).bind("a\0b").execute(&stage.pair.legacy.pool).await.unwrap_err();
    assert_eq!(error.as_database_error().and_then(|e| e.code()).unwrap_or_default(), "22021");
    let (_, api) = stage.api().await;
    for key in ["aggregate_type", "aggregate_id", "event_type", "cause"] {
        let code = api.client.get(&format!("/v1/events?{key}=a%00b")).await.problem(400);
        assert_eq!(code, "malformed", "{key}");
        let body = json!({"filter": {key: "a\0b"}, "dry_run": true});
        assert_eq!(api.client.post("/v1/events/skip", body).await.problem(400), "malformed", "{key}");
    }
    for path in ["/v1/pause", "/v1/resume"] {
        assert_eq!(
            api.client.post(path, json!({"aggregate_type": "a\0b", "reason": "x"})).await.problem(400),
            "malformed"
        );
        assert_eq!(api.client.post(path, json!({"reason": "a\0b"})).await.problem(400), "malformed");
    }
    assert_eq!(stage.audits().await, 0);
    api.stop().await;
}

#[tokio::test]
async fn names_of_tables_and_columns_may_hold_quotes_capitals_and_spaces() {
    let pair = pair().await;
    pair.new
        .run(
            r#"CREATE SCHEMA "My ""New"" Schema";
               CREATE TABLE "My ""New"" Schema"."Odd 'Table' {x}" ("Key ""K""" text, "a'b" text CHECK ("a'b" <> 'bad'), "SELECT" jsonb, "Ünï$1\" text, PRIMARY KEY ("Key ""K"""));"#,
        )
        .await;
    pair.legacy.run(r#"CREATE SCHEMA "Le""gacy""#).await;
    let odd = TableName { schema: r#"My "New" Schema"#.into(), table: "Odd 'Table' {x}".into() };
    assert_eq!(TableName::parse(&odd.to_string(), "public"), Ok(odd.clone()));
    let stage = Stage::on(pair, |config| {
        config.relay.lanes = 2;
        config.retry.attempts = 1;
        config.legacy.schema = r#"Re"lay {1}"#.into();
        config.new.schema = "Other 'Relay'".into();
        config.legacy.outbox = TableName { schema: r#"Le"gacy"#.into(), table: r#"Out"box 'é'"#.into() };
        let c = &mut config.legacy.columns;
        c.id = r#"I"d"#.into();
        c.event_id = "Event Id".into();
        c.aggregate_type = "'kind'".into();
        c.aggregate_id = "{id}".into();
        c.event_type = "Type".into();
        c.payload = "payload$1".into();
        c.headers = "HEADERS".into();
        c.status = "select".into();
        c.attempts = "%".into();
        c.last_error = r"last\error".into();
        config.entities.push(Entity {
            name: "odd".into(),
            aggregate_type: "Odd".into(),
            table: Some(odd),
            key: vec![r#"Key "K""#.into()],
            replace_by: vec![],
            legacy: None,
            verify: Default::default(),
            mapping: Some(file(
                "odd.sql",
                r#"SELECT aggregate_id AS "Key ""K""", payload->>'a' AS "a'b", payload AS "SELECT", event_type AS "Ünï$1\" FROM event"#,
            )),
            string_payloads: false,
            on_failure: OnFailure::Hold,
            events: [("Saved".to_owned(), Action::Upsert), ("Gone".to_owned(), Action::Delete)].into(),
            line: 3,
        });
    })
    .await;
    let write = async |id: &str, kind: &str, payload: &str| {
        let sql = r#"INSERT INTO "Le""gacy"."Out""box 'é'" ("'kind'", "{id}", "Type", "payload$1") VALUES ('Odd', $1, $2, $3::jsonb)"#;
        sqlx::query(sql).bind(id).bind(kind).bind(payload).execute(&stage.pair.legacy.pool).await.unwrap();
    };
    for (id, kind, payload) in [
        ("1", "Saved", r#"{"a": "x"}"#),
        ("2", "Saved", "{}"),
        ("1", "Saved", r#"{"a": "y"}"#),
        ("2", "Gone", "{}"),
        ("3", "Saved", r#"{"a": "bad"}"#),
    ] {
        write(id, kind, payload).await;
    }
    let running = stage.start().await;
    let statuses = r#"SELECT coalesce(string_agg("select" || ' ' || "%", ', ' ORDER BY "I""d"), '') FROM "Le""gacy"."Out""box 'é'""#;
    eventually(DEADLINE, "four are applied, one waits", || async {
        stage.pair.legacy.value::<String>(statuses).await
            == "processed 0, processed 0, processed 0, processed 0, failed 1"
    })
    .await;
    let rows: String = stage
        .pair
        .new
        .value(r#"SELECT string_agg(format('%s', o), ' ') FROM "My ""New"" Schema"."Odd 'Table' {x}" o"#)
        .await;
    assert_eq!(rows, r#"(1,y,"{""a"": ""y""}",Saved)"#);
    let api = Api::start(&stage.config, Vec::new(), Some(running.shared.clone())).await;
    let failed = api.client.get("/v1/events?status=failed&aggregate_type=Odd").await.ok();
    assert_eq!(failed["items"][0]["aggregate_id"], "3");
    api.client.post("/v1/events/skip", json!({"filter": {"aggregate_type": "Odd"}, "reason": "seen"})).await.ok();
    api.stop().await;
    running.stop().await;
}

/// The same database, but in another encoding.
async fn in_encoding(database: &mut crate::support::Database, encoding: &str) {
    let name = format!("{}_{}", database.name, encoding.to_lowercase());
    let create = format!("CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    database.run(&create).await;
    database.url = database.url.replace(&database.name, &name);
    database.pool = sqlx::PgPool::connect(&database.url).await.unwrap();
    database.name = name;
}

#[tokio::test]
async fn a_new_database_that_cannot_write_what_the_outbox_holds_is_refused_by_init() {
    let mut pair = pair().await;
    in_encoding(&mut pair.new, "LATIN1").await;
    let config = crate::support::stage::config(&pair.legacy.url, &pair.new.url);
    let done = init::init(&config, &pair.legacy.pool, &pair.new.pool, Choices::default()).await;
    let Err(InitError::Refused(why)) = done else { panic!("{done:?}") };
    assert!(why.contains("LATIN1") && why.contains("ENCODING 'UTF8'"), "{why}");
    // Both alike: what one holds the other can write.
    in_encoding(&mut pair.legacy, "LATIN1").await;
    let config = crate::support::stage::config(&pair.legacy.url, &pair.new.url);
    init::init(&config, &pair.legacy.pool, &pair.new.pool, Choices::default()).await.unwrap();
}

#[tokio::test]
async fn a_legacy_database_in_another_encoding_is_read_as_it_is_meant() {
    let mut pair = pair().await;
    in_encoding(&mut pair.legacy, "LATIN1").await;
    pair.new.run(DOCS).await;
    let stage = Stage::on(pair, |config| {
        config.relay.lanes = 1;
        config.entities.push(docs());
    })
    .await;
    stage.event("Doc", "Jürgen", "Saved", r#"{"v": "Müller"}"#).await;
    let running = stage.start().await;
    stage.drained().await;
    let api = Api::start(&stage.config, Vec::new(), Some(running.shared.clone())).await;
    // What this database cannot hold is asked for in vain, and that is the caller's matter.
    assert_eq!(api.client.get("/v1/events?aggregate_id=%F0%9F%99%82").await.problem(400), "malformed");
    assert_eq!(api.client.get("/v1/events?aggregate_id=J%C3%BCrgen").await.ok()["items"].as_array().unwrap().len(), 1);
    api.stop().await;
    running.stop().await;
    let row: String = stage.pair.new.value("SELECT id || t FROM docs").await;
    assert_eq!(row, "JürgenMüller");
}

#[tokio::test]
async fn bytes_that_are_no_utf_8_are_warned_of_and_can_be_mended() {
    let mut pair = pair().await;
    in_encoding(&mut pair.legacy, "SQL_ASCII").await;
    pair.new.run(DOCS).await;
    let stage = Stage::on(pair, |config| {
        config.relay.lanes = 1;
        config.entities.push(docs());
    })
    .await;
    let found = outbox_relay::check::check(&stage.config).await;
    assert!(found.iter().any(|finding| finding.code == "outbox.encoding"), "{found:?}");
    stage.event("Doc", "before", "Saved", r#"{"v": "Müller"}"#).await;
    let latin = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
         VALUES ('Doc', 'latin', 'Saved', ('{\"v\": \"M' || convert_from('\\xfc', 'SQL_ASCII') || 'ller\"}')::jsonb)";
    stage.pair.legacy.run(latin).await;
    let shared = stage.shared().await;
    let refused = format!("{:?}", stage.step(&shared).await);
    assert!(refused.contains("22021"), "{refused}");
    assert_eq!(stage.count("pending").await, 2, "nothing is lost, and nothing blamed");
    let page = include_str!("../../docs/operations.md");
    let part = page.split("## Bytes that are no UTF-8").nth(1).unwrap();
    let sql = part.split("```sql").nth(1).unwrap().split("```").next().unwrap();
    stage.pair.legacy.run(sql).await;
    let running = stage.start().await;
    stage.drained().await;
    running.stop().await;
    let row: String = stage.pair.new.value("SELECT string_agg(id || ' ' || t, ', ' ORDER BY id) FROM docs").await;
    assert_eq!(row, "before Müller, latin Müller");
}

#[tokio::test]
async fn a_time_that_is_none_stops_nobody() {
    let stage = Stage::new().await;
    for (id, time) in [(1, "infinity"), (2, "-infinity"), (3, "290000-01-01"), (4, "4000-01-01 BC")] {
        stage.user(id, "UserCreated", "n", 1).await;
        stage.pair.legacy.run(&format!("UPDATE outbox SET created_at = '{time}' WHERE aggregate_id = '{id}'")).await;
    }
    let running = stage.start().await;
    stage.drained().await;
    let api = Api::start(&stage.config, Vec::new(), Some(running.shared.clone())).await;
    // A DBA's hand.
    stage
        .pair
        .legacy
        .run("UPDATE outbox SET processed_at = 'infinity', next_attempt_at = '-infinity' WHERE aggregate_id IN ('1', '2')")
        .await;
    let listed = api.client.get("/v1/events?status=processed").await.ok();
    assert_eq!(listed["items"].as_array().unwrap().len(), 4);
    for event in listed["items"].as_array().unwrap() {
        api.client.get(&format!("/v1/events/{}", event["id"])).await.ok();
    }
    api.client.get("/v1/backlog").await.ok();
    api.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn an_event_of_100_mb_passes_and_many_large_ones_take_no_more_memory_than_a_batch() {
    const MB: u64 = 1_000_000;
    let stage = Stage::with(|config| {
        config.relay.deadline = std::time::Duration::from_secs(120);
        config.relay.workers = 2;
        config.relay.lanes = 2;
    })
    .await;
    let write = async |from: u32, to: u32, bytes: u64| {
        let sql = format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'User', i::text, 'UserCreated', jsonb_build_object('id', i, 'version', 1, 'name', repeat(md5(i::text), {}))
             FROM generate_series({from}, {to}) i",
            bytes / 32
        );
        stage.pair.legacy.run(&sql).await;
    };
    let child = Child::start(&stage, None);
    let applied = async |users: i64| {
        eventually(6 * DEADLINE, "they are applied", || async { stage.count("processed").await == users }).await;
        child.peak()
    };
    write(1, 100, 1000).await;
    let small = applied(100).await;
    write(101, 160, 5 * MB).await;
    let many = applied(160).await;
    write(161, 161, 100 * MB).await;
    let one = applied(161).await;
    let lengths: String = stage.pair.new.value("SELECT string_agg(DISTINCT length(name)::text, ' ') FROM users").await;
    assert_eq!(lengths.split(' ').collect::<std::collections::BTreeSet<_>>(), ["100000000", "5000000", "992"].into());
    let differ: i64 =
        stage.pair.new.value("SELECT count(*) FROM users WHERE name <> repeat(md5(id::text), length(name) / 32)").await;
    assert_eq!(differ, 0);
    let (Some(small), Some(many), Some(one)) = (small, many, one) else { return };
    eprintln!(
        "peak memory: {} MB, with 60 events of 5 MB {} MB, with one of 100 MB {} MB",
        small / MB,
        many / MB,
        one / MB
    );
    assert!(many < small + 500 * MB, "60 events of 5 MB: {} MB", many / MB);
    assert!(one < small + 900 * MB, "one event of 100 MB: {} MB", one / MB);
}
