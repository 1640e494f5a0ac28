//! The first copy: nothing goes back, comes back or is missing, whatever ends it, while everybody writes.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outbox_relay::backfill::{self, Options};
use outbox_relay::config::{Action, DatabaseUrl, Entity, LegacyRows, RowsFrom, TableName};
use outbox_relay::connect;
use outbox_relay::init::Choices;
use outbox_relay::repair::Wanted;
use outbox_relay::source::RowKey;
use outbox_relay::target::Reason;
use outbox_relay::verify::{self, Outcome};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader, Lines};
use tokio_util::sync::CancellationToken;

use crate::admin::{Api, tokens};
use crate::repair::repaired;
use crate::support::child::{Child, has_failpoints};
use crate::support::copying::{self, Copier, agree, copied, copy, copy_as_told, copy_with, install, rows};
use crate::support::past::Past;
use crate::support::program::{Ended, ended, folder_of, on_a_terminal, program};
use crate::support::stage::{Stage, file};
use crate::support::{DEADLINE, Database, Pair, eventually, own_servers, pair};
use crate::verify::{verified, verify_with};

/// Not a test: the process that others kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the tests that kill it"]
async fn child_that_copies() {
    copy_as_told().await;
}

fn table(name: &str) -> TableName {
    TableName { schema: "public".into(), table: name.into() }
}

/// Small and repeatable.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Changes, deletes and brings back rows of its own share, now and then slowly, or in vain.
async fn write(url: &str, writer: i64, writers: i64, span: i64, mut dice: Dice, over: &AtomicBool) {
    let mut connection: Option<PgConnection> = None;
    while !over.load(Ordering::SeqCst) {
        let Some(open) = &mut connection else {
            // The server is restarted under it, too.
            connection = PgConnection::connect(url).await.ok();
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let id = dice.below((span / writers) as u64) as i64 * writers + writer;
        let change = match dice.below(10) {
            0 | 1 => format!(
                "WITH d AS (DELETE FROM users WHERE id = {id} RETURNING id, version)
                 INSERT INTO tomb SELECT * FROM d ON CONFLICT (id) DO UPDATE SET version = excluded.version"
            ),
            2 | 3 => format!(
                "INSERT INTO users SELECT {id}, 'again', coalesce((SELECT version FROM tomb WHERE id = {id}), 0) + 1
                 ON CONFLICT DO NOTHING"
            ),
            _ => format!("UPDATE users SET version = version + 1, name = 'v' || version WHERE id = {id}"),
        };
        let late = if dice.below(40) == 0 { "SELECT pg_sleep(0.2);" } else { "" };
        let end = if dice.below(15) == 0 { "ROLLBACK" } else { "COMMIT" };
        if open.execute(AssertSqlSafe(format!("BEGIN; {change}; {late} {end}"))).await.is_err() {
            connection = None;
        }
        tokio::time::sleep(Duration::from_millis(dice.below(12))).await;
    }
}

/// Relays and a copy that are killed, and sessions that are ended, until `until`; then a copy that is let end.
async fn havoc(stage: &Stage, mut dice: Dice, until: Instant) {
    let mut relays = [Child::start(stage, None), Child::start(stage, None)];
    let mut copier = Copier::start(stage, None);
    while Instant::now() < until {
        match dice.below(4) {
            n @ (0 | 1) => relays[n as usize] = Child::start(stage, None),
            2 => copier = Copier::start(stage, None),
            _ => {
                let side = if dice.below(2) == 0 { &stage.pair.legacy } else { &stage.pair.new };
                let _ = side
                    .pool
                    .execute(
                        "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE datname = current_database()
                         AND application_name = 'outbox-relay' ORDER BY random() LIMIT 3) s",
                    )
                    .await;
            }
        }
        if !copier.is_running() {
            copier = Copier::start(stage, None);
        }
        tokio::time::sleep(Duration::from_millis(200 + dice.below(900))).await;
    }
    drop(copier);
    let summary = copy_with(stage, &Options { patience: DEADLINE, ..Options::default() }).await;
    assert!(summary.is_whole(), "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_writers_and_kills_of_every_party_no_row_goes_back_comes_back_or_is_missing() {
    let mut servers = own_servers().await;
    let stage = copying::stage(servers.pair().await, 6_000, |config| config.backfill.rows_per_second = 900).await;
    install(&stage).await;
    let (over, written) = (AtomicBool::new(false), AtomicBool::new(false));
    let url = stage.pair.legacy.url.clone();
    let span = 8_000;
    let writers = async {
        tokio::join!(
            write(&url, 0, 3, span, Dice(1), &over),
            write(&url, 1, 3, span, Dice(2), &over),
            // A few rows, hot.
            write(&url, 2, 3, 30, Dice(3), &over)
        );
        written.store(true, Ordering::SeqCst);
    };
    let parties = async {
        havoc(&stage, Dice(7), Instant::now() + Duration::from_secs(12)).await;
        // Both servers die in the middle of it, and recover.
        let mut relay = Child::start(&stage, None);
        let options = Options { restart: true, ..Options::default() };
        let again = CancellationToken::new();
        let (told, stop) = (|_| {}, again.clone());
        let copy = backfill::run(&stage.config, &options, &told, &stop);
        let kill = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            servers.legacy.kill().await;
            servers.legacy.restart().await.unwrap();
            tokio::time::sleep(Duration::from_millis(700)).await;
            servers.new.kill().await;
            servers.new.restart().await.unwrap();
        };
        let (copied, ()) = tokio::join!(copy, kill);
        over.store(true, Ordering::SeqCst);
        drop(copied);
        // What commits after the last look is nobody's fault.
        eventually(DEADLINE, "the last writer has ended", || async { written.load(Ordering::SeqCst) }).await;
        if !relay.is_running() {
            relay = Child::start(&stage, None);
        }
        let summary = copy_with(&stage, &Options { patience: DEADLINE, ..Options::default() }).await;
        assert!(summary.is_whole(), "{summary:?}");
        stage.drained().await;
        drop(relay);
    };
    tokio::join!(writers, parties);
    let events: i64 = stage.pair.legacy.value("SELECT count(*) FROM outbox").await;
    assert!(events > 200, "the writers hardly wrote: {events} events");
    assert_eq!(stage.count("failed").await + stage.count("held").await, 0);
    agree(&stage).await;
}

#[tokio::test]
async fn a_copy_that_dies_between_any_two_steps_goes_on_where_it_was() {
    if !has_failpoints() {
        return;
    }
    let stage = copying::stage(pair().await, 25_000, |config| config.relay.lanes = 2).await;
    for step in ["chunk_locked:3", "chunk_written:2", "chunk_committed:1", "chunk_written:4", "chunk_committed:5"] {
        let mut copier = Copier::start(&stage, Some(step));
        assert!(!copier.ended().await, "{step} was never reached");
        let (_, target) = connect::open(&stage.config).await.unwrap();
        let copies = target.copies().await.unwrap();
        // What is told to be copied is there.
        let there: i64 = stage.pair.new.value("SELECT count(*) FROM users").await;
        assert!(copies[0].rows <= there, "{copies:?}, {there} rows are there");
        assert_eq!(copies[0].ended_at, None);
    }
    let summary = copy(&stage).await;
    assert!(summary.is_whole(), "{summary:?}");
    agree(&stage).await;
}

#[tokio::test]
async fn an_outage_between_the_last_row_and_the_end_is_waited_for() {
    if !has_failpoints() {
        return;
    }
    let mut servers = own_servers().await;
    let stage = copying::stage(servers.pair().await, 20, |_| {}).await;
    let mut copier = Copier::start(&stage, Some("rows_copied=stop"));
    copier.stands_still().await;
    let (_, target) = connect::open(&stage.config).await.unwrap();
    assert_eq!(target.copies().await.unwrap()[0].ended_at, None, "the sequences are not set yet");
    servers.new.kill().await;
    servers.new.restart().await.unwrap();
    copier.go_on();
    assert!(copier.ended().await, "it goes on where it was");
    let (_, target) = connect::open(&stage.config).await.unwrap();
    assert!(target.copies().await.unwrap()[0].ended_at.is_some());
    agree(&stage).await;
}

