//! repair and resync: what verify found is made right from the legacy database, and nothing else is touched.

use outbox_relay::config::{Action, Entity};
use outbox_relay::connect;
use outbox_relay::event::Lane;
use outbox_relay::job::{Kind, Via};
use outbox_relay::relay::batch::{self, Errand};
use outbox_relay::repair::{By, Repair, Repaired, Since, Task, Wanted, render, render_dry};
use outbox_relay::source::RowKey;
use outbox_relay::target::ReportId;
use outbox_relay::verify::{self, Options, Outcome, VerifyError};
use tokio_util::sync::CancellationToken;

use crate::backfill::{RAISES_ALWAYS, RAISES_ITS_NAME};
use crate::support::child::has_failpoints;
use crate::support::copying::Copier;
use crate::support::past::Past;
use crate::support::program::{folder_of, said};
use crate::support::stage::{Stage, file, users};
use crate::support::{DEADLINE, copying, pair};
use crate::verify::{Writers, found, inject, stage_of, stage_with, table, thing, verified, verify_with};

/// `None`: the last report.
pub(crate) async fn repaired(stage: &Stage, wanted: Option<&Wanted>, apply: bool) -> Result<Repaired, VerifyError> {
    let task = match wanted {
        Some(wanted) => Task::Resync(&stage.config.entities[0], wanted.clone()),
        None => Task::Reported(None, None),
    };
    run(stage, &task, apply, None).await
}

async fn run(stage: &Stage, task: &Task<'_>, apply: bool, expected: Option<u64>) -> Result<Repaired, VerifyError> {
    let (source, target) = connect::open(&stage.config).await.unwrap();
    let by = By { actor: "ada".into(), reason: "a test".into(), command: Kind::Repair, via: Via::Command };
    let stop = CancellationToken::new();
    let repair = Repair {
        config: &stage.config,
        source: &source,
        target: &target,
        by: &by,
        apply,
        expected,
        stop: &stop,
        job: None,
    };
    repair.run(task).await
}

#[tokio::test]
async fn repair_makes_every_fault_right_under_load_and_keeps_what_it_changed() {
    let stage = stage_of(10_000).await;
    let running = stage.start().await;
    let writers = Writers::start(&stage, 10_000, 1000);
    let expected = inject(&stage, 10_000).await;
    assert_eq!(verified(&stage).await.entities[0].differences(), expected.len() as u64);
    let planned = repaired(&stage, None, false).await.unwrap();
    assert_eq!((planned.written + planned.deleted, planned.left, planned.applied), (expected.len() as u64, 0, false));
    assert_eq!(verified(&stage).await.entities[0].differences(), expected.len() as u64, "nothing was changed");
    let done = repaired(&stage, None, true).await.unwrap();
    assert_eq!((done.written, done.deleted, done.left), (planned.written, planned.deleted, 0), "{done:?}");
    let after = verified(&stage).await;
    assert_eq!(after.outcome, Outcome::Equal, "{after:?}");
    writers.stop().await;
    running.stop().await;
    let kept: String = stage
        .pair
        .new
        .value(
            "SELECT string_agg(DISTINCT concat_ws(' ', actor, reason, entity, action, (before IS NULL)::text, (after IS NULL)::text), ', ' ORDER BY
             concat_ws(' ', actor, reason, entity, action, (before IS NULL)::text, (after IS NULL)::text)) FROM outbox_relay.repaired",
        )
        .await;
    assert_eq!(
        kept,
        "ada a test users delete false true, ada a test users write false false, ada a test users write true false"
    );
    let rows: i64 = stage.pair.new.value("SELECT count(*) FROM outbox_relay.repaired").await;
    assert_eq!(rows, expected.len() as i64);
    // Again: there is nothing left to do.
    let again = repaired(&stage, None, true).await.unwrap();
    assert!(!again.changes_any(), "{again:?}");
}

#[tokio::test]
async fn a_row_whose_event_is_open_is_left_alone() {
    let stage = stage_of(10).await;
    stage.pair.new.run("UPDATE users SET name = 'x' WHERE id IN (3, 4)").await;
    verified(&stage).await;
    stage.user(3, "UserUpdated", "from an event", 2).await;
    let done = repaired(&stage, None, true).await.unwrap();
    assert_eq!((done.written, done.left), (1, 1), "{done:?}");
    assert_eq!(stage.pair.new.value::<String>("SELECT name FROM users WHERE id = 3").await, "x");
    assert_eq!(stage.pair.new.value::<String>("SELECT name FROM users WHERE id = 4").await, "name 4");
}

