//! verify: every difference is found, and none is told that is not there, whatever is written meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outbox_relay::config::{Action, DatabaseUrl, Entity, Ignored, TableName, Tolerance};
use outbox_relay::connect;
use outbox_relay::operator::{By, Operator, What};
use outbox_relay::target::ReportId;
use outbox_relay::verify::{self, Far, Kind, Options, Outcome, Report};
use serde_json::json;
use sqlx::Connection as _;
use tokio_util::sync::CancellationToken;

use crate::run::Relay;
use crate::support::copying::install;
use crate::support::program::{Ended, ended, folder_of, said};
use crate::support::stage::{Stage, file, users};
use crate::support::{DEADLINE, Pair, eventually, pair};

pub(crate) fn table(name: &str) -> TableName {
    TableName { schema: "public".into(), table: name.into() }
}

/// Users, made of a legacy table of that name.
pub(crate) async fn stage_of(rows: u32) -> Stage {
    let pair = pair().await;
    pair.legacy
        .run(&format!(
            "CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, version int NOT NULL);
             INSERT INTO users SELECT i, 'name ' || i, 1 FROM generate_series(1, {rows}) i"
        ))
        .await;
    let stage = Stage::on(pair, |config| config.entities[0] = users().made_of(table("users"), "id")).await;
    stage.pair.new.run(&format!("INSERT INTO users SELECT i, 'name ' || i, 1 FROM generate_series(1, {rows}) i")).await;
    stage
}

pub(crate) async fn verify_with(stage: &Stage, options: Options) -> Report {
    let (source, target) = connect::open(&stage.config).await.unwrap();
    let stop = CancellationToken::new();
    verify::verify(&stage.config, &source, &target, &options, &stop, &|_| {}).await.unwrap()
}

pub(crate) async fn verified(stage: &Stage) -> Report {
    verify_with(stage, Options::default()).await
}

/// Kind and key of each.
pub(crate) fn found(report: &Report) -> Vec<(Kind, String)> {
    let key =
        |key: &[Option<String>]| key.iter().map(|k| k.clone().unwrap_or("NULL".into())).collect::<Vec<_>>().join("/");
    let mut found: Vec<_> = report.differences.iter().map(|d| (d.kind, key(&d.key))).collect();
    found.sort();
    found
}

fn of(kind: Kind, keys: &[&str]) -> Vec<(Kind, String)> {
    keys.iter().map(|k| (kind, (*k).to_owned())).collect()
}

#[tokio::test]
async fn a_row_of_the_new_table_with_null_in_its_key_is_too_much() {
    for rows in [10, 25_000] {
        let stage = stage_of(rows).await;
        stage
            .pair
            .new
            .run(
                "ALTER TABLE users DROP CONSTRAINT users_pkey, ADD UNIQUE (id), ALTER id DROP NOT NULL;
                 INSERT INTO users VALUES (NULL, 'nobody', 1), (NULL, 'nobody else', 1)",
            )
            .await;
        let report = verified(&stage).await;
        let of = &report.entities[0];
        assert_eq!(
            (report.outcome, of.missing_in_legacy, of.differences()),
            (Outcome::Differs, 2, 2),
            "{rows}: {report:?}"
        );
        assert!(
            of.message.as_ref().unwrap().starts_with("2 rows of the new table with NULL in the key (id)"),
            "{of:?}"
        );
        assert!(verify::render(&report).contains("NULL in the key"), "{report:?}");
        stage.pair.new.run("DELETE FROM users WHERE id IS NULL").await;
        let report = verified(&stage).await;
        assert_eq!((report.outcome, &report.entities[0].message), (Outcome::Equal, &None), "{report:?}");
    }
}

#[tokio::test]
async fn equal_tables_are_equal_and_every_kind_of_difference_is_found_at_every_end() {
    let stage = stage_of(25_000).await;
    let report = verified(&stage).await;
    assert_eq!(report.outcome, Outcome::Equal, "{report:?}");
    assert_eq!((report.entities[0].legacy_rows, report.entities[0].new_rows), (25_000, 25_000));
    assert_eq!((report.entities[0].method.as_str(), report.entities[0].looked_again), ("ranges", 0));
    assert!(report.entities[0].mapped_by_legacy);
    stage
        .pair
        .new
        .run(
            "UPDATE users SET name = 'wrong' WHERE id IN (1, 12345, 25000); DELETE FROM users WHERE id IN (2, 777, 24999);
             INSERT INTO users VALUES (-9223372036854775808, 'low', 1), (0, 'low', 1), (25001, 'high', 1), (9223372036854775807, 'high', 1)",
        )
        .await;
    stage.pair.legacy.run("DELETE FROM users WHERE id = 13000").await;
    let report = verified(&stage).await;
    assert_eq!(report.outcome, Outcome::Differs);
    let expected = [
        of(Kind::MissingInNew, &["2", "24999", "777"]),
        of(Kind::MissingInLegacy, &["-9223372036854775808", "0", "13000", "25001", "9223372036854775807"]),
        of(Kind::Differs, &["1", "12345", "25000"]),
    ];
    assert_eq!(found(&report), expected.concat());
    let differing = report.differences.iter().find(|d| d.key[0].as_deref() == Some("12345")).unwrap();
    assert_eq!(verify::report::line(differing), "users 12345 differs: name: legacy \"name 12345\", new \"wrong\"");
    let e = &report.entities[0];
    assert_eq!((e.missing_in_new, e.missing_in_legacy, e.differing, e.refused), (3, 5, 3, 0));
    // It is kept, and told.
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let reports = target.reports(None, 10).await.unwrap();
    let kept: Vec<_> = reports.iter().map(|r| (r.outcome.as_deref().unwrap(), r.differences)).collect();
    assert_eq!(kept, [("differs", Some(11)), ("equal", Some(0))]);
    assert_eq!(target.report_differences(ReportId(report.id)).await.unwrap().len(), 11);
    // A sample as large as the tables finds what a full pass finds.
    let sampled = verify_with(&stage, Options { sample: Some(50_000), ..Options::default() }).await;
    assert_eq!(found(&sampled), expected.concat());
}

/// The legacy rows that are drawn all hand their keys through; the one that does not yields most of what is drawn of the new table.
#[tokio::test]
async fn a_sample_calls_nothing_too_much_that_a_legacy_row_yields_which_was_not_drawn() {
    let mut stage = stage_of(1_000).await;
    stage.pair.new.run("INSERT INTO users SELECT i, 'of the first', 1 FROM generate_series(10001, 30000) i").await;
    let several = "SELECT (payload->>'id')::bigint AS id, payload->>'name' AS name, payload->>'version' AS version FROM event
                   UNION ALL SELECT i, 'of the first', '1' FROM event, generate_series(10001, 30000) i WHERE payload->>'id' = '1'";
    let handing_through = stage.config.entities[0].mapping.replace(file("mappings/user.sql", several));
    let sample = || Options { sample: Some(100), ..Options::default() };
    let report = verify_with(&stage, sample()).await;
    let of = &report.entities[0];
    assert_eq!((report.outcome, found(&report), of.new_rows), (Outcome::Equal, vec![], 0), "{report:?}");
    assert!(of.message.as_ref().unwrap().starts_with("only legacy rows were sampled"), "{report:?}");
    // Where all are handed through, the same rows are nobody's.
    stage.config.entities[0].mapping = handing_through;
    let report = verify_with(&stage, sample()).await;
    let of = &report.entities[0];
    assert_eq!((report.outcome, of.new_rows, &of.message), (Outcome::Differs, 100, &None), "{report:?}");
    assert!(of.missing_in_legacy > 20 && of.missing_in_legacy == of.differences(), "{report:?}");
}

#[tokio::test]
async fn a_sample_of_which_no_legacy_row_is_drawn_looks_at_the_new_table_all_the_same() {
    let stage = stage_of(1_000).await;
    let sample = || Options { sample: Some(100), ..Options::default() };
    // By what the servers think there is, next to none of the pages would be read.
    for database in [&stage.pair.legacy, &stage.pair.new] {
        database.run("UPDATE pg_class SET reltuples = 1e9 WHERE oid = 'users'::regclass").await;
    }
    let report = verify_with(&stage, sample()).await;
    let of = &report.entities[0];
    assert_eq!((report.outcome, of.legacy_rows, of.new_rows), (Outcome::Equal, 100, 100), "{report:?}");
    stage.pair.legacy.run("DELETE FROM users").await;
    let report = verify_with(&stage, sample()).await;
    let of = &report.entities[0];
    assert_eq!((report.outcome, of.legacy_rows, of.new_rows), (Outcome::Differs, 0, 100), "{report:?}");
    assert_eq!((of.missing_in_legacy, of.differences()), (100, 100), "{report:?}");
}

#[tokio::test]
async fn a_sample_tells_rows_with_null_in_their_key_and_is_not_ended_by_them() {
    let stage = stage_of(10).await;
    let nobody = "ALTER TABLE users DROP CONSTRAINT users_pkey, ADD UNIQUE (id), ALTER id DROP NOT NULL;
                  INSERT INTO users VALUES (NULL, 'nobody', 1), (NULL, 'nobody else', 1)";
    stage.pair.new.run(nobody).await;
    let report = verify_with(&stage, Options { sample: Some(100), ..Options::default() }).await;
    let of = &report.entities[0];
    assert_eq!((report.outcome, of.missing_in_legacy, of.new_rows), (Outcome::Differs, 2, 10), "{report:?}");
    assert!(of.message.as_ref().unwrap().contains("NULL in the key (id)"), "{of:?}");
}