#[tokio::test]
async fn what_was_read_before_a_copy_was_begun_anew_is_not_noted_of_the_new_one() {
    if !has_failpoints() {
        return;
    }
    // One page, whose keys are read before the first one is copied.
    let stage = copying::stage(pair().await, 500, |config| config.relay.lanes = 2).await;
    let mut older = Copier::start(&stage, Some("chunk_locked=stop"));
    older.stands_still().await;
    // Rows that it knows nothing of, and that no event brings.
    stage.pair.legacy.run("INSERT INTO users SELECT i, 'n' || i, 1 FROM generate_series(-400, -300) i").await;
    let newer = Copier::that("copies anew", &stage, Some("page_read=stop"));
    newer.stands_still().await;
    older.go_on();
    assert!(!older.ended().await, "it notes nothing any more, and says so");
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let job = target.jobs(None, 10).await.unwrap().remove(1);
    assert_eq!((job.state.as_str(), job.code.as_deref()), ("failed", Some("begun_anew")), "{job:?}");
    drop(newer);
    assert!(copy(&stage).await.is_whole());
    assert_eq!(target.copies().await.unwrap()[0].rows, 601);
    agree(&stage).await;
}

#[tokio::test]
async fn a_copy_that_is_begun_anew_ends_the_one_that_is_under_way() {
    let stage = copying::stage(pair().await, 3_000, |_| {}).await;
    let mut slow = stage.config.clone();
    slow.backfill.rows_per_second = 300;
    let (began, stop) = (AtomicBool::new(false), CancellationToken::new());
    let tell = |told| {
        if matches!(told, backfill::Told::Began { .. }) {
            began.store(true, Ordering::SeqCst);
        }
    };
    let options = Options::default();
    let anew = async {
        eventually(DEADLINE, "it has begun", || async { began.load(Ordering::SeqCst) }).await;
        copy_with(&stage, &Options { restart: true, ..Options::default() }).await
    };
    let (older, newer) = tokio::join!(backfill::run(&slow, &options, &tell, &stop), anew);
    assert!(newer.is_whole(), "{newer:?}");
    let said = older.unwrap_err().to_string();
    assert!(said.contains("the copy of users was begun anew"), "{said}");
    let (_, target) = connect::open(&stage.config).await.unwrap();
    assert_eq!(target.copies().await.unwrap()[0].rows, 3_000);
    agree(&stage).await;
}

/// Another entity, of the same legacy rows.
async fn with_people(pair: Pair) -> Stage {
    pair.new.run("CREATE TABLE people (id bigint PRIMARY KEY, name text NOT NULL, version int NOT NULL)").await;
    copying::stage(pair, 300, |config| {
        let people = Entity::new("Person", table("people"), &["id"]).made_of(table("users"), "id");
        let people = Entity { mapping: config.entities[0].mapping.clone(), ..people };
        config.entities.push(people.on("PersonUpdated", Action::Upsert));
    })
    .await
}

#[tokio::test]
async fn a_restart_of_two_that_ends_in_the_first_and_is_gone_on_with_copies_both_anew() {
    let stage = with_people(pair().await).await;
    assert!(copy(&stage).await.is_whole());
    stage.pair.new.run("UPDATE users SET name = 'wrong'; UPDATE people SET name = 'wrong'").await;
    let options = Options { restart: true, ..Options::default() };
    let stop = CancellationToken::new();
    let tell = |told| {
        if matches!(told, backfill::Told::Began { .. }) {
            stop.cancel();
        }
    };
    let summary = backfill::run(&stage.config, &options, &tell, &stop).await.unwrap();
    assert!(summary.interrupted && summary.forgotten && summary.copies.len() == 1, "{summary:?}");
    let summary = copy(&stage).await;
    assert!(summary.is_whole() && summary.copies.iter().all(|copy| copy.rows == 300), "{summary:?}");
    let wrong =
        "SELECT count(*) FROM (SELECT name FROM users UNION ALL SELECT name FROM people) t WHERE name = 'wrong'";
    assert_eq!(stage.pair.new.value::<i64>(wrong).await, 0);
    // Told to end before anything was: then nothing is forgotten.
    let summary = backfill::run(&stage.config, &options, &|_| {}, &stop).await.unwrap();
    assert!(summary.interrupted && !summary.forgotten, "{summary:?}");
}

#[tokio::test]
async fn a_row_behind_a_failed_event_is_told_at_once_and_one_behind_a_retry_is_waited_for() {
    let stage = copying::stage(pair().await, 10, |_| {}).await;
    let (failed, retry) =
        (stage.user(2, "UserUpdated", "older", 1).await, stage.user(3, "UserUpdated", "older", 1).await);
    // Nobody relays.
    for (event, status) in [(failed, "failed"), (retry, "retry")] {
        stage.pair.legacy.run(&format!("UPDATE outbox SET status = '{status}' WHERE id = {event}")).await;
    }
    let waits = AtomicBool::new(false);
    let tell = |told| {
        if let backfill::Told::Progress { waits_for: Some(why), .. } = told
            && why.starts_with("1 rows wait for their events")
        {
            waits.store(true, Ordering::SeqCst);
        }
    };
    let options = Options { patience: Duration::from_secs(24 * 3600), ..Options::default() };
    let stop = CancellationToken::new();
    let settle = async {
        eventually(DEADLINE, "it waits for the retry", || async { waits.load(Ordering::SeqCst) }).await;
        stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'skipped' WHERE id = {retry}")).await;
    };
    let copying = tokio::time::timeout(DEADLINE * 2, backfill::run(&stage.config, &options, &tell, &stop));
    let (copied, ()) = tokio::join!(copying, settle);
    let copied = copied.expect("it does not wait for what has failed").unwrap().copies.remove(0);
    assert_eq!((copied.rows, copied.pending, copied.waiting, copied.refused), (9, 0, 1, 0), "{copied:?}");
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let left = target.left_rows("users", None, 10).await.unwrap().remove(0);
    assert_eq!((left.key.0[0].as_str(), left.reason), ("2", Reason::Failed));
    assert_eq!(left.message, Some(format!("event {failed} of its aggregate has failed")));
}

#[tokio::test]
async fn a_new_database_that_goes_back_takes_its_progress_with_it() {
    let stage = copying::stage(pair().await, 3_000, |config| config.backfill.rows_per_second = 1_000).await;
    let stop = CancellationToken::new();
    let told = stop.clone();
    let tell = move |what: backfill::Told| {
        if matches!(what, backfill::Told::Progress { rows, .. } if rows > 0) {
            told.cancel();
        }
    };
    let first = backfill::run(&stage.config, &Options::default(), &tell, &stop).await.unwrap();
    assert!(first.interrupted);
    let past = Past::of(&stage.pair.new).await;
    assert!(copy(&stage).await.is_whole());
    past.again(&stage.pair.new).await;
    assert!(rows(&stage.pair.new).await.len() < 3_000);
    let summary = copy(&stage).await;
    assert!(summary.is_whole(), "{summary:?}");
    agree(&stage).await;
}

#[tokio::test]
async fn a_row_with_an_event_that_is_not_applied_is_left_to_it() {
    let stage = copying::stage(pair().await, 10, |_| {}).await;
    // Nobody relays: the events stay pending, and say an older state than the row has by now.
    stage.user(1, "UserUpdated", "older", 1).await;
    let failed = stage.user(2, "UserUpdated", "older", 1).await;
    stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'failed' WHERE id = {failed}")).await;
    stage.pair.legacy.run("UPDATE users SET version = 2, name = 'newer' WHERE id IN (1, 2)").await;
    let summary = copy(&stage).await;
    let copied = &summary.copies[0];
    assert_eq!((copied.rows, copied.pending, copied.waiting, copied.state.as_str()), (8, 1, 1, "left"), "{summary:?}");
    assert!(!summary.is_whole());
    // Once the events are applied or skipped, the next run brings what is left.
    stage.user(1, "UserUpdated", "newer", 2).await;
    let relay = stage.start().await;
    stage.drained().await;
    stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'skipped' WHERE id = {failed}")).await;
    let summary = copy(&stage).await;
    assert!(summary.is_whole(), "{summary:?}");
    relay.stop().await;
    agree(&stage).await;
}

#[tokio::test]
async fn a_row_whose_event_is_gone_without_having_been_applied_is_copied() {
    let stage = copying::stage(pair().await, 10, |_| {}).await;
    let events = [stage.user(1, "UserUpdated", "older", 1).await, stage.user(2, "UserUpdated", "older", 1).await];
    let copied = copy(&stage).await.copies.remove(0);
    assert_eq!((copied.rows, copied.pending), (8, 2), "{copied:?}");
    // One is skipped and retired, the other one lost with the server that had it.
    for event in events {
        stage.pair.legacy.run(&format!("DELETE FROM outbox WHERE id = {event}")).await;
    }
    let summary = copy(&stage).await;
    assert!(summary.is_whole() && summary.copies[0].rows == 10, "{summary:?}");
    agree(&stage).await;
}