#[tokio::test]
async fn resync_takes_keys_and_a_span_of_time() {
    let stage = stage_of(20).await;
    let shared = stage.shared().await;
    let before = chrono::Utc::now() - chrono::Duration::minutes(1);
    stage.user(7, "UserUpdated", "name 7", 1).await;
    stage.drain_by_hand(&shared).await;
    stage
        .pair
        .new
        .run("UPDATE users SET name = 'x' WHERE id IN (7, 8, 9); INSERT INTO users VALUES (30, 'y', 1)")
        .await;
    let span = Wanted::Since(Since { since: before, until: None });
    let done = repaired(&stage, Some(&span), true).await.unwrap();
    assert_eq!((done.written, done.deleted), (1, 0), "{done:?}");
    let keys = Wanted::Keys(["8", "30", "99", "1"].map(|k| RowKey(vec![k.to_owned()])).into());
    let done = repaired(&stage, Some(&keys), true).await.unwrap();
    assert_eq!((done.written, done.deleted), (1, 1), "{done:?}");
    let left: String =
        stage.pair.new.value("SELECT string_agg(id::text, ',' ORDER BY id) FROM users WHERE name IN ('x', 'y')").await;
    assert_eq!(left, "9");
}

/// An order's lines, each with a number of its own: a line may go over to another order, and an order may have none.
async fn orders() -> Stage {
    let pair = pair().await;
    pair.legacy
        .run(
            r#"CREATE TABLE orders (id int PRIMARY KEY, lines jsonb NOT NULL);
             INSERT INTO orders VALUES (1, '[7]'), (2, '[8]'), (3, '[]')"#,
        )
        .await;
    pair.new.run("CREATE TABLE lines (line int PRIMARY KEY, order_id int NOT NULL)").await;
    let mapping = "SELECT (payload->>'id')::int AS order_id, l.line::int AS line
                   FROM event LEFT JOIN LATERAL jsonb_array_elements_text(payload->'lines') AS l (line) ON true";
    Stage::on(pair, |config| {
        config.relay.lanes = 1;
        let lines = Entity::new("Order", table("lines"), &["line"]).made_of(table("orders"), "id");
        let lines = lines.mapping("lines.sql", mapping).on("OrderUpdated", Action::Upsert);
        config.entities = vec![Entity { replace_by: vec!["order_id".to_owned()], ..lines }];
    })
    .await
}

#[tokio::test]
async fn rows_that_go_from_one_owner_to_another_are_neither_told_nor_deleted() {
    let stage = orders().await;
    assert!(copying::copy(&stage).await.is_whole());
    // An order without lines lacks none.
    let report = verified(&stage).await;
    assert_eq!((report.outcome, report.entities[0].new_rows), (Outcome::Equal, 2), "{report:?}");
    let mine = "UPDATE lines SET order_id = 9 WHERE line = 7; INSERT INTO lines VALUES (9, 1)";
    stage.pair.new.run(mine).await;
    let report = verified(&stage).await;
    assert_eq!(found(&report), [(verify::Kind::MissingInLegacy, "9".into()), (verify::Kind::Differs, "7".into())]);
    // Until it is repaired, the line goes over, and its new owner's event is applied.
    stage
        .pair
        .legacy
        .run("UPDATE orders SET lines = CASE id WHEN 1 THEN '[]'::jsonb ELSE '[7, 8]' END WHERE id < 3")
        .await;
    stage.pair.new.run("UPDATE lines SET order_id = 2 WHERE line = 7").await;
    let done = repaired(&stage, None, true).await.unwrap();
    assert_eq!((done.written, done.deleted), (0, 0), "{done:?}");
    let lines = "SELECT string_agg(line || ' of ' || order_id, ', ' ORDER BY line) FROM lines";
    assert_eq!(stage.pair.new.value::<String>(lines).await, "7 of 2, 8 of 2, 9 of 1");
    let report = verified(&stage).await;
    assert_eq!(found(&report), [(verify::Kind::MissingInLegacy, "9".into())]);
}

#[tokio::test]
async fn an_owners_row_that_goes_when_its_others_are_written_is_told_counted_and_kept() {
    let stage = orders().await;
    assert!(copying::copy(&stage).await.is_whole());
    stage.pair.new.run("UPDATE lines SET order_id = 9 WHERE line = 7; INSERT INTO lines VALUES (9, 1)").await;
    assert_eq!(verified(&stage).await.entities[0].differences(), 2);
    let resync = Wanted::Keys(vec![RowKey(vec!["1".to_owned()])]);
    for (wanted, apply) in [(Some(&resync), false), (None, false), (None, true)] {
        let done = repaired(&stage, wanted, apply).await.unwrap();
        assert_eq!((done.written, done.deleted, done.left), (1, 1, 0), "{apply}: {done:?}");
    }
    let lines = "SELECT string_agg(line || ' of ' || order_id, ', ' ORDER BY line) FROM lines";
    assert_eq!(stage.pair.new.value::<String>(lines).await, "7 of 1, 8 of 2");
    let kept =
        "SELECT string_agg(concat_ws(' ', action, key, before->>'order_id', after->>'order_id'), ', ' ORDER BY action)
                FROM outbox_relay.repaired";
    assert_eq!(stage.pair.new.value::<String>(kept).await, "delete [\"9\"] 1, write [\"7\"] 9 1");
    assert_eq!(verified(&stage).await.outcome, Outcome::Equal);
}