/// Of an integer, a uuid or a bigint no legacy row can have such a key.
#[tokio::test]
async fn a_row_whose_key_the_legacy_types_do_not_take_is_told_and_deleted_and_hides_no_other() {
    let text = "SELECT payload->>'id' AS id, payload->>'name' AS name FROM event";
    let far = "ffffffff-ffff-ffff-ffff-ffffffffffff";
    for (legacy, new, key, mapping, too_much) in [
        ("int", "bigint", "i", None, ["3000000000", "77777"]),
        ("bigint", "text", "i", Some(text), ["77777", "abc"]),
        ("uuid", "text", "md5(i::text)::uuid", Some(text), ["abc", far]),
    ] {
        let rows = format!("SELECT {key}, 'n' || i FROM generate_series(1, 3000) i");
        let stage = stage_with(
            &format!("CREATE TABLE old (id {legacy} PRIMARY KEY, name text); INSERT INTO old {rows}"),
            &format!(
                "CREATE TABLE things (id {new} PRIMARY KEY, name text); INSERT INTO things {rows};
                 INSERT INTO things VALUES ('{}', 'x'), ('{}', 'x')",
                too_much[0], too_much[1]
            ),
            thing(mapping, &["id"]),
        )
        .await;
        for options in [Options { sample: Some(10_000), ..Options::default() }, Options::default()] {
            let report = verify_with(&stage, options).await;
            assert_eq!(found(&report), of(Kind::MissingInLegacy, &too_much), "{legacy}: {report:?}");
        }
        let done = crate::repair::repaired(&stage, None, true).await.unwrap();
        assert_eq!((done.written, done.deleted, done.left), (0, 2, 0), "{legacy}: {done:?}");
        assert_eq!(verified(&stage).await.outcome, Outcome::Equal, "{legacy}");
    }
}

/// A chunk ends at a legacy key, whatever the new key's type holds.
#[tokio::test]
async fn a_legacy_key_that_the_new_type_does_not_take_is_refused_and_hides_no_other() {
    for new in ["integer", "smallint"] {
        let stage = stage_with(
            "CREATE TABLE old (id bigint PRIMARY KEY, name text); INSERT INTO old SELECT i, 'n' || i FROM generate_series(1, 3000) i;
             INSERT INTO old VALUES (-3000000000, 'x'), (3000000000, 'x'), (9000000000, 'x')",
            &format!(
                "CREATE TABLE things (id {new} PRIMARY KEY, name text);
                 INSERT INTO things SELECT i, 'n' || i FROM generate_series(1, 3000) i WHERE i <> 2500"
            ),
            thing(None, &["id"]),
        )
        .await;
        let beyond = of(Kind::Refused, &["-3000000000", "3000000000", "9000000000"]);
        let report = verified(&stage).await;
        assert_eq!(found(&report), [of(Kind::MissingInNew, &["2500"]), beyond].concat(), "{new}: {report:?}");
        assert_eq!(report.entities[0].method.as_str(), "ranges");
    }
}

/// Between two legacy keys, and beyond the last, there may be any number of new rows.
#[tokio::test]
async fn rows_that_are_too_much_by_the_thousands_end_the_walk_before_all_are_gathered() {
    for last in [3_000, 101_500] {
        let stage = stage_of(3_000).await;
        if last > 3_000 {
            for database in [&stage.pair.legacy, &stage.pair.new] {
                database.run("UPDATE users SET id = id + 98500 WHERE id > 1500").await;
            }
        }
        stage.pair.new.run("INSERT INTO users SELECT i, 'too much', 1 FROM generate_series(5001, 35000) i").await;
        let report = verified(&stage).await;
        let of = &report.entities[0];
        assert_eq!((report.outcome, of.complete, of.method.as_str()), (Outcome::Differs, false, "ranges"), "{of:?}");
        assert!(of.message.as_ref().unwrap().contains("10000 differences or more: not read further"), "{of:?}");
        assert_eq!(of.missing_in_legacy, of.differences(), "{of:?}");
        assert!((10_000..=12_000).contains(&of.differences()), "{last}: {of:?}");
        assert!(of.looked_again <= 12_000, "{last}: {of:?}");
    }
}

#[tokio::test]
async fn a_row_beyond_either_end_of_the_legacy_keys_is_found_though_all_others_agree() {
    let stage = stage_of(3_000).await;
    for beyond in ["-9223372036854775808", "0", "3001", "9223372036854775807"] {
        stage.pair.new.run(&format!("INSERT INTO users VALUES ({beyond}, 'beyond', 1)")).await;
        assert_eq!(found(&verified(&stage).await), of(Kind::MissingInLegacy, &[beyond]));
        stage.pair.new.run(&format!("DELETE FROM users WHERE id = {beyond}")).await;
    }
    // Where the legacy table is empty there are no ends.
    stage.pair.legacy.run("DELETE FROM users").await;
    stage.pair.new.run("DELETE FROM users WHERE id <> 7").await;
    assert_eq!(found(&verified(&stage).await), of(Kind::MissingInLegacy, &["7"]));
}

#[tokio::test]
async fn a_row_whose_event_is_open_waits_and_a_failed_one_is_named() {
    let stage = stage_of(10).await;
    stage.pair.legacy.run("UPDATE users SET name = 'changed' WHERE id IN (3, 4, 5)").await;
    stage.user(3, "UserUpdated", "changed", 1).await;
    let failed = stage.user(4, "UserUpdated", "changed", 1).await;
    stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'failed', attempts = 3 WHERE id = {failed}")).await;
    let report = verified(&stage).await;
    assert_eq!(found(&report), of(Kind::Differs, &["5"]), "{report:?}");
    let waiting: Vec<_> = report.waiting.iter().map(|w| (w.event, w.status.as_str())).collect();
    assert!(waiting.contains(&(Some(failed), "failed")) && waiting.contains(&(None, "pending")), "{waiting:?}");
    assert!(
        verify::render(&report).contains(&format!("users 4 waits: event {failed} is failed")),
        "{}",
        verify::render(&report)
    );
}

/// It would differ for ever while whoever asks by the exit code is told that all is well.
#[tokio::test]
async fn a_row_behind_a_failed_event_alone_is_not_equal_and_one_on_its_way_is() {
    let stage = stage_of(10).await;
    stage.pair.legacy.run("UPDATE users SET name = 'changed' WHERE id = 4").await;
    let event = stage.user(4, "UserUpdated", "changed", 1).await;
    let report = verified(&stage).await;
    let of = &report.entities[0];
    assert_eq!((report.outcome, of.waiting, of.stuck), (Outcome::Equal, 1, 0), "{report:?}");
    assert!(verify::render(&report).contains("Equal, but for 1 row whose events are not applied yet."));
    stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'failed', attempts = 3 WHERE id = {event}")).await;
    let report = verified(&stage).await;
    let of = &report.entities[0];
    assert_eq!((report.outcome, of.differences(), of.waiting, of.stuck), (Outcome::Differs, 0, 1, 1), "{report:?}");
    let told = verify::render(&report);
    assert!(
        told.contains("1 row behind failed events: outbox-relay failures") && told.contains("Equal, but for those."),
        "{told}"
    );
}

/// A pair with tables of its own, for one entity.
pub(crate) async fn stage_with(legacy: &str, new: &str, entity: Entity) -> Stage {
    let pair: Pair = pair().await;
    pair.legacy.run(legacy).await;
    pair.new.run(new).await;
    Stage::on(pair, |config| config.entities = vec![entity]).await
}

pub(crate) fn thing(sql: Option<&str>, key: &[&str]) -> Entity {
    let entity =
        Entity::new("Thing", table("things"), key).on("ThingCreated", Action::Upsert).made_of(table("old"), "id");
    Entity { mapping: sql.map(|sql| file("mappings/thing.sql", sql)), ..entity }
}

