//! The rows of the legacy database that entities are made of: no key is passed over, and no row is read before its lane is locked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use outbox_relay::backfill;
use outbox_relay::check;
use outbox_relay::config::{Action, Capture, Entity, LegacyRows, RowsFrom, TableName};
use outbox_relay::event::Lane;
use outbox_relay::lease;
use outbox_relay::redact::Rules;
use outbox_relay::repair::Wanted;
use outbox_relay::source::{Legacy, Names, RowKey, Source};
use outbox_relay::verify::{self, Kind, Outcome};
use sqlx::{AssertSqlSafe, Executor, PgPool};
use tokio_util::sync::CancellationToken;

use crate::repair::repaired;
use crate::support::stage::{Stage, file, users};
use crate::support::{DEADLINE, copying, eventually, pair};
use crate::verify::{found, verified, verify_with};

fn table(name: &str) -> TableName {
    TableName { schema: "public".into(), table: name.into() }
}

fn rows(from: RowsFrom, key: &[&str], aggregate_id: &str) -> LegacyRows {
    LegacyRows {
        from,
        key: key.iter().map(|k| (*k).to_owned()).collect(),
        aggregate_id: aggregate_id.into(),
        capture: Capture::of("User"),
    }
}

fn made_of(rows: LegacyRows) -> Entity {
    Entity { legacy: Some(rows), ..users() }
}

async fn source(stage: &Stage) -> Source {
    outbox_relay::connect::open(&stage.config).await.unwrap().0
}

async fn all_keys(source: &Source, legacy: &Legacy, page: u32) -> Vec<RowKey> {
    let mut keys: Vec<RowKey> = Vec::new();
    loop {
        let found = source.legacy_keys(legacy, keys.last(), None, page).await.unwrap();
        let ended = (found.len() as u32) < page;
        keys.extend(found.into_iter().map(|at| at.key));
        if ended {
            return keys;
        }
    }
}

#[tokio::test]
async fn pages_pass_no_key_over_whatever_its_types() {
    let stage = Stage::new().await;
    stage
        .pair
        .legacy
        .run(
            "CREATE TABLE numbers (id bigint PRIMARY KEY);
             INSERT INTO numbers VALUES (-9223372036854775808), (-1), (0), (1), (7), (9223372036854775807);
             CREATE TABLE pairs (tenant text, \"Line No\" int, PRIMARY KEY (tenant, \"Line No\"));
             INSERT INTO pairs SELECT t, n FROM unnest(ARRAY['', 'a', 'B', 'é', 'it''s \"x\", {y}', 'ß', 'z']) t, generate_series(-1, 1) n;
             CREATE TABLE uuids (id uuid PRIMARY KEY); INSERT INTO uuids SELECT gen_random_uuid() FROM generate_series(1, 20);
             CREATE TABLE times (at timestamptz, n numeric, PRIMARY KEY (at, n));
             INSERT INTO times SELECT '2026-03-29 02:30:00.123456+01'::timestamptz + i * interval '1 hour', i / 3.0 FROM generate_series(-3, 3) i;
             INSERT INTO times VALUES ('infinity', 'NaN'), ('-infinity', 0);
             CREATE TABLE bytes (id bytea PRIMARY KEY, f float8 NOT NULL);
             INSERT INTO bytes VALUES ('\\x', 1), ('\\x00', 2), ('\\xff00', 3);",
        )
        .await;
    let source = source(&stage).await;
    for (name, key, order) in [
        ("numbers", &["id"][..], "id"),
        ("pairs", &["tenant", "Line No"], "tenant, \"Line No\""),
        ("uuids", &["id"], "id"),
        ("times", &["at", "n"], "at, n"),
        ("bytes", &["id"], "id"),
    ] {
        let from = RowsFrom::Table(table(name));
        let legacy = source.legacy(&made_of(rows(from, key, "md5('x')"))).await.unwrap().unwrap();
        let expected: i64 = stage.pair.legacy.value(&format!("SELECT count(*) FROM {name}")).await;
        for page in [1, 2, 3, 100] {
            let keys = all_keys(&source, &legacy, page).await;
            assert_eq!(keys.len() as i64, expected, "{name}: {keys:?}");
            assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len(), "{name}: {keys:?}");
            // Up to a key, and not beyond.
            let until = &keys[keys.len() / 2];
            let below = source.legacy_keys(&legacy, None, Some(until), 100).await.unwrap();
            assert_eq!(below.last().map(|at| &at.key), Some(until), "{name}");
        }
        let first: String = stage
            .pair
            .legacy
            .value(&format!(
                "SELECT {}::text AS first FROM {name} ORDER BY {order} LIMIT 1",
                order.split(',').next().unwrap()
            ))
            .await;
        if name != "times" {
            assert_eq!(all_keys(&source, &legacy, 2).await[0].0[0], first, "{name}");
        }
    }
}