#[tokio::test]
async fn resync_takes_a_key_however_it_is_written_and_says_how_many_stand_on_neither_side() {
    let stage = stage_of(20).await;
    stage.pair.new.run("UPDATE users SET name = 'x' WHERE id = 7; INSERT INTO users VALUES (30, 'y', 1)").await;
    let keys = Wanted::Keys(["007", "7", "030", "99", "abc"].map(|k| RowKey(vec![k.to_owned()])).into());
    let done = repaired(&stage, Some(&keys), true).await.unwrap();
    assert_eq!((done.written, done.deleted, done.right, done.left), (1, 1, 0, 0), "{done:?}");
    assert_eq!(done.notes, ["2 keys stand on neither side"]);
    assert_eq!(verified(&stage).await.outcome, Outcome::Equal);

    let id = "aaaaaaaa-0000-0000-0000-00000000000b";
    let table = |name: &str, value: &str| {
        format!("CREATE TABLE {name} (id uuid PRIMARY KEY, name text); INSERT INTO {name} VALUES ('{id}', '{value}')")
    };
    let stage = stage_with(&table("old", "a"), &table("things", "wrong"), thing(None, &["id"])).await;
    let keys = Wanted::Keys(vec![RowKey(vec![id.to_uppercase()])]);
    let done = repaired(&stage, Some(&keys), true).await.unwrap();
    assert_eq!((done.written, done.right, done.notes.len()), (1, 0, 0), "{done:?}");
}

/// Where the new table has nothing but a key an event that brings a row again writes nothing: what stands does not change.
#[tokio::test]
async fn a_row_that_its_event_has_just_brought_again_is_neither_told_nor_deleted() {
    if !has_failpoints() {
        return;
    }
    for (does, point) in [("verifies", "look_fenced"), ("repairs", "look_fenced"), ("repairs", "repair_fenced")] {
        let stage = copying::stage(pair().await, 12, |config| {
            config.relay.lanes = 1;
            config.relay.deadline = DEADLINE;
            let users = &mut config.entities[0];
            users.mapping = Some(file("mappings/user.sql", "SELECT payload->>'id' AS id FROM event"));
            // Which only the row tells, not its key: there is no lane to lock.
            users.legacy.as_mut().unwrap().aggregate_id = "coalesce(noise, '') || id".into();
        })
        .await;
        let only_keys = "ALTER TABLE users ALTER name SET DEFAULT '', ALTER version SET DEFAULT 0;
                         INSERT INTO users (id) SELECT i FROM generate_series(-5, 6) i";
        stage.pair.new.run(only_keys).await;
        copying::install(&stage).await;
        let shared = stage.shared().await;
        let gone = "BEGIN; SET LOCAL outbox_relay.applying = 'on'; DELETE FROM users WHERE id = 1; COMMIT";
        stage.pair.legacy.run(gone).await;
        let mut child = Copier::that(does, &stage, Some(&format!("{point}=stop")));
        child.stands_still().await;
        stage.pair.legacy.run("INSERT INTO users VALUES (1, 'back again', 2)").await;
        stage.drain_by_hand(&shared).await;
        child.go_on();
        assert!(child.ended().await, "{does}: a false alarm");
        let rows = "SELECT count(*) FROM users WHERE id = 1";
        assert_eq!(stage.pair.new.value::<i64>(rows).await, 1, "{does}, {point}: it was deleted");
        if does == "repairs" {
            // What is nobody's goes all the same.
            stage.pair.legacy.run(gone).await;
            assert!(Copier::that(does, &stage, None).ended().await);
            assert_eq!(stage.pair.new.value::<i64>(rows).await, 0);
        }
    }
}