#[tokio::test]
async fn values_of_every_type_have_one_text_on_both_sides() {
    let columns = "id int PRIMARY KEY, n numeric(10,2), m numeric, f float8, g float4, b boolean, t text, v varchar(20), c char(5),
         d date, ts timestamp(3), tz timestamptz, i interval, u uuid, by bytea, j jsonb, a int[], ip inet";
    let rows = "INSERT INTO {} SELECT i, i / 3.0, i / 3.0, i / 3.0, i / 3.0, i % 2 = 0, 'tëxt \"' || i, NULLIF('v' || i, 'v3'), 'c' || i,
         date '2026-01-01' + i, timestamp '2026-01-01 00:00:00.123' + i * interval '1 s', timestamptz '2026-03-29 01:30+01' + i * interval '1 h',
         i * interval '1 day 3 h', md5(i::text)::uuid, decode(md5(i::text), 'hex'), jsonb_build_object('b', i, 'a', NULL), ARRAY[i, NULL], '10.0.0.1'
         FROM generate_series(-50, 50) i";
    let stage = stage_with(
        &format!("CREATE TABLE old ({columns}); {}", rows.replace("{}", "old")),
        // The other way round, other types that take the same values, and settings that print them otherwise.
        &format!(
            "CREATE TYPE mood AS ENUM ('fine'); CREATE DOMAIN cents AS numeric(10,2);
             CREATE TABLE things ({columns}, extra text DEFAULT 'not mapped');
             {}
             ALTER TABLE things ALTER n TYPE cents, ALTER id TYPE bigint;
             DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET TimeZone = ''Asia/Tokyo''', current_database());
             EXECUTE format('ALTER DATABASE %I SET IntervalStyle = ''iso_8601''', current_database());
             EXECUTE format('ALTER DATABASE %I SET DateStyle = ''German''', current_database());
             EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database());
             EXECUTE format('ALTER DATABASE %I SET extra_float_digits = -10', current_database()); END $$",
            rows.replace("INSERT INTO {} SELECT", "INSERT INTO things SELECT") + ";"
        ),
        thing(
            Some(
                "SELECT payload->>'id' AS id, payload->>'n' AS n, payload->>'m' AS m, payload->>'f' AS f, payload->>'g' AS g, payload->>'b' AS b,
                 payload->>'t' AS t, payload->>'v' AS v, payload->>'c' AS c, payload->>'d' AS d, payload->>'ts' AS ts, payload->>'tz' AS tz,
                 payload->>'i' AS i, payload->>'u' AS u, payload->>'by' AS by, payload->'j' AS j, payload->>'ip' AS ip,
                 ARRAY(SELECT e::int FROM jsonb_array_elements_text(payload->'a') AS e) AS a FROM event",
            ),
            &["id"],
        ),
    )
    .await;
    let report = verified(&stage).await;
    let e = &report.entities[0];
    assert_eq!((report.outcome, e.looked_again, e.mapped_by_legacy), (Outcome::Equal, 0, true), "{report:?}");
    for (column, value) in [
        ("n", "0.01"),
        ("m", "0.0001"),
        ("f", "0.1"),
        ("b", "NULL"),
        ("v", "''"),
        ("tz", "now()"),
        ("j", "'{\"a\": 1}'"),
        ("a", "'{}'"),
        ("c", "'x'"),
    ] {
        stage
            .pair
            .new
            .run(&format!("CREATE TABLE kept AS TABLE things; UPDATE things SET {column} = {value} WHERE id = 3"))
            .await;
        let report = verified(&stage).await;
        assert_eq!(found(&report), of(Kind::Differs, &["3"]), "{column}");
        assert_eq!(report.differences[0].columns[0].column, column);
        stage.pair.new.run("TRUNCATE things; INSERT INTO things TABLE kept; DROP TABLE kept").await;
    }
}

#[tokio::test]
async fn a_mapping_that_filters_yields_several_or_gives_other_keys_is_compared_in_buckets() {
    let mapping =
        "SELECT payload->>'id' || '-' || k AS code, payload->>'name' AS name FROM event, unnest(ARRAY['a', 'b']) AS k
                   WHERE (payload->>'id')::int % 10 <> 0";
    let stage = stage_with(
        "CREATE TABLE old (id int PRIMARY KEY, name text); INSERT INTO old SELECT i, 'n' || i FROM generate_series(1, 3000) i",
        "CREATE TABLE things (code text PRIMARY KEY, name text);
         INSERT INTO things SELECT i || '-' || k, 'n' || i FROM generate_series(1, 3000) i, unnest(ARRAY['a', 'b']) k WHERE i % 10 <> 0",
        thing(Some(mapping), &["code"]),
    )
    .await;
    let report = verified(&stage).await;
    assert_eq!((report.outcome, report.entities[0].method.as_str()), (Outcome::Equal, "buckets"), "{report:?}");
    assert_eq!((report.entities[0].legacy_rows, report.entities[0].new_rows), (5400, 5400));
    stage
        .pair
        .new
        .run("DELETE FROM things WHERE code = '7-b'; UPDATE things SET name = 'x' WHERE code = '8-a'; INSERT INTO things VALUES ('7-c', 'y'), ('10-a', 'n10')")
        .await;
    let report = verified(&stage).await;
    let expected =
        [of(Kind::MissingInNew, &["7-b"]), of(Kind::MissingInLegacy, &["10-a", "7-c"]), of(Kind::Differs, &["8-a"])]
            .concat();
    assert_eq!(found(&report), expected);
}

#[tokio::test]
async fn text_keys_of_different_collations_and_composite_keys_are_compared() {
    let keys = "unnest(ARRAY['', 'a', 'B', 'é', 'e', 'Z', 'ß', 'it''s \"x\", {y}', 'zz', '10', '9'])";
    let mut entity = thing(None, &["tenant", "line"]);
    let legacy = entity.legacy.as_mut().unwrap();
    (legacy.key, legacy.aggregate_id) = (vec!["tenant".into(), "line".into()], "tenant".into());
    let stage = stage_with(
        &format!("CREATE TABLE old (tenant text COLLATE \"C\", line int, x int, PRIMARY KEY (tenant, line)); INSERT INTO old SELECT t, n, n FROM {keys} t, generate_series(-1, 1) n"),
        &format!("CREATE TABLE things (tenant text, line int, x int, PRIMARY KEY (tenant, line)); INSERT INTO things SELECT t, n, n FROM {keys} t, generate_series(-1, 1) n"),
        entity,
    )
    .await;
    let report = verified(&stage).await;
    assert_eq!((report.outcome, report.entities[0].new_rows), (Outcome::Equal, 33), "{report:?}");
    stage
        .pair
        .new
        .run("DELETE FROM things WHERE tenant = '' AND line = -1; UPDATE things SET x = 9 WHERE tenant = 'it''s \"x\", {y}' AND line = 0; INSERT INTO things VALUES ('zzz', 1, 1)")
        .await;
    let report = verified(&stage).await;
    let expected = [
        of(Kind::MissingInNew, &["/-1"]),
        of(Kind::MissingInLegacy, &["zzz/1"]),
        of(Kind::Differs, &["it's \"x\", {y}/0"]),
    ];
    assert_eq!(found(&report), expected.concat());
}

#[tokio::test]
async fn a_mapping_that_only_the_new_database_understands_is_evaluated_there() {
    let stage = stage_with(
        "CREATE TABLE old (id int PRIMARY KEY, name text); INSERT INTO old SELECT i, 'n' || i FROM generate_series(1, 2500) i",
        "CREATE FUNCTION shout(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT upper($1)';
         CREATE TABLE things (id int PRIMARY KEY, name text); INSERT INTO things SELECT i, 'N' || i FROM generate_series(1, 2500) i",
        thing(Some("SELECT payload->>'id' AS id, shout(payload->>'name') AS name FROM event"), &["id"]),
    )
    .await;
    let report = verified(&stage).await;
    assert_eq!((report.outcome, report.entities[0].mapped_by_legacy), (Outcome::Equal, false), "{report:?}");
    assert_eq!((report.entities[0].method.as_str(), report.entities[0].looked_again), ("ranges", 0));
    stage.pair.new.run("UPDATE things SET name = 'n77' WHERE id = 77; DELETE FROM things WHERE id = 2500").await;
    let expected = [of(Kind::MissingInNew, &["2500"]), of(Kind::Differs, &["77"])].concat();
    assert_eq!(found(&verified(&stage).await), expected);
}

#[tokio::test]
async fn a_row_that_the_mapping_refuses_is_told_and_hides_no_other() {
    let stage = stage_with(
        "CREATE TABLE old (id int PRIMARY KEY, born text); INSERT INTO old SELECT i, '2000-01-01' FROM generate_series(1, 5000) i;
         UPDATE old SET born = '0000-00-00' WHERE id IN (2, 4000)",
        "CREATE TABLE things (id int PRIMARY KEY, born date);
         INSERT INTO things SELECT i, '2000-01-01' FROM generate_series(1, 5000) i WHERE i NOT IN (2, 5, 4000)",
        thing(Some("SELECT payload->>'id' AS id, payload->>'born' AS born FROM event"), &["id"]),
    )
    .await;
    let report = verified(&stage).await;
    assert_eq!(
        found(&report),
        [of(Kind::MissingInNew, &["5"]), of(Kind::Refused, &["2", "4000"])].concat(),
        "{report:?}"
    );
    let refused = report.differences.iter().find(|d| d.kind == Kind::Refused).unwrap();
    assert!(refused.message.as_ref().unwrap().contains("22008"), "{refused:?}");
}

#[tokio::test]
async fn what_is_left_out_or_tolerated_is_no_difference_and_is_told() {
    let mut entity = thing(None, &["id"]);
    entity.verify.ignore = vec![Ignored { column: "seen".into(), reason: "set by a trigger".into() }];
    entity.verify.tolerance = vec![Tolerance { column: "score".into(), micros: 10_000, reason: "rounded".into() }];
    let stage = stage_with(
        "CREATE TABLE old (id int PRIMARY KEY, seen int, score numeric); INSERT INTO old SELECT i, i, i FROM generate_series(1, 100) i",
        "CREATE TABLE things (id int PRIMARY KEY, seen int, score numeric); INSERT INTO things SELECT i, 0, i FROM generate_series(1, 100) i;
         UPDATE things SET score = score + 0.01 WHERE id = 3; UPDATE things SET score = score + 0.02 WHERE id = 4",
        entity,
    )
    .await;
    let report = verified(&stage).await;
    assert_eq!(found(&report), of(Kind::Differs, &["4"]), "{report:?}");
    assert_eq!(report.entities[0].ignored, ["seen (set by a trigger)"]);
}