#[tokio::test]
async fn a_row_whose_event_was_lost_is_copied_although_another_rows_event_has_its_id() {
    let stage = copying::stage(pair().await, 10, |_| {}).await;
    let past = Past::of(&stage.pair.legacy).await;
    let lost = stage.user(1, "UserUpdated", "n1", 1).await;
    let copied = copy(&stage).await.copies.remove(0);
    assert_eq!((copied.rows, copied.pending), (9, 1), "{copied:?}");
    // The legacy database fails over; from its sequence the next event gets the id of the one that is lost.
    past.again(&stage.pair.legacy).await;
    assert_eq!(stage.user(2, "UserUpdated", "n2", 1).await, lost);
    let relay = stage.start().await;
    stage.drained().await;
    relay.stop().await;
    let summary = copy(&stage).await;
    assert!(summary.is_whole() && summary.copies[0].rows == 10, "{summary:?}");
    agree(&stage).await;
}

#[tokio::test]
async fn logs_that_differ_are_healed_first_though_no_relay_runs() {
    if !has_failpoints() {
        return;
    }
    let stage = copying::stage(pair().await, 10, |config| config.relay.lanes = 1).await;
    stage.pair.legacy.run("UPDATE users SET version = 2, name = 'two' WHERE id = 1").await;
    let event = stage.user(1, "UserUpdated", "two", 2).await;
    let mut relay = Child::start(&stage, Some("target_committed:1"));
    assert!(relay.ended(DEADLINE).await.is_some(), "it dies between apply and settle");
    assert_eq!(stage.status(event).await, "pending");
    let summary = copy(&stage).await;
    assert!(summary.is_whole(), "{summary:?}");
    assert_eq!(stage.status(event).await, "processed");
    agree(&stage).await;
}

#[tokio::test]
async fn a_row_that_the_new_table_refuses_is_named_and_the_others_are_copied() {
    let stage = copying::stage(pair().await, 300, |_| {}).await;
    stage.pair.new.run("ALTER TABLE users ADD CHECK (name <> 'n7')").await;
    stage.pair.legacy.run("INSERT INTO users VALUES (1000, 'n7', 1)").await;
    let summary = copy(&stage).await;
    assert_eq!((summary.copies[0].rows, summary.copies[0].refused), (299, 2), "{summary:?}");
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let left = target.left_rows("users", None, 10).await.unwrap();
    let keys: Vec<&str> = left.iter().map(|row| row.key.0[0].as_str()).collect();
    assert_eq!(keys, ["1000", "7"]);
    assert_eq!(left[0].code.as_deref(), Some("23514"));
    // Mended, by the next run.
    stage.pair.legacy.run("UPDATE users SET name = 'seven' WHERE id = 7; DELETE FROM users WHERE id = 1000").await;
    let summary = copy(&stage).await;
    assert!(summary.is_whole(), "{summary:?}");
    agree(&stage).await;
}

#[tokio::test]
async fn rows_left_out_are_so_no_more_once_a_repair_or_a_whole_verification_has_found_them_there() {
    let stage = copying::stage(pair().await, 60, |_| {}).await;
    let new = &stage.pair.new;
    new.run("ALTER TABLE users ADD CONSTRAINT names CHECK (name NOT IN ('n7', 'n8', 'n9'))").await;
    assert_eq!(copy(&stage).await.copies[0].refused, 3);
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let left = async || {
        let copied = target.copies().await.unwrap().remove(0);
        let keys = target.left_rows("users", None, 10).await.unwrap().into_iter().map(|row| row.key.0[0].clone());
        (copied.state, keys.collect::<Vec<String>>())
    };
    let are = |state: &str, keys: &[&str]| (state.to_owned(), keys.iter().map(|key| (*key).to_owned()).collect());
    assert_eq!(verified(&stage).await.outcome, Outcome::Differs);
    assert_eq!(left().await, are("left", &["7", "8", "9"]));
    // What a repair writes, not what is refused again; and a dry run settles nothing.
    new.run("ALTER TABLE users DROP CONSTRAINT names, ADD CONSTRAINT names CHECK (name NOT IN ('n8', 'n9'))").await;
    repaired(&stage, None, false).await.unwrap();
    assert_eq!(left().await, are("left", &["7", "8", "9"]));
    repaired(&stage, None, true).await.unwrap();
    assert_eq!(left().await, are("left", &["8", "9"]));
    // By hand: which only a look at all rows finds, that was begun after they were left out.
    new.run("ALTER TABLE users DROP CONSTRAINT names; INSERT INTO users VALUES (8, 'n8', 1), (9, 'n9', 1)").await;
    let sample = verify_with(&stage, verify::Options { sample: Some(60), ..verify::Options::default() }).await;
    assert_eq!((sample.outcome, left().await), (Outcome::Equal, are("left", &["8", "9"])));
    new.run("UPDATE outbox_relay.backfill_left SET at = now() + interval '1 hour' WHERE key = '[\"9\"]'").await;
    assert_eq!(verified(&stage).await.outcome, Outcome::Equal);
    assert_eq!(left().await, are("left", &["9"]));
    // A row that differs elsewhere leaves open which others do.
    new.run("UPDATE outbox_relay.backfill_left SET at = now(); UPDATE users SET name = 'other' WHERE id = 1").await;
    assert_eq!(verified(&stage).await.outcome, Outcome::Differs);
    assert_eq!(left().await, are("left", &["9"]));
    // What is right already, a repair finds so.
    repaired(&stage, Some(&Wanted::Keys(vec![RowKey(vec!["9".to_owned()])])), true).await.unwrap();
    assert_eq!(left().await, are("done", &[]));
}

/// Raises an error with the code that is a row's name.
pub(crate) const RAISES_ITS_NAME: &str = "
    CREATE FUNCTION raise_name() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE changed record := coalesce(NEW, OLD); BEGIN
        IF changed.name ~ '^[0-9A-Z]{5}$' THEN RAISE 'no geometry' USING ERRCODE = changed.name; END IF;
        RETURN changed;
    END $$;
    CREATE TRIGGER raise_name BEFORE INSERT OR UPDATE OR DELETE ON users FOR EACH ROW EXECUTE FUNCTION raise_name();";

/// Raises an error that has the code of a statement that is wrong, whether or not there is a row.
pub(crate) const RAISES_ALWAYS: &str = "
    CREATE FUNCTION raise_always() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'no such place' USING ERRCODE = '42P01'; END $$;
    CREATE TRIGGER raise_always BEFORE INSERT ON users FOR EACH STATEMENT EXECUTE FUNCTION raise_always();";

/// Why a copy ends that cannot go on.
async fn why_it_ends(stage: &Stage) -> String {
    let (options, stop) = (Options::default(), CancellationToken::new());
    let copying = backfill::run(&stage.config, &options, &|_| {}, &stop);
    tokio::time::timeout(DEADLINE, copying).await.expect("it ends").unwrap_err().to_string()
}

/// Types in C that give their errors no code raise XX000, and what a tsquery is refused for has the code of a statement that is wrong.
#[tokio::test]
async fn what_one_value_is_refused_for_is_its_rows_affair_whatever_its_code() {
    let stage = copying::stage(pair().await, 40, |config| {
        // All of them in one chunk.
        config.relay.lanes = 1;
        let mapping = "SELECT payload->>'id' AS id, payload->>'name' AS name, payload->>'version' AS version, payload->>'noise' AS query FROM event";
        config.entities[0].mapping = Some(file("mappings/user.sql", mapping));
    })
    .await;
    stage.pair.new.run(&format!("ALTER TABLE users ADD query tsquery; {RAISES_ITS_NAME}")).await;
    stage
        .pair
        .legacy
        .run(
            "UPDATE users SET noise = CASE id WHEN 4 THEN 'a b' ELSE 'a & b' END,
                 name = CASE id WHEN 1 THEN 'XX000' WHEN 2 THEN '0A000' WHEN 3 THEN '42P01' ELSE name END",
        )
        .await;
    let copied = tokio::time::timeout(DEADLINE, copy(&stage)).await.expect("it ends").copies.remove(0);
    assert_eq!((copied.rows, copied.refused), (36, 4), "{copied:?}");
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let left = target.left_rows("users", None, 10).await.unwrap();
    let left: Vec<_> =
        left.iter().map(|row| (row.key.0[0].as_str(), row.code.as_deref().unwrap_or_default())).collect();
    assert_eq!(left, [("1", "XX000"), ("2", "0A000"), ("3", "42P01"), ("4", "42601")]);
    // Mended, by the next run.
    stage.pair.new.run("DROP TRIGGER raise_name ON users").await;
    stage.pair.legacy.run("UPDATE users SET noise = 'a & b' WHERE id = 4").await;
    let summary = copy(&stage).await;
    assert!(summary.is_whole(), "{summary:?}");
    agree(&stage).await;
}