#[tokio::test]
async fn keys_of_a_uuid_and_a_text_are_copied_compared_repaired_and_resynced() {
    let pair = pair().await;
    let parts = "CREATE TABLE parts (tenant uuid, name text, quantity int NOT NULL, PRIMARY KEY (tenant, name))";
    pair.legacy.run(parts).await;
    pair.new.run(parts).await;
    pair.legacy
        .run("INSERT INTO parts SELECT md5((i % 7)::text)::uuid, 'Part ' || chr(65 + i % 26) || i, i FROM generate_series(1, 3000) i")
        .await;
    let stage = Stage::on(pair, |config| {
        let mut part = Entity::new("Part", table("parts"), &["tenant", "name"]).made_of(table("parts"), "name");
        if let Some(rows) = &mut part.legacy {
            rows.key = vec!["tenant".into(), "name".into()];
            rows.aggregate_id = "tenant || '/' || name".into();
        }
        config.entities = vec![part.on("PartUpdated", Action::Upsert)];
    })
    .await;
    assert!(copying::copy(&stage).await.is_whole());
    let report = verified(&stage).await;
    assert_eq!((report.outcome, report.entities[0].new_rows), (Outcome::Equal, 3000), "{report:?}");
    let faults = "UPDATE parts SET quantity = -1 WHERE name IN ('Part B1', 'Part J2999');
                  DELETE FROM parts WHERE name IN ('Part C2', 'Part I2998');
                  INSERT INTO parts SELECT tenant, name || ' too much', 0 FROM (SELECT * FROM parts ORDER BY tenant, name LIMIT 1) p";
    stage.pair.new.run(faults).await;
    let of = verified(&stage).await.entities.remove(0);
    assert_eq!((of.differing, of.missing_in_new, of.missing_in_legacy), (2, 2, 1), "{of:?}");
    let done = repaired(&stage, None, true).await.unwrap();
    assert_eq!((done.written, done.deleted, done.left), (4, 1, 0), "{done:?}");
    assert_eq!(verified(&stage).await.outcome, Outcome::Equal);
    stage.pair.new.run("UPDATE parts SET quantity = -1 WHERE name IN ('Part B1', 'Part C2')").await;
    let key: Vec<String> =
        stage.pair.new.value("SELECT ARRAY[tenant::text, name] FROM parts WHERE name = 'Part B1'").await;
    let done = repaired(&stage, Some(&Wanted::Keys(vec![RowKey(key)])), true).await.unwrap();
    assert_eq!((done.written, done.deleted), (1, 0), "{done:?}");
    let wrong: String = stage.pair.new.value("SELECT string_agg(name, ', ') FROM parts WHERE quantity = -1").await;
    assert_eq!(wrong, "Part C2");
}

/// Of 60,000 rows one has another key: a sample hardly ever shows it.
#[tokio::test]
async fn resync_deletes_no_row_that_a_legacy_row_of_another_key_yields() {
    let mut stage = stage_of(60_000).await;
    stage
        .pair
        .new
        .run("UPDATE users SET id = -id WHERE id = 2999; INSERT INTO users VALUES (500000, 'too much', 1)")
        .await;
    let keys = Wanted::Keys(["-2999", "500000", "600000", "1"].map(|k| RowKey(vec![k.to_owned()])).into());
    let mapping = "SELECT CASE WHEN (payload->>'id')::bigint = 2999 THEN -2999 ELSE (payload->>'id')::bigint END AS id,
                          payload->>'name' AS name, payload->>'version' AS version FROM event";
    let handing_through = stage.config.entities[0].mapping.replace(file("mappings/user.sql", mapping));
    let done = repaired(&stage, Some(&keys), true).await.unwrap();
    assert_eq!((done.deleted, done.right, done.left), (0, 1, 3), "{done:?}");
    assert!(done.notes.len() == 1 && done.notes[0].contains("without a legacy row"), "{done:?}");
    let cannot = |said: &String| said.contains("cannot be told from its key");
    assert!(done.changes.iter().all(|change| change.message.as_ref().is_some_and(cannot)), "{done:?}");
    // Where every key is handed through, what no legacy row has goes.
    stage.config.entities[0].mapping = handing_through;
    let keys = Wanted::Keys(vec![RowKey(vec!["500000".to_owned()])]);
    let done = repaired(&stage, Some(&keys), true).await.unwrap();
    assert_eq!((done.deleted, done.left), (1, 0), "{done:?}");
}

#[tokio::test]
async fn resync_rewrites_what_changed_within_a_window_and_nothing_that_changed_before_or_after_it() {
    let stage = stage_of(20).await;
    let shared = stage.shared().await;
    let change = async |ids: &[i64]| {
        for id in ids {
            stage.user(*id, "UserUpdated", &format!("name {id}"), 1).await;
        }
        stage.drain_by_hand(&shared).await;
        chrono::Utc::now().to_rfc3339()
    };
    let since = change(&[5, 6]).await;
    let until = change(&[7, 8]).await;
    change(&[9]).await;
    // Of one that the outbox has forgotten the new database's log still knows.
    stage.pair.legacy.run("DELETE FROM outbox WHERE aggregate_id IN ('6', '8')").await;
    let wrong = async || {
        let ids = "SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM users WHERE name = 'wrong'";
        stage.pair.new.value::<String>(ids).await
    };
    stage.pair.new.run("UPDATE users SET name = 'wrong' WHERE id BETWEEN 4 AND 10").await;
    let folder = folder_of(&stage, "");
    let window = ["resync", "users", "--since", &since, "--until", &until];
    let planned = said(&folder, &window, 1).await;
    assert!(planned.contains("2 to be written, 0 to be deleted"), "{planned}");
    assert_eq!(wrong().await, "4,5,6,7,8,9,10");
    let done = said(&folder, &[&window[..], &["--apply", "--reason", "a bad deployment", "--yes"]].concat(), 0).await;
    assert!(done.contains("users 7 written") && done.contains("users 8 written"), "{done}");
    assert_eq!(wrong().await, "4,5,6,9,10");
    assert_eq!(stage.pair.new.value::<String>("SELECT name FROM users WHERE id = 8").await, "name 8");
    // Again: there is nothing left to do. To now: what came after it, too.
    said(&folder, &window, 0).await;
    said(&folder, &[&window[..4], &["--apply", "--reason", "a bad deployment", "--yes"]].concat(), 0).await;
    assert_eq!(wrong().await, "4,5,6,10");
}