/// Tables of one key column whose type has a length, or is the application's own: name, type, and the key of row `i`.
const TYPED: [(&str, &str, &str, u32); 5] = [
    ("chars", "char(3)", "CASE WHEN i < 3 THEN repeat('A', i) ELSE lpad(to_hex(i), 3, '0') END", 1_200),
    ("bits", "bit(11)", "i::bit(11)", 1_200),
    ("codes", "own.code", "lpad(to_hex(i), 4, '0')", 1_200),
    ("moods", "own.mood", "(enum_range(NULL::own.mood))[i]", 4),
    ("letters", "\"char\"", "chr(64 + i)", 20),
];

#[tokio::test]
async fn keys_of_types_with_a_length_or_of_ones_own_are_read_copied_and_compared_whole() {
    let pair = pair().await;
    let own = "CREATE SCHEMA own; CREATE TYPE own.mood AS ENUM ('so so', 'sad', 'glad', 'Über'); CREATE DOMAIN own.code AS char(4);";
    for database in [&pair.legacy, &pair.new] {
        database.run(own).await;
        for (name, of, ..) in TYPED {
            database.run(&format!("CREATE TABLE {name} (code {of} PRIMARY KEY, n int NOT NULL)")).await;
        }
    }
    for (name, _, key, rows) in TYPED {
        pair.legacy.run(&format!("INSERT INTO {name} SELECT {key}, i FROM generate_series(1, {rows}) i")).await;
    }
    let stage = Stage::on(pair, |config| {
        config.relay.lanes = 1;
        let entity = |(name, ..): &(&str, &str, &str, u32)| {
            Entity::new(name, table(name), &["code"]).made_of(table(name), "code").on("Written", Action::Upsert)
        };
        config.entities = TYPED.iter().map(entity).collect();
    })
    .await;
    let source = source(&stage).await;
    for (entity, (name, _, _, rows)) in stage.config.entities.iter().zip(TYPED) {
        let legacy = source.legacy(entity).await.unwrap().unwrap();
        for page in [1, 7, 500] {
            let keys = all_keys(&source, &legacy, page).await;
            assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), rows as usize, "{name} by {page}");
            assert_eq!(keys.len(), rows as usize, "{name} by {page}");
        }
    }
    let summary = copying::copy(&stage).await;
    let copied: Vec<i64> = summary.copies.iter().map(|copy| copy.rows).collect();
    assert!(summary.is_whole(), "{summary:?}");
    for ((name, _, _, rows), copied) in TYPED.iter().zip(copied) {
        assert_eq!(copied, i64::from(*rows), "{name}");
        let there: i64 = stage.pair.new.value(&format!("SELECT count(*) FROM {name}")).await;
        assert_eq!(there, i64::from(*rows), "{name}");
    }
    let report = verified(&stage).await;
    assert_eq!(report.outcome, Outcome::Equal, "{report:?}");
    // At both ends of the key's order, a row that is missing, and one that differs.
    for (name, ..) in TYPED {
        let at = |nth: u32, back: &str| format!("(SELECT code FROM {name} ORDER BY code {back} OFFSET {nth} LIMIT 1)");
        stage
            .pair
            .new
            .run(&format!(
                "UPDATE {name} SET n = -1 WHERE code IN ({}, {}); DELETE FROM {name} WHERE code IN ({}, {})",
                at(1, ""),
                at(1, "DESC"),
                at(0, ""),
                at(0, "DESC")
            ))
            .await;
    }
    let report = verified(&stage).await;
    for (name, ..) in TYPED {
        let kinds = |kind| report.differences.iter().filter(|d| d.entity == name && d.kind == kind).count();
        let of = report.entities.iter().find(|of| of.entity == name).unwrap();
        assert_eq!((kinds(Kind::MissingInNew), kinds(Kind::Differs)), (2, 2), "{name}: {of:?}");
    }
    repaired(&stage, None, true).await.unwrap();
    assert_eq!(verified(&stage).await.outcome, Outcome::Equal);
}