#[tokio::test]
async fn tables_without_events_are_looked_at_twice() {
    let stage = stage_of(100).await;
    stage.pair.new.run("UPDATE users SET name = 'x' WHERE id = 7").await;
    // Events of its own would make it wait.
    stage.user(7, "UserUpdated", "name 7", 1).await;
    assert_eq!(verified(&stage).await.outcome, Outcome::Equal);
    let report = verify_with(&stage, Options { without_events: true, ..Options::default() }).await;
    assert_eq!(found(&report), of(Kind::Differs, &["7"]));
}

/// Whoever writes: users change, come and go, in the transaction of their events. The last tenth of every hundred is left alone.
pub(crate) struct Writers {
    stop: CancellationToken,
    pub(crate) events: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    pub(crate) fn start(stage: &Stage, rows: u32, a_second: u64) -> Writers {
        let (stop, events) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let write = |writer: u32| {
            let (stop, events, pool) = (stop.clone(), events.clone(), stage.pair.legacy.pool.clone());
            async move {
                let pause = Duration::from_micros(1_000_000 * 100 * 2 / a_second);
                let mut n = 0u32;
                while !stop.is_cancelled() {
                    let began = Instant::now();
                    n += 1;
                    let from = n.wrapping_mul(2_654_435_761) % rows.saturating_sub(300).max(1);
                    let sql = format!(
                        "WITH gone AS (DELETE FROM users WHERE id BETWEEN {from} AND {from} + 240 AND id % 20 = {writer} * 2 + 4 RETURNING *),
                         back AS (INSERT INTO users SELECT i, 'back {n}', 1 FROM generate_series({from} + 241, {from} + 290) i
                                  WHERE i % 20 = {writer} * 2 + 4 ON CONFLICT DO NOTHING RETURNING *),
                         changed AS (UPDATE users SET name = 'round {n}', version = version + 1
                                     WHERE (id BETWEEN {from} AND {from} + 240 AND id % 2 = {writer} AND id % 100 < 90 AND id % 20 <> {writer} * 2 + 4)
                                        OR id = 5 + {writer} RETURNING *)
                         INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
                         SELECT 'User', id::text, 'UserDeleted', to_jsonb(g) FROM gone g UNION ALL
                         SELECT 'User', id::text, 'UserCreated', to_jsonb(b) FROM back b UNION ALL
                         SELECT 'User', id::text, 'UserUpdated', to_jsonb(c) FROM changed c"
                    );
                    let done =
                        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await.expect("the application writes");
                    events.fetch_add(done.rows_affected(), Ordering::Relaxed);
                    tokio::time::sleep(pause.saturating_sub(began.elapsed())).await;
                }
            }
        };
        let tasks = vec![tokio::spawn(write(0)), tokio::spawn(write(1))];
        Writers { stop, events, tasks }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.expect("a writer");
        }
    }
}

/// In the last tenth of every hundred, where nobody writes; and both ends. Kind and key of each.
pub(crate) async fn inject(stage: &Stage, rows: i64) -> Vec<(Kind, String)> {
    let quiet = |n: i64| (n % (rows / 100)) * 100 + 90 + n % 10;
    let mut expected = Vec::new();
    let mut sql = String::new();
    // The lowest and the highest rows of all: changed, and missing.
    let ends = [-40, -30, rows + 5000, rows + 6000];
    let ends_are: String = ends.iter().map(|id| format!("INSERT INTO users VALUES ({id}, 'end', 1);")).collect();
    stage.pair.legacy.run(&ends_are).await;
    stage.pair.new.run(&ends_are).await;
    for (id, kind) in ends.into_iter().zip([Kind::Differs, Kind::MissingInNew, Kind::MissingInNew, Kind::Differs]) {
        sql += &match kind {
            Kind::Differs => format!("UPDATE users SET name = 'fault' WHERE id = {id};"),
            _ => format!("DELETE FROM users WHERE id = {id};"),
        };
        expected.push((kind, id.to_string()));
    }
    for n in 0..91 {
        let id = quiet(n * 7);
        match n % 3 {
            0 => {
                sql += &format!("UPDATE users SET name = 'fault' WHERE id = {id};");
                expected.push((Kind::Differs, id.to_string()));
            }
            1 => {
                sql += &format!("DELETE FROM users WHERE id = {id};");
                expected.push((Kind::MissingInNew, id.to_string()));
            }
            _ => {
                let id = rows + 1000 + n;
                sql += &format!("INSERT INTO users VALUES ({id}, 'fault', 1);");
                expected.push((Kind::MissingInLegacy, id.to_string()));
            }
        }
    }
    for id in [i64::MIN, -1, 0, i64::MAX] {
        sql += &format!("INSERT INTO users VALUES ({id}, 'fault', 1);");
        expected.push((Kind::MissingInLegacy, id.to_string()));
    }
    stage.pair.new.run(&sql).await;
    expected.sort();
    expected.dedup();
    expected
}

#[tokio::test]
async fn twenty_passes_under_load_raise_no_false_alarm_and_find_every_fault() {
    // OUTBOX_RELAY_FULL=1: at full size, for as long as it takes.
    let full = std::env::var_os("OUTBOX_RELAY_FULL").is_some();
    // Rows; events a second that are tried, and those that must be written.
    let (rows, a_second, least) = if full { (100_000, 2_500, 2_000.0) } else { (10_000, 600, 200.0) };
    let mut stage = stage_of(rows).await;
    // Each lane by itself: what shares a round takes effect at once, and hardly ever is anything on its way.
    stage.config.relay.batch = 60;
    let running = stage.start().await;
    let writers = Writers::start(&stage, rows, a_second);
    let began = Instant::now();
    let (mut looked, mut passes) = (0, 0);
    // At full size twenty, however long they take; else as many as there is time for, and some on however slow a machine.
    while if full { passes < 20 } else { passes < 5 || began.elapsed() < Duration::from_secs(20) }
        || (looked == 0 && began.elapsed() < DEADLINE)
    {
        let report = verified(&stage).await;
        let told = (report.outcome, report.entities[0].differences());
        assert_eq!(told, (Outcome::Equal, 0), "pass {passes}: {report:#?}");
        looked += report.entities[0].looked_again;
        passes += 1;
    }
    assert!(looked > 0, "nothing was on its way: the load proves nothing");
    let written = writers.events.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    assert!(written >= least, "only {written:.0} events a second, of {least} that there should be");
    // A hot row, which every event makes wrong again.
    stage
        .pair
        .new
        .run(
            "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name := 'spoilt'; RETURN NEW; END $$;
             CREATE TRIGGER spoil BEFORE INSERT OR UPDATE ON users FOR EACH ROW WHEN (NEW.id = 5) EXECUTE FUNCTION spoil();
             UPDATE users SET version = version WHERE id = 5",
        )
        .await;
    let mut expected = inject(&stage, rows.into()).await;
    expected.push((Kind::Differs, "5".into()));
    expected.sort();
    assert_eq!(expected.len(), 100);
    // The hot row may have an event on its way at every look of a pass.
    eventually(DEADLINE * 2, "every fault is found, and nothing else", || async {
        let report = verified(&stage).await;
        let found = found(&report);
        assert!(found.iter().all(|f| expected.contains(f)), "{found:?}");
        assert!(found.len() + 1 >= expected.len(), "{found:?}\n{expected:?}");
        found == expected
    })
    .await;
    let faults = expected.len();
    println!(
        "{passes} passes without a false alarm, {looked} keys looked at again, {written:.0} events a second; then {faults} of {faults} faults found"
    );
    writers.stop().await;
    running.stop().await;
}

/// Rows whose keys change all the time, hundreds a second, captured as one row gone and another come: some move to the other end of the
/// table and back, each past every chunk's border and into another lane; of others two and two change places in one transaction. The
/// last tenth of every hundred stays.
fn change_keys(stage: &Stage, rows: u32, stop: &CancellationToken) -> Vec<tokio::task::JoinHandle<u64>> {
    let change = |writer: u32| {
        let (stop, pool) = (stop.clone(), stage.pair.legacy.pool.clone());
        async move {
            let (mut n, mut changed) = (0u32, 0);
            let somewhere = |n: u32| n.wrapping_mul(2_654_435_761) % (rows - 200);
            while !stop.is_cancelled() {
                n += 1;
                let from = somewhere(n);
                // Of classes of four, each writer has one for moves and one for places.
                let place = |n: u32| somewhere(n) / 100 * 100 + 8 + n % 20 * 4 + 2 + writer;
                let (one, other) = (place(n + 7), place(n + 8) / 100 * 100 + 2 + writer);
                let sql = format!(
                    "UPDATE users SET id = id + CASE WHEN id <= {rows} THEN {rows} ELSE -{rows} END, version = version + 1
                     WHERE (id BETWEEN {from} AND {from} + 40 OR id BETWEEN {from} + {rows} AND {from} + {rows} + 40)
                       AND id % 4 = {writer} AND id % 100 < 90;
                     UPDATE users SET id = -id WHERE id = {one};
                     UPDATE users SET id = {one}, version = version + 1 WHERE id = {other};
                     UPDATE users SET id = {other}, version = version + 1 WHERE id = -{one}"
                );
                let done =
                    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&pool).await.expect("the application writes");
                changed += done.rows_affected();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            changed
        }
    };
    vec![tokio::spawn(change(0)), tokio::spawn(change(1))]
}