#[tokio::test]
async fn divergent_aggregates_are_made_right_and_are_divergent_no_more() {
    let stage = stage_of(5).await;
    let shared = stage.shared().await;
    let past = Past::of(&stage.pair.legacy).await;
    // What the legacy database will have forgotten: a change, and a user of its own.
    stage.pair.legacy.run("UPDATE users SET name = 'lost' WHERE id = 2; INSERT INTO users VALUES (6, 'lost', 1)").await;
    stage.user(2, "UserUpdated", "lost", 1).await;
    stage.user(6, "UserCreated", "lost", 1).await;
    stage.drain_by_hand(&shared).await;
    past.again(&stage.pair.legacy).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    let divergent = || stage.pair.legacy.value::<i64>("SELECT count(*) FROM outbox_relay.divergent");
    assert_eq!(divergent().await, 2);
    let planned = repaired(&stage, Some(&Wanted::Divergent), false).await.unwrap();
    assert_eq!((planned.written, planned.deleted, planned.divergent_cleared), (1, 1, 0), "{planned:?}");
    assert_eq!(divergent().await, 2);
    let done = repaired(&stage, Some(&Wanted::Divergent), true).await.unwrap();
    assert_eq!((done.written, done.deleted, done.divergent_cleared), (1, 1, 2), "{done:?}");
    assert_eq!(divergent().await, 0);
    assert_eq!(verified(&stage).await.outcome, Outcome::Equal);
    let (_, _) = batch::run_once(&shared, Lane(0), Errand::default()).await.unwrap();
}

/// Two entities of 300 rows each, of which some are wrong.
async fn users_and_others() -> Stage {
    let pair = pair().await;
    for name in ["users", "others"] {
        let rows = format!(
            "CREATE TABLE {name} (id bigint PRIMARY KEY, name text NOT NULL, version int NOT NULL);
             INSERT INTO {name} SELECT i, 'name ' || i, 1 FROM generate_series(1, 300) i"
        );
        pair.legacy.run(&rows).await;
        if name == "others" {
            pair.new.run(&rows).await;
        }
    }
    let stage = Stage::on(pair, |config| {
        config.entities[0] = users().made_of(table("users"), "id");
        let mut others = users().made_of(table("others"), "id");
        (others.name, others.aggregate_type, others.table) = ("others".into(), "Other".into(), Some(table("others")));
        config.entities.push(others);
    })
    .await;
    stage.pair.new.run("INSERT INTO users SELECT i, 'name ' || i, 1 FROM generate_series(1, 300) i").await;
    stage.pair.new.run("UPDATE users SET name = 'wrong' WHERE id <= 55").await;
    stage.pair.new.run("UPDATE others SET name = 'wrong' WHERE id <= 2").await;
    stage
}

fn only(name: &str, sample: Option<u32>) -> Options {
    Options { entities: vec![name.into()], sample, ..Options::default() }
}