/// The new row stands under another key than the legacy one, on the other side of where a chunk ends.
#[tokio::test]
async fn rows_whose_key_the_new_table_rounds_are_neither_told_nor_deleted() {
    let pair = pair().await;
    let of = |precision: &str| {
        format!(
            "CREATE TABLE readings (device int, at timestamptz{precision}, amount numeric{precision}, n int, PRIMARY KEY (device, at, amount))"
        )
    };
    pair.legacy.run(&of("")).await;
    pair.new.run(&of("(3)").replace("numeric(3)", "numeric(12,2)")).await;
    pair.legacy
        .run("INSERT INTO readings SELECT 1, timestamptz '2026-01-01Z' + i * interval '10.0006 ms', i + 0.006, i FROM generate_series(1, 5000) i")
        .await;
    let stage = Stage::on(pair, |config| {
        let mut readings =
            Entity::new("Reading", table("readings"), &["device", "at", "amount"]).on("Written", Action::Upsert);
        readings.legacy = Some(rows(RowsFrom::Table(table("readings")), &["device", "at", "amount"], "device::text"));
        config.entities = vec![readings];
    })
    .await;
    assert!(copying::copy(&stage).await.is_whole());
    let report = verified(&stage).await;
    assert_eq!(report.outcome, Outcome::Equal, "{report:?}");
    stage.pair.new.run("DELETE FROM readings WHERE n = 7; UPDATE readings SET n = -1 WHERE n = 8").await;
    let report = verified(&stage).await;
    let kinds: Vec<Kind> = report.differences.iter().map(|d| d.kind).collect();
    assert_eq!(kinds.len(), 2, "{report:?}");
    assert!(kinds.contains(&Kind::MissingInNew) && kinds.contains(&Kind::Differs), "{report:?}");
    let done = repaired(&stage, None, true).await.unwrap();
    assert_eq!((done.written, done.deleted), (2, 0), "{done:?}");
    assert_eq!(verified(&stage).await.outcome, Outcome::Equal);
}

#[tokio::test]
async fn keys_of_an_extensions_type_are_passed_over_by_no_page_and_are_walked_by_their_index() {
    let pair = pair().await;
    let tables = "CREATE TABLE mails (mail citext COLLATE \"C\" PRIMARY KEY, n int NOT NULL);
                  CREATE TABLE theirs (tenant int, mail mail, n int NOT NULL, PRIMARY KEY (tenant, mail));
                  CREATE TABLE twins (mail mail, other citext COLLATE \"C\", n int NOT NULL, PRIMARY KEY (mail, other));";
    let (extension, own) = ("\"An Extension\".citext", "CREATE DOMAIN mail AS citext COLLATE \"C\"; ");
    pair.legacy.run("CREATE SCHEMA \"An Extension\"; CREATE EXTENSION citext SCHEMA \"An Extension\"").await;
    pair.legacy.run(&format!("{own}{tables}").replace("citext", extension)).await;
    pair.new.run(&format!("{own}{tables}").replace("citext", "text")).await;
    // By their bytes: A Z m x. As the type has them: A m x Z.
    pair.legacy
        .run(
            "INSERT INTO mails SELECT m, 1 FROM unnest(ARRAY['m', 'Z', 'A', 'x']) m;
             INSERT INTO theirs SELECT t, m, 1 FROM unnest(ARRAY['m', 'Z', 'A', 'x']) m, generate_series(-1, 1) t;
             INSERT INTO twins SELECT m, o, 1 FROM unnest(ARRAY['m', 'Z', 'A', 'x']) m, unnest(ARRAY['m', 'Z', 'x']) o;",
        )
        .await;
    let of = [("mails", &["mail"][..], 4), ("theirs", &["tenant", "mail"], 12), ("twins", &["mail", "other"], 12)];
    let stage = Stage::on(pair, |config| {
        config.relay.lanes = 1;
        config.entities = of
            .iter()
            .map(|(name, key, _)| {
                let entity = Entity::new(name, table(name), key).on("Written", Action::Upsert);
                Entity { legacy: Some(rows(RowsFrom::Table(table(name)), key, "mail::text")), ..entity }
            })
            .collect();
    })
    .await;
    let source = source(&stage).await;
    let names = Names::new(&stage.config.legacy, stage.config.relay.lanes);
    for (entity, (name, _, expected)) in stage.config.entities.iter().zip(of) {
        let legacy = source.legacy(entity).await.unwrap().unwrap();
        for page in [1, 2, 5, 100] {
            let keys = all_keys(&source, &legacy, page).await;
            assert_eq!(keys.len(), expected, "{name} by {page}: {keys:?}");
            let until = &keys[keys.len() / 2];
            let below = source.legacy_keys(&legacy, None, Some(until), 100).await.unwrap();
            assert_eq!(below.last().map(|at| &at.key), Some(until), "{name}");
        }
        for (statement, sql) in legacy.statements(&names) {
            let types = if statement.starts_with("compared") { "(bigint)" } else { "" };
            stage.pair.legacy.run(&format!("PREPARE {statement} {types} AS {sql}; DEALLOCATE {statement}")).await;
        }
        let keys = legacy.statements(&names).into_iter().find(|(statement, _)| *statement == "keys").unwrap().1;
        let parts =
            entity.key.iter().map(|part| if part == "tenant" { "0" } else { "m" }).collect::<Vec<_>>().join(",");
        let script = format!(
            "BEGIN; {} SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; PREPARE walk AS {keys};
             EXPLAIN EXECUTE walk (10, '{{{parts}}}', '{{{parts}}}'); DEALLOCATE walk; ROLLBACK",
            legacy.settings()
        );
        let plan = stage.pair.legacy.pool.fetch_all(sqlx::raw_sql(AssertSqlSafe(script))).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| sqlx::Row::get(row, 0)).collect();
        assert!(plan.iter().any(|line| line.contains("Index Cond:")), "{name}: {plan:#?}");
    }
    let summary = copying::copy(&stage).await;
    assert!(summary.is_whole(), "{summary:?}");
    let report = verified(&stage).await;
    assert_eq!(report.outcome, Outcome::Equal, "{report:?}");
}