#[tokio::test]
async fn what_a_statement_is_refused_for_without_any_row_ends_the_copy_with_its_file() {
    let stage = copying::stage(pair().await, 40, |_| {}).await;
    stage.pair.new.run(RAISES_ALWAYS).await;
    let error = why_it_ends(&stage).await;
    assert!(error.contains("entity users (mappings/user.sql): no such place (42P01): mend it"), "{error}");
    let (_, target) = connect::open(&stage.config).await.unwrap();
    assert_eq!(target.copies().await.unwrap()[0].refused, 0);
}

#[tokio::test]
async fn a_constraint_that_is_made_deferrable_while_a_copy_runs_costs_only_the_rows_that_break_it() {
    if !has_failpoints() {
        return;
    }
    let stage = copying::stage(pair().await, 300, |_| {}).await;
    let mut copier = Copier::start(&stage, Some("page_read=stop"));
    copier.stands_still().await;
    stage
        .pair
        .new
        .run(
            "CREATE TABLE names (name text PRIMARY KEY);
             INSERT INTO names SELECT 'n' || i FROM generate_series(-5, 294) i WHERE i <> 7;
             ALTER TABLE users ADD FOREIGN KEY (name) REFERENCES names DEFERRABLE INITIALLY DEFERRED",
        )
        .await;
    copier.go_on();
    assert!(copier.ended().await, "it ended with an error");
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let copied = target.copies().await.unwrap().remove(0);
    assert_eq!((copied.rows, copied.refused), (299, 1), "{copied:?}");
    let left = target.left_rows("users", None, 10).await.unwrap().remove(0);
    assert_eq!((left.key.0[0].as_str(), left.code.as_deref()), ("7", Some("23503")));
}

#[tokio::test]
async fn legacy_rows_that_cannot_be_read_are_told_as_such_and_not_as_the_mappings_fault() {
    let stage = copying::stage(pair().await, 60, |config| {
        let rows = config.entities[0].legacy.as_mut().unwrap();
        rows.aggregate_id = "concat(id, ':', 1 / CASE noise WHEN 'bad' THEN 0 ELSE 1 END)".into();
    })
    .await;
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let said = "entity users: its legacy rows cannot be read: division by zero (22012). Look whether the relay's role has its grants";
    let bad = "UPDATE users SET noise = 'bad' WHERE id = 7";
    // Where its key is read.
    stage.pair.legacy.run(bad).await;
    let error = why_it_ends(&stage).await;
    assert!(error.contains(said) && error.contains("for every row of public.users"), "{error}");
    assert!(!error.contains("mappings/user.sql"), "{error}");
    let good = "UPDATE users SET noise = NULL";
    stage.pair.legacy.run(good).await;
    // And where the row is.
    if has_failpoints() {
        let mut copier = Copier::start(&stage, Some("page_read=stop"));
        copier.stands_still().await;
        stage.pair.legacy.run(bad).await;
        copier.go_on();
        assert!(!copier.ended().await, "it could be read");
        let job = target.jobs(None, 1).await.unwrap().remove(0);
        assert_eq!(job.code.as_deref(), Some("22012"));
        let message = job.message.unwrap_or_default();
        assert!(message.contains(said) && !message.contains("mappings/user.sql"), "{message}");
        stage.pair.legacy.run(good).await;
    }
    let summary = copy(&stage).await;
    assert!(summary.is_whole(), "{summary:?}");
    agree(&stage).await;
}

#[tokio::test]
async fn keys_that_cannot_be_read_in_time_end_the_copy_with_the_index_that_they_need() {
    let databases = pair().await;
    // Each key takes a tenth of a second while something stands in `slow`.
    databases
        .legacy
        .run(
            "CREATE TABLE slow (); CREATE FUNCTION public.slowly(id bigint) RETURNS text LANGUAGE plpgsql AS $$
             BEGIN IF EXISTS (SELECT FROM public.slow) THEN PERFORM pg_sleep(0.1); END IF; RETURN id::text; END $$",
        )
        .await;
    let stage = copying::stage(databases, 300, |config| {
        (config.relay.lanes, config.relay.deadline) = (2, Duration::from_secs(2));
        config.entities[0].legacy.as_mut().unwrap().aggregate_id = "public.slowly(id)".into();
    })
    .await;
    let ends_with_the_index = async || {
        stage.pair.legacy.run("INSERT INTO slow DEFAULT VALUES").await;
        let error = why_it_ends(&stage).await;
        for said in [
            "entity users: a page of its legacy keys was not read within 2s, again and again",
            "CREATE INDEX CONCURRENTLY ON \"public\".\"users\" (\"id\")",
            "raise relay.deadline",
            "outbox-relay backfill users",
        ] {
            assert!(error.contains(said), "{said}\n{error}");
        }
        stage.pair.legacy.run("DELETE FROM slow").await;
        let summary = copy(&stage).await;
        assert!(summary.is_whole(), "{summary:?}");
        agree(&stage).await;
    };
    ends_with_the_index().await;
    // A page that was handed out before.
    if has_failpoints() {
        let mut copier = Copier::that("copies anew", &stage, Some("page_read"));
        assert!(!copier.ended().await, "it dies when a page is handed out");
        ends_with_the_index().await;
    }
}

#[tokio::test]
async fn a_query_whose_rows_come_in_no_indexs_order_ends_the_copy_in_time_with_what_to_do() {
    let stage = copying::stage(pair().await, 300, |config| {
        (config.relay.lanes, config.relay.deadline) = (2, Duration::from_secs(2));
        let slow = "SELECT * FROM users WHERE pg_sleep(0.1) IS NOT NULL";
        config.entities[0].legacy.as_mut().unwrap().from = RowsFrom::Query(file("legacy/users.sql", slow));
    })
    .await;
    let error = why_it_ends(&stage).await;
    let said = "was not read within 2s, again and again: an index has to yield the rows of legacy/users.sql in the order of the key (id)";
    assert!(error.contains(said), "{error}");
}

#[tokio::test]
async fn too_many_refused_rows_end_the_copy_with_the_reason() {
    let stage = copying::stage(pair().await, 300, |config| config.backfill.max_refused = 20).await;
    stage.pair.new.run("ALTER TABLE users ADD CHECK (version > 1)").await;
    let options = Options::default();
    let error = backfill::run(&stage.config, &options, &|_| {}, &CancellationToken::new()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("more than 20 rows") && text.contains("users_version_check"), "{text}");
}

#[tokio::test]
async fn a_row_that_is_refused_once_more_at_the_end_is_counted_once() {
    let stage = copying::stage(pair().await, 300, |config| config.backfill.max_refused = 20).await;
    stage.pair.new.run("ALTER TABLE users ADD CHECK (id NOT BETWEEN 1 AND 15)").await;
    for _ in 0..2 {
        let copied = copy(&stage).await.copies.remove(0);
        assert_eq!((copied.rows, copied.refused), (285, 15), "{copied:?}");
        assert!(copied.ended_at.is_some(), "{copied:?}");
    }
}

/// Users who have a boss, in a new table that knows it.
async fn with_bosses(rows: u32, boss: &str) -> Stage {
    let stage = copying::stage(pair().await, rows, |config| {
        config.relay.lanes = 8;
        config.backfill.max_refused = 20;
        let mapping = "SELECT payload->>'id' AS id, payload->>'name' AS name, payload->>'version' AS version, payload->>'boss' AS boss FROM event";
        config.entities[0].mapping = Some(file("mappings/user.sql", mapping));
    })
    .await;
    stage.pair.new.run("ALTER TABLE users ADD boss bigint REFERENCES users").await;
    stage.pair.legacy.run(&format!("ALTER TABLE users ADD boss bigint; UPDATE users SET boss = {boss}")).await;
    stage
}