#[tokio::test]
async fn a_later_sample_or_report_of_another_entity_hides_no_known_difference() {
    let stage = users_and_others().await;
    assert_eq!(verify_with(&stage, only("users", None)).await.entities[0].differences(), 55);
    assert_eq!(verify_with(&stage, only("others", None)).await.entities[0].differences(), 2);
    verify_with(&stage, only("users", Some(1))).await;
    // Nor does one that was told to end before its end.
    let (source, target) = connect::open(&stage.config).await.unwrap();
    let (stop, silent) = (CancellationToken::new(), |_: &verify::Far<'_>| {});
    stop.cancel();
    let ended = verify::verify(&stage.config, &source, &target, &Options::default(), &stop, &silent).await.unwrap();
    assert!(!ended.is_complete(), "{ended:?}");
    let done = repaired(&stage, None, true).await.unwrap();
    assert_eq!((done.written, done.left, done.verify_again), (57, 0, false), "{done:?}");
    assert!(done.notes.contains(&"users: of report 1: 55 differences".to_owned()), "{done:?}");
    assert_eq!(verified(&stage).await.outcome, Outcome::Equal);
    let again = repaired(&stage, None, false).await.unwrap();
    assert!(!again.changes_any() && !render_dry(&again).contains("Nothing was changed"), "{again:?}");
}

#[tokio::test]
async fn a_verification_that_finds_too_much_says_that_it_did_not_read_on() {
    let stage = stage_of(25_000).await;
    stage.pair.new.run("TRUNCATE users").await;
    let report = verified(&stage).await;
    assert!(!report.is_complete(), "{report:?}");
    assert_eq!(report.entities[0].differences(), 10_000);
    assert!(repaired(&stage, None, false).await.unwrap().verify_again);
}

#[tokio::test]
async fn a_repair_of_a_verification_that_was_cut_off_says_to_verify_again() {
    let stage = stage_of(20).await;
    stage.pair.new.run("DELETE FROM users WHERE id = 7").await;
    assert!(verified(&stage).await.is_complete());
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let job = target.jobs(None, 1).await.unwrap().remove(0);
    let told: serde_json::Value = serde_json::from_str(job.result.unwrap().get()).unwrap();
    assert_eq!(told["complete"], true);
    assert!(!repaired(&stage, None, false).await.unwrap().verify_again);
    // As where too much differs to read on.
    stage.pair.new.run("UPDATE outbox_relay.verify_entity SET report = jsonb_set(report, '{complete}', 'false')").await;
    let planned = repaired(&stage, None, false).await.unwrap();
    assert!(planned.verify_again && planned.written == 1, "{planned:?}");
    assert!(render(&planned).contains("users: the verification was cut off: verify again afterwards"));
}

#[tokio::test]
async fn keys_of_another_number_of_parts_than_the_legacy_key_are_refused_by_the_command() {
    let stage = copying::stage(pair().await, 3, |_| {}).await;
    let told = said(&folder_of(&stage, ""), &["resync", "users", "--keys", "[1,2]"], 2).await;
    assert!(told.contains("the legacy key of users has 1 part (id)") && told.contains("1, 2 has 2"), "{told}");
}

#[tokio::test]
async fn a_repair_acts_on_what_was_shown_whatever_is_verified_meanwhile_and_on_no_more() {
    let stage = stage_of(20).await;
    stage.pair.new.run("UPDATE users SET name = 'wrong' WHERE id = 1").await;
    verified(&stage).await;
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let last = Task::Reported(None, None);
    let task = last.chosen(&stage.config, &target).await.unwrap();
    let shown = run(&stage, &task, false, None).await.unwrap();
    assert_eq!((shown.written, shown.deleted), (1, 0), "{shown:?}");
    // While the question stands.
    stage.pair.new.run("UPDATE users SET name = 'wrong' WHERE id IN (2, 3)").await;
    verified(&stage).await;
    let wrong = || stage.pair.new.value::<i64>("SELECT count(*) FROM users WHERE name = 'wrong'");
    let refused = run(&stage, &last, true, Some(1)).await;
    assert!(matches!(refused, Err(VerifyError::NotAsExpected { expected: 1, matched: 3 })), "{refused:?}");
    assert_eq!(wrong().await, 3);
    let done = run(&stage, &task, true, Some(1)).await.unwrap();
    assert_eq!((done.written, wrong().await), (1, 2), "{done:?}");
    // Fewer are no surprise.
    assert_eq!(run(&stage, &last, true, Some(3)).await.unwrap().written, 2);
    assert_eq!(wrong().await, 0);
}

#[tokio::test]
async fn rows_of_which_few_can_be_looked_at_at_a_time_are_all_made_right() {
    let pair = pair().await;
    pair.legacy
        .run(
            "CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, version int NOT NULL);
             INSERT INTO users SELECT i, repeat('x', 4500000), 1 FROM generate_series(1, 12) i",
        )
        .await;
    let stage = Stage::on(pair, |config| {
        config.relay.lanes = 1;
        config.relay.deadline = DEADLINE;
        config.entities[0] = users().made_of(table("users"), "id");
    })
    .await;
    let keys = Wanted::Keys((1..=12).map(|id| RowKey(vec![id.to_string()])).collect());
    for apply in [false, true] {
        let done = repaired(&stage, Some(&keys), apply).await.unwrap();
        assert_eq!((done.written, done.left), (12, 0), "{apply}: {:?}", done.notes);
    }
    assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM users WHERE length(name) = 4500000").await, 12);
}

/// Of 60,000 rows one has another key, and so had one that is gone.
#[tokio::test]
async fn what_a_legacy_row_that_is_gone_yielded_under_another_key_is_not_taken_for_right() {
    let mut stage = stage_of(60_000).await;
    let mapping = "SELECT CASE WHEN (payload->>'id')::bigint IN (2999, 70000) THEN -(payload->>'id')::bigint
                          ELSE (payload->>'id')::bigint END AS id, payload->>'name' AS name, payload->>'version' AS version FROM event";
    stage.config.entities[0].mapping = Some(file("mappings/user.sql", mapping));
    stage.pair.new.run("UPDATE users SET id = -id WHERE id = 2999").await;
    let shared = stage.shared().await;
    let past = Past::of(&stage.pair.legacy).await;
    // What the legacy database will have forgotten.
    stage.pair.legacy.run("INSERT INTO users VALUES (70000, 'lost', 1)").await;
    stage.user(70_000, "UserCreated", "lost", 1).await;
    stage.drain_by_hand(&shared).await;
    past.again(&stage.pair.legacy).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    let divergent = || stage.pair.legacy.value::<i64>("SELECT count(*) FROM outbox_relay.divergent");
    assert_eq!(divergent().await, 1);
    for apply in [false, true] {
        let done = repaired(&stage, Some(&Wanted::Divergent), apply).await.unwrap();
        assert!(!done.changes_any() && done.verify_again && done.divergent_cleared == 0, "{apply}: {done:?}");
    }
    assert_eq!(divergent().await, 1);
    let folder = folder_of(&stage, "");
    said(&folder, &["resync", "users", "--divergent", "--apply", "--reason", "a test"], 1).await;
    let told = said(&folder, &["resync", "users", "--keys", "70000"], 1).await;
    let note = "users: 1 key without a legacy row";
    assert!(told.contains(note) && told.contains("outbox-relay verify users finds it"), "{told}");
    assert_eq!(found(&verified(&stage).await), [(verify::Kind::MissingInLegacy, "-70000".into())]);
}

#[tokio::test]
async fn aggregates_of_a_span_of_time_are_found_however_many_events_lie_between_theirs() {
    let stage = stage_of(3).await;
    let of = |kind: &str, ids: &str| {
        format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, status)
             SELECT '{kind}', i::text, 'X', '{{}}', 'processed' FROM generate_series({ids}) i;"
        )
    };
    stage.pair.legacy.run(&[of("User", "1, 1"), of("Other", "1, 50001"), of("User", "2, 2")].concat()).await;
    stage.pair.new.run("UPDATE users SET name = 'wrong'").await;
    let since = chrono::Utc::now() - chrono::Duration::hours(1);
    let span = Wanted::Since(Since { since, until: None });
    let done = repaired(&stage, Some(&span), true).await.unwrap();
    assert_eq!((done.written, &done.notes[0][..]), (2, "2 aggregates had events in that time"), "{done:?}");
    let (source, _) = connect::open(&stage.config).await.unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    assert_eq!(source.aggregates_between("User", since, chrono::Utc::now(), &stop).await.unwrap(), None);
}