#[tokio::test]
async fn a_sample_reads_a_part_of_a_large_table_that_nobody_analysed() {
    let pair = pair().await;
    let large = "CREATE TABLE large (id bigint PRIMARY KEY, note text) PARTITION BY RANGE (id);
                 CREATE TABLE large_0 PARTITION OF large FOR VALUES FROM (0) TO (1000000) WITH (autovacuum_enabled = false);
                 INSERT INTO large SELECT i, repeat('x', 200) FROM generate_series(1, 60000) i";
    pair.legacy.run(large).await;
    pair.new.run(large).await;
    let stage = Stage::on(pair, |config| {
        let large = Entity::new("Large", table("large"), &["id"]).made_of(table("large"), "id");
        config.entities = vec![large.on("Written", Action::Upsert)];
    })
    .await;
    let sample = verify::Options { sample: Some(100), ..verify::Options::default() };
    let report = verify_with(&stage, sample).await;
    assert_eq!(report.outcome, Outcome::Equal, "{report:?}");
    let read = "SELECT coalesce(sum(seq_tup_read), 0)::bigint FROM pg_stat_user_tables WHERE relname = 'large_0'";
    for database in [&stage.pair.legacy, &stage.pair.new] {
        let told = || async { database.value::<i64>(read).await > 0 };
        eventually(DEADLINE * 2, "the server counts what was read", told).await;
        let rows: i64 = database.value(read).await;
        assert!(rows < 10_000, "{rows} rows were read");
    }
}

#[tokio::test]
async fn rows_are_read_whole_in_the_lane_and_the_same_whatever_the_roles_settings() {
    let stage = Stage::with(|config| config.relay.lanes = 1).await;
    stage
        .pair
        .legacy
        .run(
            "CREATE TABLE people (id int PRIMARY KEY, at timestamptz, span interval, raw bytea, big numeric, f float8);
             INSERT INTO people VALUES (0, '2026-01-01 12:00+05', '1 day 2 hours', '\\xdead', 12345678901234567890.10, 0.1), (-5, NULL, NULL, NULL, NULL, NULL);
             DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET TimeZone = ''Asia/Tokyo''', current_database());
             EXECUTE format('ALTER DATABASE %I SET IntervalStyle = ''iso_8601''', current_database());
             EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database());
             EXECUTE format('ALTER DATABASE %I SET extra_float_digits = -10', current_database()); END $$;",
        )
        .await;
    let (source, target) = outbox_relay::connect::open(&stage.config).await.unwrap();
    let entity = users().made_of(table("people"), "id");
    let legacy = source.legacy(&entity).await.unwrap().unwrap();
    let taken = lease::take_healed(&source, &target, Lane(0), Duration::from_secs(30), &[], 1000).await.unwrap();
    let (mut lane, other) = taken.expect("the lane");
    let keys: Vec<RowKey> = ["0", "-5", "99"].map(|id| RowKey(vec![id.to_owned()])).into();
    let mut found = lane.legacy_rows(&legacy, &keys, 1 << 20).await.unwrap();
    found.sort_by_key(|row| row.at.key.clone());
    assert_eq!(found.len(), 2, "{found:?}");
    // As jsonb, which the target reads, it is what capture writes and verification compares.
    let payload = found[1].payload.clone().unwrap();
    let read: String = stage.pair.new.value(&format!("SELECT '{payload}'::jsonb::text")).await;
    let expected = r#"{"f": 0.1, "at": "2026-01-01T07:00:00+00:00", "id": 0, "big": 12345678901234567890.10, "raw": "\\xdead", "span": "1 day 02:00:00"}"#;
    assert_eq!(read, expected);
    assert_eq!((found[0].at.aggregate_id.as_deref(), found[0].at.lane), (Some("-5"), Some(Lane(0))));
    // Beyond the bytes that were asked for there is a key without a row, but never nothing at all.
    let bounded = lane.legacy_rows(&legacy, &keys, 1).await.unwrap();
    assert_eq!(bounded.iter().filter(|row| row.payload.is_some()).count(), 1, "{bounded:?}");
    other.abandon().await;
    lane.release_lease().await;
}