/// Lets the relay rest for a moment again and again: what was written meanwhile is on its way for longer than verification looks.
fn rest_now_and_then(stage: &Stage, stop: &CancellationToken) -> tokio::task::JoinHandle<u64> {
    let (stop, operator) = (stop.clone(), Operator::new(&stage.config).unwrap());
    tokio::spawn(async move {
        let by = By::new("ada", "a test").unwrap();
        let mut rest = 0;
        while !stop.is_cancelled() {
            operator.pause(&What::All, &by, None).await.unwrap();
            // Of another length each time: not in step with the passes.
            rest = (rest * 7 + 130) % 300;
            tokio::time::sleep(Duration::from_millis(150 + rest)).await;
            operator.resume(&What::All, &by).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        0
    })
}

/// While keys change: nothing false is said in several passes, and then every fault is found. `key`: as the new table has it, as SQL over
/// `i` and as text.
async fn nothing_false_is_said_while_keys_change(users: Entity, schema: &str, key: (&str, fn(i64) -> String)) {
    const ROWS: u32 = 12_000;
    let pair = pair().await;
    pair.legacy
        .run(&format!(
            "CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, version int NOT NULL);
             INSERT INTO users SELECT i, 'name ' || i, 1 FROM generate_series(1, {ROWS}) i; ANALYZE users"
        ))
        .await;
    let new = users.table.clone().unwrap();
    let stage = Stage::on(pair, |config| {
        config.entities = vec![users.made_of(table("users"), "id").on("UserDeleted", Action::Delete)];
        (config.relay.batch, config.relay.lanes) = (60, 4);
    })
    .await;
    let code = key.0;
    stage
        .pair
        .new
        .run(&format!("{schema}; INSERT INTO {new} SELECT {code}, 'name ' || i, 1 FROM generate_series(1, {ROWS}) i; ANALYZE {new}"))
        .await;
    install(&stage).await;
    let running = stage.start().await;
    let stop = CancellationToken::new();
    let (began, mut writers) = (Instant::now(), change_keys(&stage, ROWS, &stop));
    writers.push(rest_now_and_then(&stage, &stop));
    let (mut passes, mut locked, mut read) = (0, 0, 0);
    while passes < 3 || locked < 50 {
        assert!(
            began.elapsed() < DEADLINE * 4,
            "only {locked} keys were on their way in {passes} passes: the load proves little"
        );
        let report = verified(&stage).await;
        let of = &report.entities[0];
        assert_eq!((report.outcome, of.differences()), (Outcome::Equal, 0), "pass {passes}: {report:#?}");
        (passes, locked, read) = (passes + 1, locked + of.looked_under_lock, read + of.legacy_rows);
    }
    // Rows that nobody writes: wrong, lost, too much, and a change of key of which there was no event.
    let id = |n: i64| n * 300 + 95;
    let (mut sql, mut silent, mut expected) = (String::new(), String::new(), Vec::new());
    for n in 0..40 {
        let (id, away) = (id(n), id(n) + i64::from(ROWS));
        let (here, there) = (code.replace('i', &id.to_string()), code.replace('i', &away.to_string()));
        let column = &stage.config.entities[0].key[0];
        match n % 4 {
            0 => sql += &format!("UPDATE {new} SET name = 'fault' WHERE {column} = {here};"),
            1 => sql += &format!("DELETE FROM {new} WHERE {column} = {here};"),
            2 => sql += &format!("INSERT INTO {new} VALUES ({there}, 'fault', 1);"),
            _ => silent += &format!("UPDATE users SET id = {away} WHERE id = {id};"),
        }
        expected.extend(match n % 4 {
            0 => vec![(Kind::Differs, key.1(id))],
            1 => vec![(Kind::MissingInNew, key.1(id))],
            2 => vec![(Kind::MissingInLegacy, key.1(away))],
            _ => vec![(Kind::MissingInLegacy, key.1(id)), (Kind::MissingInNew, key.1(away))],
        });
    }
    expected.sort();
    stage.pair.new.run(&sql).await;
    stage.pair.legacy.run(&format!("SET LOCAL outbox_relay.applying = 'on'; {silent}")).await;
    assert_eq!(found(&verified(&stage).await), expected);
    let seconds = began.elapsed().as_secs_f64();
    stop.cancel();
    let mut changed = 0;
    for writer in writers {
        changed += writer.await.unwrap();
    }
    eprintln!(
        "{passes} passes, {read} rows, {locked} looked at under a lock, {:.0} keys changed a second",
        changed as f64 / seconds
    );
    running.stop().await;
}

#[tokio::test]
async fn nothing_false_is_said_while_keys_change_that_the_mapping_hands_through() {
    nothing_false_is_said_while_keys_change(users(), "SELECT 1", ("i", |id| id.to_string())).await;
}

#[tokio::test]
async fn nothing_false_is_said_while_keys_change_of_which_the_mapping_makes_others() {
    let mapping =
        "SELECT 'k' || (payload->>'id') AS code, payload->>'name' AS name, payload->>'version' AS version FROM event";
    let entity = Entity {
        table: Some(table("things")),
        key: vec!["code".into()],
        mapping: Some(file("mappings/user.sql", mapping)),
        ..users()
    };
    let schema = "CREATE TABLE things (code text PRIMARY KEY, name text, version int)";
    nothing_false_is_said_while_keys_change(entity, schema, ("'k' || i", |id| format!("k{id}"))).await;
}

#[tokio::test]
async fn a_verification_never_reads_more_rows_than_its_rate_allows_since_it_began() {
    let handed = "SELECT payload->>'id' AS id, payload->>'name' AS name, payload->>'version' AS version FROM event";
    let stage = stage_of(3_000).await;
    let others = stage_with(
        "CREATE TABLE old (id bigint PRIMARY KEY, name text, version int); INSERT INTO old SELECT i, 'n' || i, 1 FROM generate_series(1, 3000) i",
        "CREATE TABLE things (id text PRIMARY KEY, name text, version int); INSERT INTO things SELECT i, 'n' || i, 1 FROM generate_series(1, 3000) i",
        thing(Some(handed), &["id"]),
    )
    .await;
    for (stage, method) in [(&stage, "ranges"), (&others, "buckets")] {
        let (source, target) = connect::open(&stage.config).await.unwrap();
        let told = std::sync::Mutex::new(Vec::new());
        let tell = |far: &Far<'_>| told.lock().unwrap().push((far.rows, far.took.as_secs_f64()));
        let (options, stop) = (Options { rate: Some(1_500), ..Options::default() }, CancellationToken::new());
        let report = verify::verify(&stage.config, &source, &target, &options, &stop, &tell).await.unwrap();
        let e = &report.entities[0];
        assert_eq!((report.outcome, e.method.as_str(), e.legacy_rows), (Outcome::Equal, method, 3_000), "{report:?}");
        assert!(e.seconds >= 2.0, "3,000 rows within {} s", e.seconds);
        // What goes first, goes at once: a chunk, which is never more than a second's worth.
        let told = told.into_inner().unwrap();
        assert!(told.iter().all(|(rows, took)| *rows as f64 <= 1_500.0 * (took + 1.0)), "{method}: {told:?}");
    }
}

#[tokio::test]
async fn what_is_read_again_to_find_a_difference_counts_towards_the_rate() {
    let stage = stage_of(4_000).await;
    stage.pair.new.run("UPDATE users SET name = 'wrong' WHERE id = 2500").await;
    let report = verify_with(&stage, Options { rate: Some(5_000), ..Options::default() }).await;
    assert_eq!(found(&report), [(Kind::Differs, "2500".to_owned())]);
    // All of them, its two halves, and the rows of one of those: 10,000.
    let took = report.entities[0].seconds;
    assert!(took >= 1.9, "{took} s");
}

#[tokio::test]
async fn the_program_exits_0_if_both_are_equal_1_if_they_differ_and_2_if_it_could_not_tell_and_says_what_to_do() {
    let mut stage = stage_of(300).await;
    let folder = folder_of(&stage, "");
    let (full, sample) = (&["verify"][..], &["verify", "--sample", "400"][..]);
    let report = async |folder: &tempfile::TempDir, arguments: &[&str], code: i32| {
        let ended = ended(folder, &[arguments, &["--json"]].concat()).await;
        assert_eq!(ended.code, Some(code), "{}{}", ended.stdout, ended.stderr);
        ended.json()
    };
    for (arguments, method) in [(full, "ranges"), (sample, "sample")] {
        let told = said(&folder, arguments, 0).await;
        assert!(told.contains("Equal."), "{told}");
        let json = report(&folder, arguments, 0).await;
        let of = &json["entities"][0];
        assert_eq!((&json["outcome"], &of["method"], &of["complete"]), (&json!("equal"), &json!(method), &json!(true)));
        assert_eq!((&of["legacy_rows"], &of["new_rows"]), (&json!(300), &json!(300)), "{json}");
    }
    // Of a sample no more is read than was asked for.
    let few = report(&folder, &["verify", "--sample", "20"], 0).await;
    assert_eq!((&few["entities"][0]["legacy_rows"], &few["entities"][0]["new_rows"]), (&json!(20), &json!(20)));

    stage.pair.new.run("UPDATE users SET name = 'wrong' WHERE id = 7").await;
    for (arguments, remedy) in [(full, "outbox-relay repair\n"), (sample, "outbox-relay repair --report ")] {
        let told = said(&folder, arguments, 1).await;
        assert!(told.contains("users 7 differs: name: legacy \"name 7\", new \"wrong\""), "{told}");
        assert!(told.contains(&format!("1 difference. To mend from the legacy database: {remedy}")), "{told}");
        let json = report(&folder, arguments, 1).await;
        let found = &json["differences"][0];
        assert_eq!(
            (&json["outcome"], &found["kind"], &found["key"]),
            (&json!("differs"), &json!("differs"), &json!(["7"])),
            "{json}"
        );
    }

    // A mapping that no server can evaluate.
    let mapping =
        "SELECT payload->>'id' AS id, paylod->>'name' AS name, (payload->>'version')::int AS version\nFROM event";
    stage.config.entities[0].mapping = Some(file("mappings/user.sql", mapping));
    let wrong = folder_of(&stage, "");
    for arguments in [full, sample] {
        let told = said(&wrong, arguments, 2).await;
        for words in
            ["error[mapping.column]", "user.sql:1:", "did you mean \"payload\"?", "Not everything could be compared."]
        {
            assert!(told.contains(words), "{words}: {told}");
        }
        let json = report(&wrong, arguments, 2).await;
        let of = &json["entities"][0];
        assert_eq!((&json["outcome"], &of["complete"]), (&json!("could_not"), &json!(false)), "{json}");
        assert!(of["message"].as_str().unwrap().contains("did you mean"), "{json}");
    }

    // What is printed is a report, or nothing: why there is none is said on stderr.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let other = pair().await;
    for (url, why, remedy) in [
        (format!("postgres://postgres@{nobody}/new"), "error: new: ", "does new.url lead there"),
        (other.new.url.clone(), "does not have the relay's tables yet", "run outbox-relay init"),
    ] {
        stage.config.new.url = DatabaseUrl::parse(&url).unwrap();
        let folder = folder_of(&stage, "");
        for arguments in [full, sample, &["verify", "--json"]] {
            let Ended { code, stdout, stderr } = ended(&folder, arguments).await;
            assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
            assert!(stderr.contains(why) && stderr.contains(remedy), "{stderr}");
        }
    }
}

#[tokio::test]
async fn a_pass_that_is_told_to_stop_keeps_what_it_found_and_could_not() {
    let stage = stage_of(100).await;
    let (source, target) = connect::open(&stage.config).await.unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    let options = Options::default();
    let report = verify::verify(&stage.config, &source, &target, &options, &stop, &|_| {}).await.unwrap();
    assert_eq!(report.outcome, Outcome::CouldNot);
    assert_eq!(target.reports(None, 1).await.unwrap()[0].outcome.as_deref(), Some("could_not"));
}

/// A pass of a `run`: when it began and ended, in seconds, how many rows it read a second, and in which process.
type Pass = (f64, Option<f64>, Option<f64>, i32);

async fn passes(stage: &Stage) -> Vec<Pass> {
    let sql = "SELECT extract(epoch FROM r.started_at)::float8, extract(epoch FROM r.finished_at)::float8,
                      (r.report->'entities'->0->>'legacy_rows')::float8 / extract(epoch FROM r.finished_at - r.started_at)::float8,
                      split_part(j.host, ':', 2)::int
               FROM outbox_relay.verify_report r
               JOIN LATERAL (SELECT host FROM outbox_relay.job WHERE began_at >= r.started_at AND via = 'run' ORDER BY began_at LIMIT 1) j ON true
               WHERE r.by = 'run' ORDER BY r.started_at";
    sqlx::query_as(sql).fetch_all(&stage.pair.new.pool).await.unwrap()
}

#[tokio::test]
async fn of_two_processes_one_verifies_at_its_rate_and_the_other_goes_on_when_it_is_killed() {
    let stage = stage_of(1000).await;
    // A pass takes longer than there is between two.
    let variables = [("OUTBOX_RELAY_VERIFY__EVERY", "1s"), ("OUTBOX_RELAY_VERIFY__RATE", "500")];
    let mut relays = [Relay::start_with(&stage, &[], &variables), Relay::start_with(&stage, &[], &variables)];
    eventually(DEADLINE, "three passes are over, and another one is under way", || async {
        let passes = passes(&stage).await;
        passes.len() > 3 && passes.last().is_some_and(|(_, ended, _, _)| ended.is_none())
    })
    .await;
    let before = passes(&stage).await;
    let pid = before.last().unwrap().3;
    let killed = relays.iter().position(|relay| i64::from(relay.pid()) == i64::from(pid)).expect("one of them");
    relays[killed].signal(Signal::SIGKILL);
    relays[killed].ended(DEADLINE).await;
    // It might be slow: for half a minute, which is not waited for here, nobody takes its place.
    stage
        .pair
        .new
        .run(&format!(
            "UPDATE outbox_relay.job SET beat_at = beat_at - interval '1 minute' WHERE ended_at IS NULL AND host LIKE '%:{pid}'"
        ))
        .await;
    eventually(DEADLINE, "the other one verifies", || async {
        passes(&stage).await.iter().any(|(_, ended, _, process)| *process != pid && ended.is_some())
    })
    .await;
    let all = passes(&stage).await;
    for two in all.windows(2) {
        let ((began, ended, rate, _), (next, ..)) = (two[0], two[1]);
        assert!(next - began >= 1.0, "more than one in an interval: {all:?}");
        assert!(ended.is_none_or(|ended| next >= ended), "two at once: {all:?}");
        assert!(rate.is_none_or(|rate| rate <= 500.0), "faster than it may be: {all:?}");
    }
}

#[tokio::test]
async fn of_two_processes_one_begins_a_pass_in_every_interval() {
    let stage = stage_of(10).await;
    let variables = [("OUTBOX_RELAY_VERIFY__EVERY", "1500ms")];
    let _relays = [Relay::start_with(&stage, &[], &variables), Relay::start_with(&stage, &[], &variables)];
    eventually(DEADLINE, "four passes have begun", || async { passes(&stage).await.len() > 3 }).await;
    let all = passes(&stage).await;
    assert!(all.windows(2).all(|two| two[1].0 - two[0].0 >= 1.5), "{all:?}");
}

/// What somebody does to the legacy database once a verification has told its progress so often.
async fn verified_while(stage: &Stage, options: Options, told: usize, change: &str) -> Report {
    let (source, target) = connect::open(&stage.config).await.unwrap();
    let (stop, calls) = (CancellationToken::new(), AtomicU64::new(0));
    let (url, change) = (stage.pair.legacy.url.clone(), change.to_owned());
    let somebody = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
            sqlx::raw_sql(sqlx::AssertSqlSafe(change.clone())).execute(&mut connection).await.unwrap();
        });
    };
    let tell = |_: &Far<'_>| {
        if calls.fetch_add(1, Ordering::Relaxed) + 1 == told as u64 {
            std::thread::scope(|scope| scope.spawn(somebody).join().unwrap());
        }
    };
    let report = verify::verify(&stage.config, &source, &target, &options, &stop, &tell).await.unwrap();
    assert!(calls.load(Ordering::Relaxed) >= told as u64, "it was never told so often");
    report
}