#[tokio::test]
async fn an_entity_without_a_report_is_told_and_one_that_the_named_report_is_not_of_is_refused() {
    let stage = users_and_others().await;
    let report = ReportId(verify_with(&stage, only("users", None)).await.id);
    let planned = repaired(&stage, None, false).await.unwrap();
    assert!(planned.verify_again && planned.written == 55, "{:?}", planned.notes);
    let note = "others: no full verification of it has come to an answer: outbox-relay verify others";
    assert!(planned.notes.contains(&note.to_owned()), "{:?}", planned.notes);
    let others = stage.config.entities.iter().find(|entity| entity.name == "others").unwrap();
    let refused = run(&stage, &Task::Reported(Some(report), Some(others)), false, None).await.unwrap_err();
    let id = report.0;
    let expected = format!("report {id} is not of others: outbox-relay verify --report {id} says of which it is");
    assert_eq!(refused.to_string(), expected);
    verify_with(&stage, only("others", None)).await;
    assert!(!repaired(&stage, None, true).await.unwrap().verify_again);
}

/// Of which aggregate it was only the legacy row told: there is no lane to lock.
#[tokio::test]
async fn a_deleted_row_is_told_and_counted_where_the_new_database_writes_its_key_otherwise() {
    let table = |name: &str| {
        format!(
            "CREATE TABLE {name} (id bytea PRIMARY KEY, name text NOT NULL); INSERT INTO {name} VALUES ('\\x61', 'a')"
        )
    };
    let escaped =
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database()); END $$";
    let new = format!("{}, ('\\x62', 'too much'); {escaped}", table("things"));
    let mut entity = thing(None, &["id"]);
    entity.legacy.as_mut().unwrap().aggregate_id = "name".into();
    let stage = stage_with(&table("old"), &new, entity).await;
    let keys = Wanted::Keys(vec![RowKey(vec!["\\x62".to_owned()])]);
    let done = repaired(&stage, Some(&keys), true).await.unwrap();
    assert_eq!((done.deleted, done.left), (1, 0), "{done:?}");
    assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM outbox_relay.repaired").await, 1);
    assert_eq!(verified(&stage).await.outcome, Outcome::Equal);
}

#[tokio::test]
async fn an_owner_of_more_rows_than_are_replaced_is_left_and_others_beside_it_are_made_right() {
    let stage = orders().await;
    assert!(copying::copy(&stage).await.is_whole());
    let many = "UPDATE lines SET order_id = 9 WHERE line IN (7, 8); INSERT INTO lines VALUES (20, 2);
                INSERT INTO lines SELECT i, 1 FROM generate_series(1000, 11000) i";
    stage.pair.new.run(many).await;
    let keys = Wanted::Keys(["1", "2"].map(|k| RowKey(vec![k.to_owned()])).into());
    for apply in [false, true] {
        let done = repaired(&stage, Some(&keys), apply).await.unwrap();
        assert_eq!((done.written, done.deleted, done.left), (1, 1, 1), "{apply}: {done:?}");
        let refused = |said: &String| said.contains("its owner has more than 10,000 rows");
        assert!(done.changes.iter().any(|change| change.message.as_ref().is_some_and(refused)), "{done:?}");
    }
    stage.pair.new.run("DELETE FROM lines WHERE line = 1000").await;
    let done = repaired(&stage, Some(&keys), true).await.unwrap();
    assert_eq!((done.written, done.deleted, done.right, done.left), (1, 10_000, 1, 0), "{:?}", done.notes);
    let lines = "SELECT string_agg(line || ' of ' || order_id, ', ' ORDER BY line) FROM lines";
    assert_eq!(stage.pair.new.value::<String>(lines).await, "7 of 1, 8 of 2");
}