#[tokio::test]
async fn a_tree_in_one_table_is_copied_whole_whichever_lane_comes_first() {
    // Five below one another, each of them in whichever lane.
    let stage = with_bosses(3_000, "CASE WHEN id % 6 <> 0 AND id > 0 THEN id - 1 END").await;
    let summary = copy(&stage).await;
    assert!(summary.is_whole(), "{summary:?}");
    agree(&stage).await;
    let bosses: i64 = stage.pair.new.value("SELECT count(boss) FROM users").await;
    assert_eq!(bosses, stage.pair.legacy.value::<i64>("SELECT count(boss) FROM users").await);
}

#[tokio::test]
async fn rows_whose_parent_is_nowhere_are_refused_once_no_round_brings_any() {
    let stage = with_bosses(300, "CASE WHEN id % 10 <> 0 AND id > 0 THEN id - 1 END").await;
    stage.pair.legacy.run("UPDATE users SET boss = 9999 WHERE id = 290; UPDATE users SET boss = id WHERE id = 5").await;
    let copied = copy(&stage).await.copies.remove(0);
    // 290 and the four below.
    assert_eq!((copied.rows, copied.refused, copied.ended_at.is_some()), (295, 5, true), "{copied:?}");
    // More than may be refused.
    stage.pair.legacy.run("UPDATE users SET boss = 9999 WHERE id >= 270").await;
    stage.pair.new.run("DELETE FROM users WHERE id >= 270").await;
    let anew = Options { restart: true, ..Options::default() };
    let error = backfill::run(&stage.config, &anew, &|_| {}, &CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("more than 20 rows were refused") && error.contains("foreign key"), "{error}");
}

#[tokio::test]
async fn a_sequence_that_cannot_be_set_in_time_ends_the_copy_with_what_to_do() {
    let stage = copying::stage(pair().await, 20, |config| config.relay.deadline = Duration::from_secs(2)).await;
    stage.pair.new.run("CREATE SEQUENCE users_no; ALTER TABLE users ALTER id SET DEFAULT nextval('users_no')").await;
    let mut other = PgConnection::connect(&stage.pair.new.url).await.unwrap();
    other.execute("BEGIN; ALTER SEQUENCE users_no CACHE 5").await.unwrap();
    let (options, stop) = (Options::default(), CancellationToken::new());
    let copying = backfill::run(&stage.config, &options, &|_| {}, &stop);
    let error = tokio::time::timeout(DEADLINE, copying).await.expect("it ends").unwrap_err().to_string();
    for said in [
        "public.users_no could not be set past the highest id of public.users",
        "CREATE INDEX CONCURRENTLY ON \"public\".\"users\" (\"id\")",
        "outbox-relay backfill users",
    ] {
        assert!(error.contains(said), "{said}\n{error}");
    }
    other.execute("ROLLBACK").await.unwrap();
    assert!(copy(&stage).await.is_whole());
    assert_eq!(stage.pair.new.value::<i64>("SELECT last_value FROM users_no").await, 14);
}

#[tokio::test]
async fn a_default_that_makes_a_text_of_a_sequence_is_no_hindrance_to_a_copys_end() {
    let stage = copying::stage(pair().await, 20, |_| {}).await;
    stage
        .pair
        .new
        .run(
            "CREATE DOMAIN some_number AS bigint; CREATE SEQUENCE order_numbers; CREATE SEQUENCE user_ids;
             ALTER TABLE users ADD number text DEFAULT 'ORD-' || nextval('order_numbers');
             ALTER TABLE users ALTER id TYPE some_number, ALTER id SET DEFAULT nextval('user_ids')",
        )
        .await;
    let summary = copy(&stage).await;
    assert!(summary.is_whole(), "{summary:?}");
    let (_, target) = connect::open(&stage.config).await.unwrap();
    assert_eq!(target.copies().await.unwrap()[0].sequences, ["public.user_ids"]);
    assert_eq!(stage.pair.new.value::<i64>("SELECT last_value FROM user_ids").await, 14);
}

#[tokio::test]
async fn numbers_that_no_sequence_can_reach_are_no_hindrance_to_a_copys_end() {
    let stage = copying::stage(pair().await, 20, |_| {}).await;
    stage
        .pair
        .new
        .run(
            "CREATE SEQUENCE numbers; ALTER TABLE users ADD number numeric DEFAULT nextval('numbers');
             INSERT INTO users VALUES (100, 'a', 1, 'NaN'), (101, 'b', 1, 'Infinity'), (102, 'c', 1, 1e30), (103, 'd', 1, 76.6)",
        )
        .await;
    let copied = tokio::time::timeout(DEADLINE, copy(&stage)).await.expect("it ends").copies.remove(0);
    assert_eq!(copied.sequences, ["public.numbers"]);
    assert_eq!(stage.pair.new.value::<i64>("SELECT last_value FROM numbers").await, 77);
    // Where there are no others.
    stage.pair.new.run("UPDATE users SET number = 'NaN'").await;
    let summary = tokio::time::timeout(DEADLINE, copy(&stage)).await.expect("it ends");
    assert!(summary.is_whole(), "{summary:?}");
    assert_eq!(stage.pair.new.value::<i64>("SELECT last_value FROM numbers").await, 77);
}

#[tokio::test]
async fn a_sequence_that_has_no_room_for_the_highest_value_ends_the_copy_with_what_to_do() {
    let stage = copying::stage(pair().await, 20, |_| {}).await;
    stage
        .pair
        .new
        .run("CREATE SEQUENCE small MAXVALUE 9; ALTER TABLE users ALTER id SET DEFAULT nextval('small')")
        .await;
    let (options, stop) = (Options::default(), CancellationToken::new());
    let copying = backfill::run(&stage.config, &options, &|_| {}, &stop);
    let error = tokio::time::timeout(DEADLINE, copying).await.expect("it ends").unwrap_err().to_string();
    for said in ["22003", "small", "MAXVALUE", "outbox-relay backfill users"] {
        assert!(error.contains(said), "{said}\n{error}");
    }
    stage.pair.new.run("ALTER SEQUENCE small MAXVALUE 99").await;
    assert!(copy(&stage).await.is_whole());
    assert_eq!(stage.pair.new.value::<i64>("SELECT last_value FROM small").await, 14);
}

#[tokio::test]
async fn two_copies_of_one_entity_share_the_work() {
    let stage = copying::stage(pair().await, 4_000, |config| config.backfill.rows_per_second = 3_000).await;
    let (one, other) = tokio::join!(copy(&stage), copy(&stage));
    assert!(one.is_whole() && other.is_whole(), "{one:?} {other:?}");
    let (_, target) = connect::open(&stage.config).await.unwrap();
    assert_eq!(target.copies().await.unwrap()[0].rows, 4_000);
    agree(&stage).await;
}

#[tokio::test]
async fn a_pause_holds_whoever_copies_until_it_is_lifted() {
    let stage = copying::stage(pair().await, 2_000, |_| {}).await;
    let (_, target) = connect::open(&stage.config).await.unwrap();
    target.begin_copy("users", None).await.unwrap();
    assert_eq!(target.pause_copies(&["users".into()], true).await.unwrap(), ["users"]);
    let stop = CancellationToken::new();
    let rested = AtomicBool::new(false);
    let tell = |what: backfill::Told| {
        if let backfill::Told::Progress { waits_for: Some(why), rows: 0, .. } = what
            && why.contains("paused")
        {
            rested.store(true, Ordering::SeqCst);
        }
    };
    let options = Options::default();
    let resume = async {
        eventually(DEADLINE, "it rests", || async { rested.load(Ordering::SeqCst) }).await;
        assert_eq!(rows(&stage.pair.new).await.len(), 0);
        assert_eq!(target.pause_copies(&["users".into()], false).await.unwrap(), ["users"]);
    };
    let (copied, ()) = tokio::join!(backfill::run(&stage.config, &options, &tell, &stop), resume);
    assert!(copied.unwrap().is_whole());
    agree(&stage).await;
}