/// A walk in buckets tells its progress after the sums of legacy and new, and after the keys of legacy and new.
const LEGACY_KEYS_TOLD: usize = 3;
const ALL_KEYS_TOLD: usize = 4;

#[tokio::test]
async fn a_row_whose_aggregate_is_null_is_refused_by_verification_and_repair_and_stays_left_out() {
    let other = "SELECT 'k' || (payload->>'id') AS id, payload->>'name' AS name FROM event";
    for (mapping, prefix, method) in [(None, "", "ranges"), (Some(other), "k", "buckets")] {
        let mut entity = thing(mapping, &["id"]);
        entity.legacy.as_mut().unwrap().aggregate_id = "customer::text".into();
        let (kind, key) = if mapping.is_some() { ("text", "'k' || i") } else { ("int", "i") };
        let stage = stage_with(
            "CREATE TABLE old (id int PRIMARY KEY, customer int, name text);
             INSERT INTO old SELECT i, CASE WHEN i < 3 THEN i END, 'n' || i FROM generate_series(1, 5) i",
            &format!("CREATE TABLE things (id {kind} PRIMARY KEY, name text)"),
            entity,
        )
        .await;
        assert!(!crate::support::copying::copy(&stage).await.is_whole());
        // One is missing, one is wrong, and one stands as it should.
        let rows = format!(
            "INSERT INTO things SELECT {key}, CASE i WHEN 4 THEN 'wrong' ELSE 'n' || i END FROM generate_series(4, 5) i"
        );
        stage.pair.new.run(&rows).await;
        for options in [Options::default(), Options { sample: Some(100), ..Options::default() }] {
            let report = verify_with(&stage, options).await;
            assert_eq!(
                (report.outcome, found(&report)),
                (Outcome::Differs, of(Kind::Refused, &["3", "4"])),
                "{report:?}"
            );
            let said = verify::report::line(&report.differences[0]);
            assert!(said.contains("is refused: entity.legacy.aggregate_id gives NULL"), "{said}");
        }
        let report = verified(&stage).await;
        assert_eq!((report.entities[0].method.as_str(), report.entities[0].refused), (method, 2));
        let left = "SELECT count(*) FROM outbox_relay.backfill_left";
        assert_eq!(stage.pair.new.value::<i64>(left).await, 3, "what differs is left out still");
        let keys = ["3", "4", "5"].map(|key| outbox_relay::source::RowKey(vec![key.to_owned()]));
        let resync = outbox_relay::repair::Wanted::Keys(keys.into());
        for (wanted, right) in [(None, 0), (Some(&resync), 1)] {
            let done = crate::repair::repaired(&stage, wanted, true).await.unwrap();
            assert_eq!((done.written, done.deleted, done.right, done.left), (0, 0, right, 2), "{done:?}");
            assert!(done.changes[0].message.as_ref().is_some_and(|said| said.contains("gives NULL")), "{done:?}");
        }
        let wrong = format!("SELECT name FROM things WHERE id::text = '{prefix}4'");
        assert_eq!(stage.pair.new.value::<String>(&wrong).await, "wrong");
    }
}