/// Nothing shows then whose the rows of the new table are.
#[tokio::test]
async fn where_the_mapping_refuses_every_row_none_of_the_new_table_is_deleted() {
    let sound =
        "CREATE OR REPLACE FUNCTION shown(name text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN name; END $$;";
    let stage = stage_with(
        "CREATE TABLE old (id int PRIMARY KEY, name text); INSERT INTO old SELECT i, 'n' FROM generate_series(1, 10) i",
        &format!("{sound} CREATE TABLE things (id int PRIMARY KEY, name text)"),
        thing(Some("SELECT (payload->>'id')::int + 1000 AS id, shown(payload->>'name') AS name FROM event"), &["id"]),
    )
    .await;
    assert!(copying::copy(&stage).await.is_whole());
    let keys = Wanted::Keys(vec![RowKey(vec!["1005".to_owned()])]);
    for code in ["P0001", "42883", "XX000"] {
        let raises = format!("RAISE EXCEPTION 'broken' USING ERRCODE = '{code}'");
        stage.pair.new.run(&sound.replace("RETURN name", &raises)).await;
        let done = repaired(&stage, Some(&keys), true).await;
        assert!(done.as_ref().map_or(true, |done| (done.deleted, done.left) == (0, 1)), "{code}: {done:?}");
        assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM things").await, 10, "{code}");
    }
}

/// They go with what is written, and no audit could name them.
#[tokio::test]
async fn an_owners_rows_with_null_in_their_key_are_not_taken_away_unkept() {
    let mapping = "SELECT payload->>'id' AS owner, k AS kind FROM event LEFT JOIN LATERAL jsonb_array_elements_text(payload->'kinds') AS k ON true";
    let mut entity = thing(Some(mapping), &["owner", "kind"]);
    entity.replace_by = vec!["owner".to_owned()];
    let stage = stage_with(
        "CREATE TABLE old (id int PRIMARY KEY, kinds text[]); INSERT INTO old VALUES (1, '{a,b}'), (2, '{a,b}')",
        "CREATE TABLE things (owner int, kind text, UNIQUE (owner, kind));
         INSERT INTO things VALUES (1, 'a'), (1, NULL), (2, 'a'), (2, 'c')",
        entity,
    )
    .await;
    let keys = Wanted::Keys(["1", "2"].map(|k| RowKey(vec![k.to_owned()])).into());
    for apply in [false, true] {
        let done = repaired(&stage, Some(&keys), apply).await.unwrap();
        assert_eq!((done.written, done.deleted, done.left), (1, 1, 1), "{apply}: {done:?}");
        let refused = |said: &String| said.contains("its owner has rows with NULL in their key");
        assert!(done.changes.iter().any(|change| change.message.as_ref().is_some_and(refused)), "{done:?}");
    }
    stage.pair.new.run("DELETE FROM things WHERE kind IS NULL").await;
    let done = repaired(&stage, Some(&keys), true).await.unwrap();
    assert_eq!((done.written, done.deleted, done.left), (1, 0, 0), "{done:?}");
}

/// As of types in C that give their errors no code.
#[tokio::test]
async fn a_row_is_left_for_what_one_value_is_refused_for_whatever_its_code_and_others_are_made_right() {
    let stage = stage_of(10).await;
    let (legacy, new) = (&stage.pair.legacy, &stage.pair.new);
    let values = "UPDATE users SET name = CASE id WHEN 1 THEN 'XX000' WHEN 2 THEN '0A000' WHEN 3 THEN '42601' ELSE 'right' END WHERE id < 6";
    legacy.run(values).await;
    new.run(&format!("INSERT INTO users VALUES (20, 'XX000', 1), (21, 'too much', 1); {RAISES_ITS_NAME}")).await;
    assert_eq!(verified(&stage).await.entities[0].differences(), 7);
    let done = repaired(&stage, None, true).await.unwrap();
    assert_eq!((done.written, done.deleted, done.left), (2, 1, 4), "{done:?}");
    let refused = |said: &&str| said.contains("no geometry");
    let refused = done.changes.iter().filter_map(|change| change.message.as_deref()).filter(refused);
    assert_eq!(refused.count(), 4, "{done:?}");
    assert_eq!(new.value::<i64>("SELECT count(*) FROM users WHERE name = 'right'").await, 2);
    assert_eq!(new.value::<i64>("SELECT count(*) FROM users WHERE id > 10").await, 1);
    // What comes without any row is no row's.
    new.run(RAISES_ALWAYS).await;
    let error = repaired(&stage, None, true).await.unwrap_err().to_string();
    assert!(error.contains("no such place (42P01)"), "{error}");
}