#[tokio::test]
async fn row_security_that_would_hide_rows_is_an_error() {
    let stage = Stage::new().await;
    let role = format!("reader_{}", uuid::Uuid::new_v4().simple());
    stage
        .pair
        .legacy
        .run(&format!(
            "CREATE TABLE secret (id int PRIMARY KEY); INSERT INTO secret VALUES (1), (2);
             ALTER TABLE secret ENABLE ROW LEVEL SECURITY; ALTER TABLE secret FORCE ROW LEVEL SECURITY;
             CREATE ROLE {role}; GRANT SELECT ON secret TO {role};",
        ))
        .await;
    let source = source(&stage).await;
    let legacy = source.legacy(&users().made_of(table("secret"), "id")).await.unwrap().unwrap();
    let sql = format!("BEGIN; SET LOCAL ROLE {role}; {} SELECT * FROM public.secret", legacy.settings());
    let mut connection = stage.pair.legacy.pool.acquire().await.unwrap();
    let error = connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap_err();
    drop(connection.detach());
    assert!(error.to_string().contains("row-level security"), "{error}");
    stage.pair.legacy.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn an_aggregate_is_open_as_long_as_any_event_of_it_is_not_applied() {
    let stage = Stage::with(|config| config.relay.lanes = 1).await;
    let statuses = ["pending", "retry", "held", "failed", "processed", "skipped"];
    for status in statuses {
        let id = stage.event("User", status, "UserUpdated", "{}").await;
        stage.event("Thing", "absent", "Happened", "{}").await;
        stage.pair.legacy.run(&format!("UPDATE outbox SET status = '{status}' WHERE id = {id}")).await;
    }
    stage.pair.legacy.run("CREATE TABLE users (id text PRIMARY KEY)").await;
    stage.pair.legacy.run("UPDATE outbox SET payload = '{\"id\": \"seven\"}' WHERE status = 'pending'").await;
    let (source, target) = outbox_relay::connect::open(&stage.config).await.unwrap();
    let taken = lease::take_healed(&source, &target, Lane(0), Duration::from_secs(30), &[], 1000).await.unwrap();
    let (mut lane, _other) = taken.expect("the lane");
    let mut ids = statuses.to_vec();
    ids.push("absent");
    let legacy = source.legacy(&users().made_of(table("users"), "id")).await.unwrap().unwrap();
    let whole = ["UserUpdated".to_owned()];
    let open = lane.open_aggregates(&legacy, &ids, &whole).await.unwrap();
    assert_eq!(open.pending.keys().collect::<Vec<_>>(), ["pending"]);
    let bringing = open.pending["pending"].clone().expect("the event that brings it");
    assert_eq!(bringing.key, [Some("seven".to_owned())]);
    assert!(source.applied(&legacy, &[bringing.event], &whole).await.unwrap().is_empty());
    let waiting: BTreeMap<&str, bool> = open.waiting.iter().map(|(id, first)| (id.as_str(), first.failed)).collect();
    assert_eq!(waiting, [("retry", false), ("held", false), ("failed", true)].into());
    assert!(!open.too_many);
}

#[tokio::test]
async fn an_entity_may_be_made_of_a_join_and_every_statement_is_understood() {
    let stage = Stage::new().await;
    stage
        .pair
        .legacy
        .run(
            "CREATE TABLE users (tenant text, id int, name text, PRIMARY KEY (tenant, id));
             CREATE TABLE profiles (tenant text, user_id int, bio text, PRIMARY KEY (tenant, user_id));
             INSERT INTO users SELECT 't' || i % 3, i, 'n' || i FROM generate_series(1, 30) i;
             INSERT INTO profiles SELECT tenant, id, 'about ' || name FROM users WHERE id % 2 = 0;",
        )
        .await;
    let join = file(
        "legacy/users.sql",
        "SELECT u.tenant, u.id, u.name, p.bio -- a comment; at the end\nFROM users u LEFT JOIN profiles p ON (p.tenant, p.user_id) = (u.tenant, u.id) -- and here\n;",
    );
    let source = source(&stage).await;
    let entity = made_of(rows(RowsFrom::Query(join), &["tenant", "id"], "tenant || '-' || id"));
    let legacy = source.legacy(&entity).await.unwrap().unwrap();
    assert_eq!(legacy.key_types, ["text", "integer"]);
    let page = source.legacy_keys(&legacy, None, None, 4).await.unwrap();
    assert_eq!(page[3].aggregate_id.as_deref(), Some("t0-12"), "{page:?}");
    assert_eq!(all_keys(&source, &legacy, 7).await.len(), 30);
    let names = Names::new(&stage.config.legacy, stage.config.relay.lanes);
    let mut known: BTreeSet<String> = BTreeSet::new();
    for (name, sql) in legacy.statements(&names) {
        // It stands within the comparison's statement, whose $1 is not its own.
        let types = if name.starts_with("compared") { "(bigint)" } else { "" };
        stage.pair.legacy.run(&format!("PREPARE {name} {types} AS {sql}; DEALLOCATE {name}")).await;
        known.insert(name.to_owned());
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/legacy");
    let there = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for path in there {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !known.contains(&name) {
            let sql = std::fs::read_to_string(&path).unwrap();
            stage.pair.legacy.run(&format!("PREPARE \"{name}\" AS {sql}; DEALLOCATE \"{name}\"")).await;
        }
    }
}

/// A user with a profile; one without is none of its rows.
const PEOPLE: &str =
    "SELECT u.id, u.name || ': ' || p.about AS name, u.version FROM users u JOIN profiles p ON p.user_id = u.id";

/// What the application does to a row of either table, in one transaction: it locks the row whose key it is, changes what it wants, and
/// writes the whole row of the join as its event; or that it is gone, if it is.
fn application() -> String {
    format!(
        "CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, version int NOT NULL);
         CREATE TABLE profiles (user_id bigint PRIMARY KEY, about text NOT NULL);
         INSERT INTO users SELECT i, 'n' || i, 1 FROM generate_series(1, 3000) i;
         INSERT INTO profiles SELECT id, 'about ' || id FROM users WHERE id % 5 <> 0;
         CREATE FUNCTION change(n bigint, what bigint) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             UPDATE users SET version = version + 1 WHERE id = n;
             CASE what
                 WHEN 0 THEN UPDATE users SET name = 'v' || version WHERE id = n;
                 WHEN 1 THEN UPDATE profiles SET about = about || '.' WHERE user_id = n;
                 WHEN 2 THEN DELETE FROM profiles WHERE user_id = n;
                 ELSE INSERT INTO profiles VALUES (n, 'back') ON CONFLICT DO NOTHING;
             END CASE;
             INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'User', id::text, 'UserUpdated', to_jsonb(people) FROM ({PEOPLE}) AS people WHERE id = n;
             IF NOT FOUND THEN
                 INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
                 VALUES ('User', n::text, 'UserDeleted', jsonb_build_object('id', n));
             END IF;
         END $$"
    )
}

/// Changes even rows, hundreds a second and every other time the same one, until told to end. How many changes.
async fn change(application: PgPool, writer: i64, stop: CancellationToken) -> i64 {
    let mut changes = 0;
    while !stop.is_cancelled() {
        let id = if changes % 2 == 0 { 2 } else { changes * 7919 % 1500 * 2 + 2 };
        let what = (changes + writer) % 4;
        let sql = format!("SELECT change({id}, {what})");
        application.execute(AssertSqlSafe(sql)).await.expect("the application writes");
        changes += 1;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    changes
}

#[tokio::test]
async fn an_entity_of_a_join_is_copied_found_equal_or_not_and_repaired_while_either_table_changes() {
    let stage = Stage::on(pair().await, |config| {
        config.entities[0] = made_of(rows(RowsFrom::Query(file("legacy/people.sql", PEOPLE)), &["id"], "id::text"));
        config.backfill.lock_time = Duration::from_millis(20);
    })
    .await;
    stage.pair.legacy.run(&application()).await;
    stage.pair.new.run(copying::WATCH).await;
    let relay = stage.start().await;
    let stop = CancellationToken::new();
    let writers = [0, 1].map(|n| tokio::spawn(change(stage.pair.legacy.pool.clone(), n, stop.clone())));

    let patiently = backfill::Options { patience: DEADLINE, ..backfill::Options::default() };
    let copied = copying::copy_with(&stage, &patiently).await;
    assert!(copied.is_whole(), "{copied:?}");
    for pass in 0..3 {
        let report = verified(&stage).await;
        assert_eq!((report.outcome, report.entities[0].differences()), (Outcome::Equal, 0), "{pass}: {report:#?}");
    }

    // Rows that nobody writes: wrong, lost, one that is in neither table, and one that is in the first alone.
    let faults =
        "UPDATE users SET name = 'wrong' WHERE id = 1; DELETE FROM users WHERE id = 3; DELETE FROM gone WHERE id = 3;
         INSERT INTO users VALUES (9001, 'nobody', 1), (15, 'without a profile', 1)";
    stage.pair.new.run(faults).await;
    let report = verified(&stage).await;
    let of = |kind, key: &str| (kind, key.to_owned());
    let expected = [
        of(Kind::MissingInNew, "3"),
        of(Kind::MissingInLegacy, "15"),
        of(Kind::MissingInLegacy, "9001"),
        of(Kind::Differs, "1"),
    ];
    assert_eq!(found(&report), expected, "{report:#?}");
    let wrong = report.differences.iter().find(|of| of.kind == Kind::Differs).unwrap();
    assert_eq!(verify::report::line(wrong), "users 1 differs: name: legacy \"n1: about 1\", new \"wrong\"");
    let planned = repaired(&stage, None, false).await.unwrap();
    assert_eq!((planned.written, planned.deleted, planned.left), (2, 2, 0), "{planned:?}");
    assert_eq!(found(&verified(&stage).await), expected, "nothing was changed");
    let done = repaired(&stage, None, true).await.unwrap();
    assert_eq!((done.written, done.deleted, done.left), (2, 2, 0), "{done:?}");
    let after = verified(&stage).await;
    assert_eq!((after.outcome, after.entities[0].differences()), (Outcome::Equal, 0), "{after:#?}");

    stop.cancel();
    for writer in writers {
        let changes = writer.await.unwrap();
        assert!(changes > 100, "the application hardly wrote: {changes} changes");
    }
    stage.drained().await;
    relay.stop().await;
    assert_eq!(stage.count("failed").await + stage.count("held").await, 0);
    let last = verified(&stage).await;
    assert_eq!((last.outcome, last.entities[0].waiting), (Outcome::Equal, 0), "{last:#?}");
    let join: Vec<(i64, String, i32)> = sqlx::query_as(AssertSqlSafe(format!("{PEOPLE} ORDER BY id")))
        .fetch_all(&stage.pair.legacy.pool)
        .await
        .unwrap();
    assert_eq!(copying::rows(&stage.pair.new).await, join);
    let back: i64 = stage.pair.new.value("SELECT count(*) FROM went_back").await;
    assert_eq!(back, 0, "rows of the new table went back");
}

/// A join whose key is not unique, and one whose key is NULL where there is nothing to join.
const TWICE: &str = "SELECT u.id, u.name, n AS version FROM users u, generate_series(1, 2) n WHERE n = 1 OR u.id = 7";
const NAMELESS: &str = "SELECT o.id, u.name, 1 AS version FROM users u LEFT JOIN users o ON o.id = u.id AND o.id <> 7";

/// What a copy, a verification, a sample and a repair say of rows that this query yields, and what the reports and jobs keep of it.
async fn refused(query: &str, aggregate_id: &str, hidden: bool) -> (Vec<String>, String, i64) {
    let stage = Stage::on(pair().await, |config| {
        config.entities[0] = made_of(rows(RowsFrom::Query(file("legacy/users.sql", query)), &["id"], aggregate_id));
        if hidden {
            let rules = Rules { paths: vec!["User: $.id".parse().unwrap()], ..Rules::clone(&config.redact) };
            config.redact = rules.into();
        }
    })
    .await;
    stage.pair.legacy.run("CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL)").await;
    stage.pair.legacy.run("INSERT INTO users SELECT i, 'n' || i FROM generate_series(1, 20) i").await;
    // Its rows stand there already, so that nothing but the key is wrong.
    stage.pair.new.run("INSERT INTO users SELECT i, 'n' || i, 1 FROM generate_series(1, 20) i").await;
    let stop = CancellationToken::new();
    let copied = backfill::run(&stage.config, &backfill::Options::default(), &|_| {}, &stop).await;
    let mut said = vec![copied.unwrap_err().to_string()];
    for sample in [None, Some(100)] {
        let options = verify::Options { sample, ..verify::Options::default() };
        let report = verify_with(&stage, options).await;
        assert_eq!(report.outcome, Outcome::CouldNot, "{report:?}");
        said.extend(report.entities[0].message.clone());
    }
    let keys = Wanted::Keys(vec![RowKey(vec!["7".to_owned()])]);
    said.push(repaired(&stage, Some(&keys), true).await.unwrap_err().to_string());
    let kept = "SELECT concat((SELECT string_agg(report::text, '') FROM outbox_relay.verify_entity), \
                (SELECT string_agg(message, '') FROM outbox_relay.job))";
    let kept = stage.pair.new.value(kept).await;
    (said, kept, stage.pair.new.value("SELECT count(*) FROM users WHERE version <> 1").await)
}

#[tokio::test]
async fn a_query_whose_key_does_not_tell_its_rows_apart_is_neither_copied_nor_verified_nor_repaired() {
    let (said, _, written) = refused(TWICE, "id::text", false).await;
    let expected = "two rows of legacy/users.sql have the same key, id = 7 (legacy.key_repeated)";
    assert!(said.len() == 4 && said.iter().all(|said| said.contains(expected)), "{said:#?}");
    assert_eq!(written, 0);
    let (said, kept, _) = refused(TWICE, "id::text", true).await;
    let expected = "have the same key, id = [redacted] (legacy.key_repeated)";
    assert!(said.iter().all(|said| said.contains(expected)) && !kept.contains("id = 7"), "{said:#?} {kept}");
    let (said, _, _) = refused(NAMELESS, "'a'", false).await;
    let expected = "id of the key is NULL in a row of legacy/users.sql (legacy.key_null)";
    assert!(said.iter().all(|said| said.contains(expected)), "{said:#?}");
}

#[tokio::test]
async fn a_table_whose_key_is_not_its_own_is_neither_copied_nor_verified() {
    let stage = Stage::on(pair().await, |config| {
        config.entities[0] = made_of(rows(RowsFrom::Table(table("users")), &["code"], "id::text"));
    })
    .await;
    stage.pair.legacy.run("CREATE TABLE users (id int PRIMARY KEY, code text)").await;
    for (index, expected) in [
        ("SELECT 1", "no unique index on public.users covers the key code (legacy.key)"),
        ("CREATE UNIQUE INDEX ON users (code)", "code of the key may be NULL in public.users (legacy.key)"),
    ] {
        stage.pair.legacy.run(index).await;
        let (options, stop) = (backfill::Options::default(), CancellationToken::new());
        let said = backfill::run(&stage.config, &options, &|_| {}, &stop).await.unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
        let report = verify_with(&stage, verify::Options::default()).await;
        assert!(report.entities[0].message.as_ref().is_some_and(|said| said.contains(expected)), "{report:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_an_entitys_rows_is_found_by_check() {
    let mut stage = Stage::on(pair().await, |_| {}).await;
    stage
        .pair
        .legacy
        .run("CREATE TABLE users (id int PRIMARY KEY, code text, name text NOT NULL); INSERT INTO users VALUES (7, 'a', 'x')")
        .await;
    let codes = async |stage: &Stage| -> Vec<String> {
        check::check(&stage.config).await.into_iter().map(|finding| finding.code).collect()
    };
    for (rows, expected) in [
        (rows(RowsFrom::Table(table("users")), &["id"], "id::text"), &[][..]),
        (rows(RowsFrom::Table(table("usres")), &["id"], "id::text"), &["legacy.table"]),
        (rows(RowsFrom::Table(table("users")), &["idd"], "id::text"), &["legacy.rows"]),
        (rows(RowsFrom::Table(table("users")), &["id"], "id::txt"), &["legacy.rows"]),
        (rows(RowsFrom::Table(table("users")), &["code"], "id::text"), &["legacy.key", "legacy.key"]),
        (rows(RowsFrom::Table(table("users")), &["name"], "id::text"), &["legacy.key"]),
        (rows(RowsFrom::Query(file("q.sql", "SELECT 1; SELECT 2")), &["id"], "id::text"), &["legacy.rows"]),
        (rows(RowsFrom::Query(file("q.sql", "TABLE users")), &["id"], "id::text"), &[]),
        (rows(RowsFrom::Query(file("q.sql", TWICE)), &["id"], "id::text"), &["legacy.key_repeated"]),
        (rows(RowsFrom::Query(file("q.sql", NAMELESS)), &["id"], "'a'"), &["legacy.key_null"]),
    ] {
        stage.config.entities[0].legacy = Some(rows.clone());
        assert_eq!(codes(&stage).await, expected, "{rows:?}");
    }
    // Events say another aggregate than the expression gives for their row.
    stage.event("User", "user-7", "UserUpdated", r#"{"id": 7, "name": "x", "version": 1}"#).await;
    stage.config.entities[0].legacy = Some(rows(RowsFrom::Table(table("users")), &["id"], "id::text"));
    assert_eq!(codes(&stage).await, ["legacy.aggregate_id"]);
    stage.config.entities[0].legacy = Some(rows(RowsFrom::Table(table("users")), &["id"], "'user-' || id"));
    assert_eq!(codes(&stage).await, Vec::<String>::new());
}