/// Users, and the tags of their lines, which refer to them and stand first in the configuration.
pub(crate) async fn parents_and_children() -> Stage {
    let databases = pair().await;
    databases
        .legacy
        .run(
            "CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL, version int NOT NULL);
             INSERT INTO users SELECT i, 'n' || i, 1 FROM generate_series(-2, 40) i;
             CREATE TABLE lines (tenant text, line int, user_id int NOT NULL, tags text[] NOT NULL, PRIMARY KEY (tenant, line));
             INSERT INTO lines SELECT t, l, l, CASE WHEN l % 3 = 0 THEN '{}' ELSE ARRAY['a', 'b' || l] END
             FROM unnest(ARRAY['', 'ä', 'B']) t, generate_series(-2, 40) l;",
        )
        .await;
    databases
        .new
        .run(
            "CREATE TABLE users (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, name text NOT NULL, version int NOT NULL);
             CREATE SEQUENCE nobodys; ALTER TABLE users ADD number bigint NOT NULL DEFAULT nextval('nobodys'); SELECT setval('nobodys', 5);
             CREATE TABLE applied (n bigserial, event bigint, event_id uuid, aggregate text, version int);
             CREATE TABLE tags (tenant text, line int, tag text, user_id bigint NOT NULL REFERENCES users, PRIMARY KEY (tenant, line, tag));
             INSERT INTO users VALUES (3, 'stale', 0, 1000); INSERT INTO tags VALUES ('B', 3, 'stale', 3);",
        )
        .await;
    let mapping = "SELECT payload->>'tenant' AS tenant, payload->>'line' AS line, t.tag, payload->>'user_id' AS user_id
                   FROM event CROSS JOIN LATERAL (SELECT jsonb_array_elements_text(payload->'tags') AS tag
                        UNION ALL SELECT NULL WHERE payload->'tags' = '[]') AS t";
    Stage::on_prepared(databases, |config| {
        let lines = Entity {
            replace_by: vec!["tenant".into(), "line".into()],
            legacy: Some(LegacyRows {
                from: RowsFrom::Table(table("lines")),
                key: vec!["tenant".into(), "line".into()],
                aggregate_id: "tenant || '/' || line".into(),
                capture: outbox_relay::config::Capture::of("Line"),
            }),
            mapping: Some(file("mappings/tag.sql", mapping)),
            ..Entity::new("Line", table("tags"), &["tenant", "line", "tag"]).on("LineCreated", Action::Upsert)
        };
        copied(config);
        config.entities.insert(0, lines);
        config.relay.lanes = 3;
    })
    .await
}

#[tokio::test]
async fn keys_of_several_columns_parents_before_children_and_sequences_past_the_highest_key() {
    let stage = parents_and_children().await;
    let summary = copy(&stage).await;
    assert!(summary.is_whole(), "{summary:?}");
    let order: Vec<&str> = summary.copies.iter().map(|copy| copy.entity.as_str()).collect();
    assert_eq!(order, ["users", "tags"]);
    let difference = "SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM ";
    let legacy: String = stage
        .pair
        .legacy
        .value(&format!("{difference} (SELECT tenant, line, tag, user_id FROM lines, unnest(tags) tag) t"))
        .await;
    let new: String =
        stage.pair.new.value(&format!("{difference} (SELECT tenant, line, tag, user_id FROM tags) t")).await;
    assert_eq!(legacy, new);
    // The service's own inserts do not collide with what was copied.
    let next: i64 = stage.pair.new.value("INSERT INTO users (name, version) VALUES ('own', 1) RETURNING id").await;
    assert_eq!(next, 41);
    // Nor where a default draws from a sequence that no column owns.
    let next: i64 = stage.pair.new.value("SELECT number FROM users WHERE id = 41").await;
    assert_eq!(next, 1001);
}

#[tokio::test]
async fn a_row_without_an_aggregate_is_told() {
    let stage = copying::stage(pair().await, 200, |config| {
        let rows = config.entities[0].legacy.as_mut().unwrap();
        rows.aggregate_id = "CASE WHEN id = 50 THEN NULL WHEN noise IS NULL THEN id::text ELSE noise END".into();
    })
    .await;
    let summary = copy(&stage).await;
    assert_eq!((summary.copies[0].rows, summary.copies[0].refused), (199, 1), "{summary:?}");
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let left = target.left_rows("users", None, 10).await.unwrap();
    assert!(left[0].message.as_deref().unwrap().contains("NULL"), "{left:?}");
}

#[tokio::test]
async fn what_cannot_be_copied_is_said() {
    let stage = Stage::new().await;
    let refused = async |options: Options, stage: &Stage| {
        backfill::run(&stage.config, &options, &|_| {}, &CancellationToken::new()).await.unwrap_err().to_string()
    };
    let text = refused(Options::default(), &stage).await;
    assert!(text.contains("no entity says of which legacy rows it is made"), "{text}");
    let one = Options { entities: vec!["users".into()], ..Options::default() };
    assert!(refused(one.clone(), &stage).await.contains("legacy = { table = \"public.users\""));
    // Tables of an older version: init makes what is missing.
    let stage = copying::stage(pair().await, 3, |_| {}).await;
    stage.pair.new.run("DROP TABLE outbox_relay.backfill, outbox_relay.backfill_page").await;
    assert!(refused(one.clone(), &stage).await.contains("run outbox-relay init"));
    stage.init(Choices::default()).await.unwrap();
    assert!(copy(&stage).await.is_whole());
    // A column of a table that is there.
    stage.pair.new.run("ALTER TABLE outbox_relay.backfill DROP COLUMN generation").await;
    assert!(refused(one.clone(), &stage).await.contains("run outbox-relay init"));
    assert!(refused(Options { restart: true, ..one.clone() }, &stage).await.contains("run outbox-relay init"));
    let kept: i64 = stage.pair.new.value("SELECT count(*) FROM outbox_relay.backfill").await;
    assert_eq!(kept, 1, "nothing is forgotten that could not be begun again");
    stage.init(Choices::default()).await.unwrap();
    assert!(copy(&stage).await.is_whole());
}

/// Reads lines until one has this.
async fn line_with(lines: &mut Lines<BufReader<impl AsyncRead + Unpin>>, what: &str) -> String {
    let reading = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(what) {
                return line;
            }
        }
        panic!("it has ended without a line with {what:?}");
    };
    tokio::time::timeout(DEADLINE * 2, reading).await.unwrap_or_else(|_| panic!("no line with {what:?}"))
}