/// Of this one the aggregate is another at every look, and so is nearly always its lane.
#[tokio::test]
async fn a_row_that_changes_its_lane_at_every_look_is_not_taken_for_equal_nor_for_repaired() {
    let pair = pair().await;
    pair.legacy.run("CREATE TABLE old (id int PRIMARY KEY, name text); INSERT INTO old VALUES (1, 'a')").await;
    pair.new.run("CREATE TABLE things (id int PRIMARY KEY, name text); INSERT INTO things VALUES (1, 'wrong')").await;
    let stage = Stage::on(pair, |config| {
        let mut entity = thing(None, &["id"]);
        entity.legacy.as_mut().unwrap().aggregate_id = "(id + random() * 1000000000)::bigint::text".into();
        (config.entities, config.relay.lanes) = (vec![entity], 512);
    })
    .await;
    let report = verified(&stage).await;
    assert_ne!(report.outcome, Outcome::Equal, "{report:?}");
    let keys = outbox_relay::repair::Wanted::Keys(vec![outbox_relay::source::RowKey(vec!["1".to_owned()])]);
    let done = crate::repair::repaired(&stage, Some(&keys), true).await.unwrap();
    assert_eq!(done.written + done.left, 1, "{done:?}");
}

#[tokio::test]
async fn a_mapping_that_hands_only_some_keys_through_raises_no_false_alarm_in_the_ranges_before_that_is_seen() {
    let mapping = "SELECT CASE WHEN (payload->>'id')::bigint > 11000 THEN -(payload->>'id')::bigint ELSE (payload->>'id')::bigint END AS id,
                          payload->>'name' AS name FROM event";
    // Fewer than are kept, and more.
    for moved in [1_000, 10_500] {
        let rows = 11_000 + moved;
        let stage = stage_with(
            &format!("CREATE TABLE old (id bigint PRIMARY KEY, name text); INSERT INTO old SELECT i, 'n' || i FROM generate_series(1, {rows}) i"),
            &format!(
                "CREATE TABLE things (id bigint PRIMARY KEY, name text);
                 INSERT INTO things SELECT CASE WHEN i > 11000 THEN -i ELSE i END, 'n' || i FROM generate_series(1, {rows}) i;
                 UPDATE things SET name = 'wrong' WHERE id = 7"
            ),
            thing(Some(mapping), &["id"]),
        )
        .await;
        let report = verified(&stage).await;
        let of_thing = &report.entities[0];
        assert_eq!(of_thing.method, "buckets", "{of_thing:?}");
        assert_eq!((of_thing.differences(), found(&report)), (1, of(Kind::Differs, &["7"])), "{of_thing:?}");
        // What was found before is not kept a second time.
        let (_, target) = connect::open(&stage.config).await.unwrap();
        assert_eq!(target.report_differences(ReportId(report.id)).await.unwrap().len(), 1);
        let done = crate::repair::repaired(&stage, None, true).await.unwrap();
        assert_eq!((done.written, done.deleted, done.left), (1, 0, 0), "{done:?}");
        assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM things").await, rows);
    }
}

/// Products, whose key in the new table is their number in the catalogue.
async fn products(new: &str) -> Stage {
    stage_with(
        "CREATE TABLE old (id int PRIMARY KEY, sku text, name text); INSERT INTO old SELECT i, 's' || i, 'n' || i FROM generate_series(1, 9) i",
        &format!(
            "CREATE TABLE things (sku text PRIMARY KEY, name text); INSERT INTO things SELECT 's' || i, 'n' || i FROM generate_series(1, 9) i; {new}"
        ),
        thing(Some("SELECT payload->>'sku' AS sku, payload->>'name' AS name FROM event"), &["sku"]),
    )
    .await
}

#[tokio::test]
async fn a_key_that_another_legacy_row_has_by_now_is_neither_told_as_too_much_nor_deleted() {
    let handed_over = "DELETE FROM old WHERE id = 1; INSERT INTO old VALUES (10, 's1', 'other')";
    let other = "UPDATE things SET name = 'other' WHERE sku = 's1'";
    let stage = products(other).await;
    let report = verified_while(&stage, Options::default(), ALL_KEYS_TOLD, handed_over).await;
    assert_eq!((report.outcome, found(&report)), (Outcome::Equal, vec![]), "{report:?}");

    let stage = products(other).await;
    assert_eq!(found(&verified(&stage).await), of(Kind::Differs, &["s1"]));
    stage.pair.legacy.run(handed_over).await;
    let done = crate::repair::repaired(&stage, None, true).await.unwrap();
    assert_eq!((done.written, done.deleted, done.left), (0, 0, 1), "{done:?}");
    assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM things").await, 9);
}

#[tokio::test]
async fn without_events_a_row_that_came_to_both_sides_meanwhile_is_not_too_much() {
    let without_events = Options { without_events: true, ..Options::default() };
    let extra = "INSERT INTO things VALUES ('s10', 'n10')";
    let stage = products(extra).await;
    let came = "INSERT INTO old VALUES (10, 's10', 'n10')";
    let report = verified_while(&stage, without_events.clone(), LEGACY_KEYS_TOLD, came).await;
    assert_eq!((report.outcome, found(&report)), (Outcome::Equal, vec![]), "{report:?}");
    let stage = products(extra).await;
    // One that is too much is told all the same, and whether it has events is not asked.
    stage.event("Thing", "10", "ThingCreated", "{}").await;
    assert_eq!(found(&verify_with(&stage, without_events).await), of(Kind::MissingInLegacy, &["s10"]));
}

#[tokio::test]
async fn a_row_that_a_stuck_event_keeps_from_being_judged_is_no_equality() {
    let stage = products("INSERT INTO things VALUES ('s10', 'n10')").await;
    let event = stage.event("Thing", "77", "ThingCreated", "{}").await;
    stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'failed', attempts = 3 WHERE id = {event}")).await;
    let report = verified(&stage).await;
    let of_thing = &report.entities[0];
    assert_eq!((report.outcome, of_thing.waiting, of_thing.complete), (Outcome::CouldNot, 1, false), "{report:?}");
    let said = verify::render(&report);
    assert!(said.contains("1 row could not be judged") && said.contains("outbox-relay failures"), "{said}");
    stage.pair.legacy.run("DELETE FROM outbox").await;
    assert_eq!(found(&verified(&stage).await), of(Kind::MissingInLegacy, &["s10"]));
}

#[tokio::test]
async fn a_row_behind_more_events_than_are_looked_at_is_no_equality() {
    let pair = pair().await;
    let rows = "CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, version int NOT NULL);
                INSERT INTO users SELECT i, 'name ' || i, 1 FROM generate_series(1, 10) i";
    pair.legacy.run(rows).await;
    let stage = Stage::on(pair, |config| {
        config.entities[0] = users().made_of(table("users"), "id");
        config.relay.lanes = 1;
    })
    .await;
    stage.pair.new.run("INSERT INTO users SELECT i, CASE i WHEN 7 THEN 'wrong' ELSE 'name ' || i END, 1 FROM generate_series(1, 10) i").await;
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'User', 'x' || i, 'UserUpdated', '{}' FROM generate_series(1, 20001) i",
        )
        .await;
    let report = verified(&stage).await;
    assert_eq!((report.outcome, report.entities[0].waiting), (Outcome::CouldNot, 1), "{report:?}");
    let said = verify::render(&report);
    assert!(said.contains("1 row could not be judged") && said.contains("let the relay catch up"), "{said}");
}

/// As events and the first copy leave it.
#[tokio::test]
async fn what_stands_although_the_mapping_filters_its_legacy_row_is_counted_once_as_left_over() {
    let filters =
        "SELECT payload->>'id' AS id, payload->>'name' AS name FROM event WHERE payload->>'deleted_at' IS NULL";
    for (key, method) in [("int", "ranges"), ("text", "buckets")] {
        let stage = stage_with(
            "CREATE TABLE old (id int PRIMARY KEY, name text, deleted_at timestamptz);
             INSERT INTO old SELECT i, 'n' || i, CASE WHEN i IN (1, 77, 3000) THEN now() END FROM generate_series(1, 3000) i",
            &format!(
                "CREATE TABLE things (id {key} PRIMARY KEY, name text);
                 INSERT INTO things SELECT i, 'n' || i FROM generate_series(1, 2999) i;
                 UPDATE things SET name = 'wrong' WHERE id = '5'"
            ),
            thing(Some(filters), &["id"]),
        )
        .await;
        for without_events in [false, true] {
            let report = verify_with(&stage, Options { without_events, ..Options::default() }).await;
            let of_thing = &report.entities[0];
            assert_eq!((found(&report), of_thing.left_over), (of(Kind::Differs, &["5"]), 2), "{report:?}");
            assert_eq!((of_thing.method.as_str(), of_thing.differences()), (method, 1), "{report:?}");
            assert!(verify::render(&report).contains("2 rows left over"), "{}", verify::render(&report));
            let sample = Some(10_000);
            let report = verify_with(&stage, Options { without_events, sample, ..Options::default() }).await;
            assert_eq!((found(&report), report.entities[0].left_over), (of(Kind::Differs, &["5"]), 2), "{report:?}");
        }
        stage.pair.new.run("UPDATE things SET name = 'n5' WHERE id = '5'").await;
        let report = verified(&stage).await;
        assert_eq!((report.outcome, report.entities[0].left_over), (Outcome::Equal, 2), "{report:?}");
    }
}