/// What `backfill --json` prints, a value a line; all of it is that.
fn lines_of(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn rows_of(line: &Value) -> u64 {
    line["rows"].as_u64().unwrap_or_else(|| panic!("no rows: {line}"))
}

#[tokio::test]
async fn for_programs_a_copy_prints_json_lines_whose_rows_never_decrease_and_the_last_says_how_it_ended() {
    let stage = copying::stage(pair().await, 1_600, |_| {}).await;
    let folder = folder_of(&stage, "");
    let Ended { code, stdout, stderr } = ended(&folder, &["backfill", "--json", "--rate", "800"]).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let lines = lines_of(&stdout);
    let [began, progress @ .., last] = &lines[..] else { panic!("{stdout}") };
    assert_eq!((&began["event"], &began["rows"], &began["estimate"]), (&json!("began"), &json!(0), &json!(1_600)));
    assert!(progress.iter().all(|line| line["event"] == "progress" && line["rate"].is_f64()), "{stdout}");
    assert!(progress.iter().any(|line| (1..1_600).contains(&rows_of(line))), "{stdout}");
    assert_eq!((&last["event"], &last["state"], &last["rows"]), (&json!("ended"), &json!("done"), &json!(1_600)));
    assert!(lines.is_sorted_by_key(rows_of), "{stdout}");
    assert!(lines.iter().all(|line| line["entity"] == "users"), "{stdout}");
}

#[tokio::test]
async fn on_a_terminal_a_copy_shows_a_bar_with_its_rate_and_the_time_that_is_left() {
    let stage = copying::stage(pair().await, 1_600, |_| {}).await;
    let folder = folder_of(&stage, "");
    let Some(mut command) = on_a_terminal(&folder, "backfill --rate 800") else { return };
    let output = command.output().await.unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    // It is drawn anew in its line.
    let bars: Vec<&str> =
        shown.split(['\r', '\n']).filter(|line| line.contains("users ") && line.contains('░')).collect();
    let tells = |bar: &&&str| {
        let rows = bar.split_once("/1,600 ").and_then(|(before, _)| before.rsplit(' ').next());
        rows.is_some_and(|rows| rows != "0") && bar.contains('█') && bar.contains("/s, ") && bar.contains("second")
    };
    assert!(bars.iter().any(|bar| tells(&bar) && bar.contains(" left")), "{shown:?}");
    assert!(shown.contains("users: done, 1,600 of about 1,600 rows"), "{shown:?}");
}

/// What the relay's metrics say of the copy: rows that are written, and those that are to be.
async fn told_in_metrics(stage: &Stage) -> (i64, i64) {
    // One that begins looks at once.
    let running = stage.start().await;
    let of = |name: &str| {
        let text = running.shared.metrics.encode();
        let line =
            text.lines().find_map(|line| line.strip_prefix(&format!("outbox_relay_{name}{{entity=\"users\"}} ")));
        line.map(|rows| rows.parse().unwrap())
    };
    eventually(DEADLINE, "the relay tells of the copy", || async { of("backfill_remaining_rows").is_some() }).await;
    let told = (of("backfill_rows").unwrap(), of("backfill_remaining_rows").unwrap());
    running.stop().await;
    told
}

#[tokio::test]
async fn how_far_a_copy_has_come_is_in_the_metrics_of_every_relay() {
    let mut stage = copying::stage(pair().await, 3_000, |config| config.backfill.rows_per_second = 500).await;
    let (copied, stop) = (AtomicBool::new(false), CancellationToken::new());
    let tell = |what: backfill::Told| {
        if matches!(what, backfill::Told::Progress { rows, .. } if rows > 0) {
            copied.store(true, Ordering::SeqCst);
        }
    };
    let watching = async {
        eventually(DEADLINE, "rows are copied", || async { copied.load(Ordering::SeqCst) }).await;
        let (rows, remaining) = told_in_metrics(&stage).await;
        stop.cancel();
        assert!((1..3_000).contains(&rows) && remaining == 3_000 - rows, "{rows} copied, {remaining} to come");
    };
    let options = Options::default();
    let (ended, ()) = tokio::join!(backfill::run(&stage.config, &options, &tell, &stop), watching);
    assert!(ended.unwrap().interrupted, "it was over before it was looked at");
    stage.config.backfill.rows_per_second = 0;
    assert!(copy(&stage).await.is_whole());
    assert_eq!(told_in_metrics(&stage).await, (3_000, 0));
}

#[tokio::test]
async fn ctrl_c_says_how_to_go_on_and_exits_1_and_the_next_run_copies_only_what_is_missing() {
    let stage = copying::stage(pair().await, 3_000, |_| {}).await;
    // Every time that a row is written, whether or not it was there.
    let new = &stage.pair.new;
    new.run(
        "CREATE TABLE written (id bigint);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO written VALUES (NEW.id); RETURN NULL; END $$;
         CREATE TRIGGER note AFTER INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION note()",
    )
    .await;
    let written = || new.value::<i64>("SELECT count(*) FROM written");
    let folder = folder_of(&stage, "");
    let mut command = program(&folder, &["backfill", "--json", "--rate", "500"]);
    let mut copying = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(copying.stdout.take().unwrap()).lines();
    let mut told = 0;
    while told == 0 {
        told = rows_of(&lines_of(&line_with(&mut lines, "\"progress\"").await)[0]);
    }
    kill(Pid::from_raw(i32::try_from(copying.id().unwrap()).unwrap()), Signal::SIGINT).unwrap();
    let last = lines_of(&line_with(&mut lines, "\"ended\"").await).remove(0);
    assert!(lines.next_line().await.unwrap().is_none(), "there is a line after the last one");
    let output = copying.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ended before it was done: the same command goes on from here"), "{said}");
    assert_eq!(last["state"], "interrupted", "{last}");
    let (before, copied) = (written().await, rows_of(&last));
    assert!((told..3_000).contains(&copied), "{told} rows were told before, then {last}");

    let Ended { code, stdout, stderr } = ended(&folder, &["backfill", "--json"]).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let lines = lines_of(&stdout);
    assert_eq!((&lines[0]["event"], rows_of(&lines[0])), (&json!("began"), copied));
    let last = lines.last().unwrap();
    assert_eq!((&last["event"], &last["state"], rows_of(last)), (&json!("ended"), &json!("done"), 3_000));
    assert_eq!(written().await - before, 3_000 - i64::try_from(copied).unwrap(), "rows were copied a second time");
    agree(&stage).await;
}

#[tokio::test]
async fn a_copy_never_writes_more_rows_than_its_rate_allows_since_it_began() {
    let stage = copying::stage(pair().await, 1_600, |_| {}).await;
    stage.pair.new.run("ALTER TABLE users ADD at timestamptz DEFAULT clock_timestamp()").await;
    let Ended { code, stderr, .. } = ended(&folder_of(&stage, ""), &["backfill", "--rate", "400"]).await;
    assert_eq!(code, Some(0), "{stderr}");
    // By the new database's clock, and its alone. What goes first, goes at once: a chunk, which is never more than a second's worth.
    let ahead: f64 = stage
        .pair
        .new
        .value(
            "SELECT max(n - 400 * extract(epoch FROM at - began_at))::float8
             FROM (SELECT at, row_number() OVER (ORDER BY at) AS n FROM users) AS written, outbox_relay.backfill",
        )
        .await;
    assert!(ahead <= 400.0, "{ahead} rows more than 400 a second");
    agree(&stage).await;
}

/// How many rows each chunk has, in order, where every row takes a millisecond to write.
async fn chunks(lock_time: Duration) -> Vec<i64> {
    let stage = copying::stage(pair().await, 3_000, |config| {
        (config.backfill.lock_time, config.backfill.workers, config.relay.lanes) = (lock_time, 1, 1);
    })
    .await;
    stage
        .pair
        .new
        .run(
            "CREATE TABLE written (n bigserial, transaction xid8 DEFAULT pg_current_xact_id());
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_sleep(0.001); INSERT INTO written DEFAULT VALUES; RETURN NULL; END $$;
             CREATE TRIGGER note AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION note()",
        )
        .await;
    assert!(copy(&stage).await.is_whole());
    let sql = "SELECT count(*) FROM written GROUP BY transaction ORDER BY min(n)";
    sqlx::query_scalar(sql).fetch_all(&stage.pair.new.pool).await.unwrap()
}

#[tokio::test]
async fn chunks_become_as_small_as_the_time_that_a_lane_may_be_held_and_stay_so() {
    let (short, long) = tokio::join!(chunks(Duration::from_millis(20)), chunks(Duration::from_millis(200)));
    let settled = |chunks: &[i64]| {
        // The first ones are of a size that suits most tables.
        let mut later = chunks[chunks.len() / 2..].to_vec();
        later.sort_unstable();
        (later[later.len() / 2], later[later.len() - 1])
    };
    let ((usual, most), (usual_of_long, _)) = (settled(&short), settled(&long));
    assert!(usual * 3 <= usual_of_long, "within 20 ms: {short:?}\nwithin 200 ms: {long:?}");
    assert!(most <= 250, "now and then a lane is held for as long as by the first one: {short:?}");
}

#[tokio::test]
async fn a_copy_rests_and_says_so_while_the_legacy_database_is_busy_or_a_replica_of_it_is_behind() {
    let servers = own_servers().await;
    let mut stage = copying::stage(servers.pair().await, 300, |_| {}).await;
    // A role that is not shown what others do would take every server for idle.
    stage.pair.legacy.run("CREATE ROLE blind LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public, outbox_relay TO blind; GRANT USAGE ON SCHEMA outbox_relay TO blind; GRANT ALL ON ALL SEQUENCES IN SCHEMA public, outbox_relay TO blind").await;
    let host = stage.pair.legacy.url.split_once('@').unwrap().1.to_owned();
    let url = format!("postgres://blind@{host}");
    let mut blind = stage.config.clone();
    blind.legacy.url = DatabaseUrl::parse(&url).unwrap();
    blind.backfill.max_sessions = 10;
    std::mem::swap(&mut stage.config, &mut blind);
    let refused =
        backfill::run(&stage.config, &Options::default(), &|_| {}, &CancellationToken::new()).await.unwrap_err();
    assert!(refused.to_string().contains("GRANT pg_monitor"), "{refused}");
    std::mem::swap(&mut stage.config, &mut blind);
    let folder = folder_of(&stage, "max_sessions = 10\nmax_replica_lag = \"500ms\"");
    let api = Api::start(&stage.config, tokens(), Some(stage.shared().await)).await;
    let told = async |what: &str| {
        eventually(DEADLINE, what, || async {
            let told = api.client.with(Some("only-look")).get("/v1/migration").await.ok();
            told["entities"][0]["copy"]["waits_for"].as_str().is_some_and(|why| why.contains(what))
        })
        .await;
    };
    let legacy = &stage.pair.legacy;

    // More sessions are at work than it may disturb.
    const SLEEP: &str = "SELECT pg_sleep(3600)";
    let busy: Vec<_> = (0..15)
        .map(|_| {
            let url = legacy.url.clone();
            tokio::spawn(async move {
                let mut connection = PgConnection::connect(&url).await.unwrap();
                connection.execute(SLEEP).await.unwrap_err();
            })
        })
        .collect();
    let asleep = format!("FROM pg_stat_activity WHERE state = 'active' AND query = '{SLEEP}'");
    eventually(DEADLINE, "all are at work", || async {
        legacy.value::<i64>(&format!("SELECT count(*) {asleep}")).await == 15
    })
    .await;
    let mut copying = program(&folder, &["backfill", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(copying.stdout.take().unwrap()).lines();
    let line = line_with(&mut lines, "more than backfill.max_sessions = 10").await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((line["event"].as_str(), line["rows"].as_u64()), (Some("progress"), Some(0)), "{line}");
    told("the legacy database is busy").await;
    assert_eq!(rows(&stage.pair.new).await.len(), 0);
    legacy.run(&format!("SELECT pg_cancel_backend(pid) {asleep}")).await;
    line_with(&mut lines, "\"ended\"").await;
    assert!(copying.wait().await.unwrap().success());
    for session in busy {
        session.await.unwrap();
    }
    agree(&stage).await;

    // A replica receives what is written, and does not replay it.
    let replica = servers.legacy.replica("test-replica").await.unwrap();
    let mut standby = PgConnection::connect(&replica.url("postgres")).await.unwrap();
    standby.execute("SELECT pg_wal_replay_pause()").await.unwrap();
    eventually(DEADLINE, "it is behind", || async {
        legacy.run("UPDATE users SET name = 'newer', version = 2 WHERE id = 7").await;
        let lag = "SELECT coalesce(max(extract(epoch FROM replay_lag)) > 1, false) FROM pg_stat_replication";
        legacy.value::<bool>(lag).await
    })
    .await;
    let mut copying = program(&folder, &["backfill", "--restart", "--yes"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(copying.stderr.take().unwrap()).lines();
    let line = line_with(&mut lines, "waits: a replica of the legacy database is").await;
    assert!(line.starts_with("users: 0 of about 300 rows"), "{line}");
    told("a replica of the legacy database is").await;
    assert_ne!(rows(&stage.pair.new).await, rows(legacy).await);
    standby.execute("SELECT pg_wal_replay_resume()").await.unwrap();
    line_with(&mut lines, "users: done, 300 of about 300 rows").await;
    assert!(copying.wait().await.unwrap().success());
    agree(&stage).await;
    api.stop().await;
}

#[tokio::test]
async fn what_a_restart_forgets_is_told_and_nothing_is_without_a_yes() {
    let stage = copying::stage(pair().await, 300, |_| {}).await;
    let folder = folder_of(&stage, "");
    let backfill = async |arguments: &[&str]| {
        let ended = ended(&folder, &[&["backfill"], arguments].concat()).await;
        (ended.code, ended.stderr)
    };
    // Nothing is there yet to rest, or to be forgotten.
    let (code, said) = backfill(&["--pause", "users"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the copy of users was not begun: it cannot rest"), "{said}");
    let (code, said) = backfill(&["--pause"]).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = backfill(&["--restart"]).await;
    assert_eq!(code, Some(0), "{said}");
    stage.pair.new.run("UPDATE users SET name = 'wrong' WHERE id = 7").await;
    let wrong = || stage.pair.new.value::<i64>("SELECT count(*) FROM users WHERE name = 'wrong'");
    let (code, said) = backfill(&["--restart"]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("users: done, 300 of about 300 rows") && said.contains("give --yes. Nothing was changed"),
        "{said}"
    );
    assert_eq!(wrong().await, 1);
    let (code, said) = backfill(&["--pause", "users"]).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = backfill(&["users", "--restart", "--yes"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("It rests: the pause is lifted"), "{said}");
    assert!(said.contains("users: done, 300 of about 300 rows"), "{said}");
    agree(&stage).await;
}

#[tokio::test]
async fn what_the_new_database_quotes_of_a_row_is_neither_said_nor_kept_where_it_is_hidden() {
    let stage = copying::stage(pair().await, 20, |_| {}).await;
    let refuses = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE EXCEPTION 'no place for %', NEW.name; END $$;
         CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON users FOR EACH ROW WHEN (NEW.name = 'n1') EXECUTE FUNCTION refuse()";
    stage.pair.new.run(refuses).await;
    for (redact, shown) in [("", true), ("[redact]\npaths = [\"User: $.name\"]", false)] {
        let folder = folder_of(&stage, redact);
        let Ended { code, stderr: said, .. } = ended(&folder, &["backfill"]).await;
        assert_eq!((code, said.contains("no place for n1")), (Some(1), shown), "{said}");
        assert!(said.contains("  users 1: ") && said.contains("(P0001)"), "{said}");
        let told = ended(&folder, &["backfill", "--status"]).await.stdout;
        assert!(told.contains("rows were left out: 1 were refused") && !told.contains("n1"), "{told}");

        let folder = folder_of(&stage, &format!("max_refused = 0\n{redact}"));
        let Ended { code, stderr: said, .. } = ended(&folder, &["backfill"]).await;
        assert_eq!((code, said.contains("no place for n1")), (Some(2), shown), "{said}");
        assert!(said.contains("more than 0 rows were refused"), "{said}");
        let kept = "SELECT message FROM outbox_relay.job WHERE code = 'too_many_refused' ORDER BY id DESC LIMIT 1";
        let kept: String = stage.pair.new.value(kept).await;
        assert_eq!(kept.contains("no place for n1"), shown, "{kept}");
    }
}

/// By hand: rows a second beside a COPY through the same mapping, and memory, for as many rows as
/// `OUTBOX_RELAY_ROWS` says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn rows_a_second_beside_a_copy_by_hand() {
    let number: u32 = std::env::var("OUTBOX_RELAY_ROWS").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let stage =
        copying::stage(pair().await, number, |config| config.backfill.lock_time = Duration::from_millis(50)).await;
    stage.pair.new.run("DROP TRIGGER watch ON users").await;
    install(&stage).await;
    let relay = stage.start().await;
    let memory = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find(|line| line.starts_with("VmHWM")).unwrap().to_owned()
    };
    eprintln!("before: {}", memory());
    for round in 0..3 {
        stage.pair.new.run("TRUNCATE users").await;
        let started = Instant::now();
        by_hand(&stage.pair.legacy, &stage.pair.new).await;
        let hand = f64::from(number) / started.elapsed().as_secs_f64();
        stage.pair.new.run("TRUNCATE users").await;
        let started = Instant::now();
        let summary = copy_with(&stage, &Options { restart: true, ..Options::default() }).await;
        let ours = f64::from(number) / started.elapsed().as_secs_f64();
        assert!(summary.is_whole(), "{summary:?}");
        eprintln!(
            "round {round}: by hand {hand:.0} rows/s, backfill {ours:.0} rows/s, {:.2}; {}",
            ours / hand,
            memory()
        );
    }
    relay.stop().await;
}

/// COPY of the rows as JSON into a staging table, then the mapping over all of it: what one would write by hand.
async fn by_hand(legacy: &Database, new: &Database) {
    use futures_util::StreamExt as _;
    let mut from = PgConnection::connect(&legacy.url).await.unwrap();
    let mut to = PgConnection::connect(&new.url).await.unwrap();
    to.execute("CREATE TEMP TABLE staging (payload jsonb)").await.unwrap();
    let mut stream = from.copy_out_raw("COPY (SELECT to_jsonb(u) FROM users u) TO STDOUT").await.unwrap();
    let mut sink = to.copy_in_raw("COPY staging FROM STDIN").await.unwrap();
    while let Some(part) = stream.next().await {
        sink.send(part.unwrap()).await.unwrap();
    }
    sink.finish().await.unwrap();
    to.execute(
        "INSERT INTO users SELECT (payload->>'id')::bigint, payload->>'name', (payload->>'version')::int FROM staging ORDER BY 1
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, version = excluded.version",
    )
    .await
    .unwrap();
}