/// By its code an error of a value may be the server's or the operator's.
#[tokio::test]
async fn a_row_whose_mapping_raises_whatever_code_is_left_by_a_repair_and_hides_no_other() {
    let raises = "CREATE FUNCTION shown(name text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
                      IF name = 'n77' THEN RAISE EXCEPTION 'cannot be shown' USING ERRCODE = 'XX000'; END IF; RETURN name;
                  END $$;";
    for (function, kind, value, code) in
        [("", "tsquery", "(payload->>'name')::tsquery", "42601"), (raises, "text", "shown(payload->>'name')", "XX000")]
    {
        let stage = stage_with(
            "CREATE TABLE old (id int PRIMARY KEY, name text); INSERT INTO old SELECT i, 'n' || i FROM generate_series(1, 3000) i;
             UPDATE old SET name = name || ' n78' WHERE id = 77",
            &format!(
                "{function} CREATE TABLE things (id int PRIMARY KEY, name {kind});
                 INSERT INTO things SELECT i, ('n' || i)::{kind} FROM generate_series(1, 3000) i WHERE i NOT IN (77, 2500)"
            ),
            thing(Some(&format!("SELECT payload->>'id' AS id, {value} AS name FROM event")), &["id"]),
        )
        .await;
        if code == "XX000" {
            stage.pair.legacy.run("UPDATE old SET name = 'n77' WHERE id = 77").await;
        }
        // A verification does not say that keys are handed through of what it could not read.
        assert_eq!(verified(&stage).await.outcome, Outcome::CouldNot, "{code}");
        let keys = outbox_relay::repair::Wanted::Keys(
            ["5", "77", "2500"].map(|key| outbox_relay::source::RowKey(vec![key.to_owned()])).into(),
        );
        let done = crate::repair::repaired(&stage, Some(&keys), true).await.unwrap();
        assert_eq!((done.written, done.deleted, done.left, done.right), (1, 0, 1, 1), "{done:?}");
        assert!(
            done.changes.iter().any(|change| change.message.as_ref().is_some_and(|said| said.contains(code))),
            "{done:?}"
        );
    }
}

/// Rows that an earlier version wrote stand as they came first.
#[tokio::test]
async fn a_citext_key_that_is_written_otherwise_is_one_difference_and_is_written_and_never_deleted() {
    let mapping = "SELECT payload->>'id' AS id, payload->>'name' AS name FROM event";
    let stage = stage_with(
        "CREATE TABLE old (id text PRIMARY KEY, name text); INSERT INTO old SELECT 'k' || i, 'n' FROM generate_series(1, 3000) i;
         UPDATE old SET id = 'K7@B' WHERE id = 'k7'",
        "CREATE EXTENSION citext; CREATE TABLE things (id citext PRIMARY KEY, name text, theirs text);
         INSERT INTO things SELECT 'k' || i, 'n', 'kept' FROM generate_series(1, 3000) i; UPDATE things SET id = 'k7@b' WHERE id = 'k7'",
        thing(Some(mapping), &["id"]),
    )
    .await;
    for options in [Options { sample: Some(10_000), ..Options::default() }, Options::default()] {
        let report = verify_with(&stage, options).await;
        assert_eq!(found(&report), of(Kind::Differs, &["k7@b"]), "{report:?}");
    }
    let done = crate::repair::repaired(&stage, None, true).await.unwrap();
    assert_eq!((done.written, done.deleted, done.left), (1, 0, 0), "{done:?}");
    assert_eq!(
        stage.pair.new.value::<String>("SELECT id || ' ' || theirs FROM things WHERE id = 'k7@b'").await,
        "K7@B kept"
    );
    assert_eq!(verified(&stage).await.outcome, Outcome::Equal);
}

#[tokio::test]
async fn a_legacy_key_that_the_new_keys_domain_does_not_take_is_refused_and_hides_no_other() {
    let stage = stage_with(
        "CREATE TABLE old (id int PRIMARY KEY, name text); INSERT INTO old SELECT i, 'n' || i FROM generate_series(1, 3000) i;
         INSERT INTO old VALUES (-5, 'x')",
        "CREATE DOMAIN posint AS int CHECK (VALUE > 0); CREATE TABLE things (id posint PRIMARY KEY, name text);
         INSERT INTO things SELECT i, 'n' || i FROM generate_series(1, 3000) i WHERE i <> 2500",
        thing(None, &["id"]),
    )
    .await;
    let expected = [of(Kind::MissingInNew, &["2500"]), of(Kind::Refused, &["-5"])].concat();
    for options in [Options::default(), Options { sample: Some(10_000), ..Options::default() }] {
        let report = verify_with(&stage, options).await;
        assert_eq!(found(&report), expected, "{report:?}");
        let refused = report.differences.iter().find(|d| d.kind == Kind::Refused).unwrap();
        assert!(refused.message.as_ref().unwrap().contains("23514"), "{refused:?}");
    }
}

/// Capture writes it under the text of the row's key.
#[tokio::test]
async fn a_row_whose_aggregate_is_null_is_refused_only_once_no_event_of_its_type_is_on_its_way() {
    let mapping = "SELECT payload->>'id' AS id, payload->>'name' AS name FROM event";
    let mut entity = thing(Some(mapping), &["id"]);
    entity.legacy.as_mut().unwrap().aggregate_id = "customer::text".into();
    let stage = stage_with(
        "CREATE TABLE old (id int PRIMARY KEY, customer int, name text);
         INSERT INTO old SELECT i, CASE WHEN i <> 3 THEN i END, 'n' || i FROM generate_series(1, 5) i",
        "CREATE TABLE things (id int PRIMARY KEY, name text);
         INSERT INTO things SELECT i, 'n' || i FROM generate_series(1, 5) i WHERE i <> 3",
        entity,
    )
    .await;
    let payload = r#"{"id": 3, "customer": null, "name": "n3"}"#;
    let event = stage.event("Thing", "3", "ThingCreated", payload).await;
    stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'failed', attempts = 3 WHERE id = {event}")).await;
    let report = verified(&stage).await;
    let of_thing = &report.entities[0];
    assert_eq!((report.outcome, of_thing.differences(), of_thing.waiting), (Outcome::CouldNot, 0, 1), "{report:?}");
    let said = verify::render(&report);
    assert!(said.contains("1 row could not be judged") && said.contains("whose aggregate is NULL"), "{said}");

    // One that the relay applies while verification looks.
    stage.pair.legacy.run("DELETE FROM outbox").await;
    stage.event("Thing", "3", "ThingCreated", payload).await;
    let relay = async {
        eventually(DEADLINE, "the second verification has begun", || async {
            stage.pair.new.value::<i64>("SELECT count(*) FROM outbox_relay.verify_report").await == 2
        })
        .await;
        stage.start().await
    };
    let (report, running) = tokio::join!(verified(&stage), relay);
    running.stop().await;
    assert_eq!((report.outcome, found(&report)), (Outcome::Equal, vec![]), "{report:?}");

    stage.pair.new.run("DELETE FROM things WHERE id = 3").await;
    assert_eq!(found(&verified(&stage).await), of(Kind::Refused, &["3"]));
}

/// Locks the users of a database, says so, ends whoever waits for them until there were a few, and lets go. How many it ended.
fn end_whoever_waits_for_users(url: &str, locked: &std::sync::mpsc::Sender<()>) -> i64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut holder = sqlx::PgConnection::connect(url).await.unwrap();
        let mut other = sqlx::PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql("BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE").execute(&mut holder).await.unwrap();
        locked.send(()).unwrap();
        let (mut ended, began) = (0, Instant::now());
        while ended < 4 && began.elapsed() < DEADLINE {
            let waiting = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                           WHERE datname = current_database() AND backend_type = 'client backend' AND wait_event_type = 'Lock'";
            ended += sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut other).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        holder.close().await.unwrap();
        ended
    })
}

#[tokio::test]
async fn a_pass_goes_on_where_a_connection_is_ended_in_the_middle_of_a_statement() {
    let stage = stage_of(25_000).await;
    for database in [&stage.pair.legacy, &stage.pair.new] {
        let (source, target) = connect::open(&stage.config).await.unwrap();
        let (stop, somebody) = (CancellationToken::new(), std::sync::Mutex::new(None));
        // Once a chunk is read, and before the next.
        let tell = |_: &Far<'_>| {
            somebody.lock().unwrap().get_or_insert_with(|| {
                let (locked, is_locked) = std::sync::mpsc::channel();
                let url = database.url.clone();
                let ends = std::thread::spawn(move || end_whoever_waits_for_users(&url, &locked));
                is_locked.recv_timeout(DEADLINE).unwrap();
                ends
            });
        };
        let options = Options::default();
        let report = verify::verify(&stage.config, &source, &target, &options, &stop, &tell).await.unwrap();
        let ended = somebody.into_inner().unwrap().unwrap().join().unwrap();
        let of_users = &report.entities[0];
        assert_eq!(
            (report.outcome, of_users.legacy_rows, of_users.new_rows),
            (Outcome::Equal, 25_000, 25_000),
            "{report:?}"
        );
        assert!(ended >= 4, "{ended}");
    }
}
