//! What is read under a lane's lock is written, or judged, under that very lock: whoever takes a lane besides the relay is stopped
//! between two of its steps, and a newer event comes.

use outbox_relay::event::Lane;
use outbox_relay::relay::Shared;
use outbox_relay::relay::batch::{self, Errand, Outcome};
use sqlx::{Connection, Executor, PgConnection};

use crate::support::child::has_failpoints;
use crate::support::copying::{self, Copier, agree, install, rows};
use crate::support::stage::Stage;
use crate::support::{DEADLINE, Database, eventually, pair};

/// One lane, captured.
async fn one_lane(rows: u32) -> Stage {
    let stage = copying::stage(pair().await, rows, |config| {
        config.relay.lanes = 1;
        // Whoever stands still is not given up while the test has its say.
        config.relay.deadline = DEADLINE;
    })
    .await;
    install(&stage).await;
    stage
}

/// A relay's worker tries to apply what is pending.
async fn worker(shared: &Shared) -> Outcome {
    let errand = Errand { full: true, due: true, ..Errand::default() };
    batch::run_once(shared, Lane(0), errand).await.expect("a try").0
}

/// What a copy of them makes, but for one row that looks different.
const COPIED_BUT_ONE: &str =
    "INSERT INTO users SELECT i, 'n' || i, CASE i WHEN 1 THEN 0 ELSE 1 END FROM generate_series(-5, 6) i";

/// Twice changed, in two events: whoever writes the second state before the first event has let the row go back.
const CHANGED_TWICE: &str = "UPDATE users SET version = 2, name = 'two' WHERE id = 1; UPDATE users SET version = 3, name = 'three' WHERE id = 1";

#[tokio::test]
async fn no_newer_event_is_applied_between_a_copys_read_and_its_commit() {
    if !has_failpoints() {
        return;
    }
    let stage = one_lane(12).await;
    let shared = stage.shared().await;
    let mut copier = Copier::start(&stage, Some("chunk_read=stop"));
    copier.stands_still().await;
    stage.pair.legacy.run(CHANGED_TWICE).await;
    stage.pair.legacy.run("DELETE FROM users WHERE id = 2; INSERT INTO users VALUES (100, 'new', 1)").await;
    assert_eq!(worker(&shared).await, Outcome::Busy, "the lane is the copy's until it has written what it read");
    assert_eq!(rows(&stage.pair.new).await, []);
    copier.go_on();
    let relay = stage.start().await;
    assert!(copier.ended().await);
    stage.drained().await;
    relay.stop().await;
    agree(&stage).await;
}

/// Waits in the queue for a lane, and gives what stands in the new table when its turn comes.
async fn queue(database: &Database, new: &Database) -> (tokio::task::JoinHandle<usize>, i32) {
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
    let new = PgConnection::connect(&new.url).await.unwrap();
    let waits = tokio::spawn(async move {
        let mut new = new;
        connection.execute("BEGIN; SELECT FROM outbox_relay.lane WHERE lane = 0 FOR UPDATE").await.unwrap();
        let there: i64 = sqlx::query_scalar("SELECT count(*) FROM users").fetch_one(&mut new).await.unwrap();
        connection.execute("ROLLBACK").await.unwrap();
        usize::try_from(there).unwrap()
    });
    (waits, pid)
}

#[tokio::test]
async fn whoever_waits_for_the_lane_on_either_side_gets_it_when_the_copied_rows_are_there() {
    if !has_failpoints() {
        return;
    }
    for side in ["legacy", "new"] {
        let stage = one_lane(12).await;
        let database = if side == "legacy" { &stage.pair.legacy } else { &stage.pair.new };
        // Before anything is read: a lock that is given back at any time before the commit goes to whoever waits for it.
        let mut copier = Copier::start(&stage, Some("chunk_locked=stop"));
        copier.stands_still().await;
        let (queued, pid) = queue(database, &stage.pair.new).await;
        let waits = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'");
        eventually(DEADLINE, "it waits for the lane", || async { database.value::<i64>(&waits).await == 1 }).await;
        copier.go_on();
        assert_eq!(queued.await.unwrap(), 12, "{side}: the lane was given back before its rows were there");
        assert!(copier.ended().await);
    }
}

#[tokio::test]
async fn a_row_that_changes_or_is_deleted_after_its_key_was_read_neither_goes_nor_comes_back() {
    if !has_failpoints() {
        return;
    }
    let stage = one_lane(12).await;
    let shared = stage.shared().await;
    let mut copier = Copier::start(&stage, Some("page_read=stop"));
    copier.stands_still().await;
    stage.pair.legacy.run(CHANGED_TWICE).await;
    stage.pair.legacy.run("DELETE FROM users WHERE id = 2").await;
    stage.drain_by_hand(&shared).await;
    copier.go_on();
    assert!(copier.ended().await);
    agree(&stage).await;
}

#[tokio::test]
async fn no_event_is_applied_between_the_two_halves_of_a_verifications_look() {
    if !has_failpoints() {
        return;
    }
    let stage = one_lane(12).await;
    let shared = stage.shared().await;
    // A row that looks different, so that it is looked at again.
    stage.pair.new.run(COPIED_BUT_ONE).await;
    let mut verifier = Copier::that("verifies", &stage, Some("look_read=stop"));
    verifier.stands_still().await;
    stage.pair.legacy.run("UPDATE users SET version = 2, name = 'two' WHERE id = 1").await;
    assert_eq!(worker(&shared).await, Outcome::Busy, "the lane is the verification's until it has seen both sides");
    verifier.go_on();
    assert!(verifier.ended().await, "a false alarm");
    stage.drain_by_hand(&shared).await;
    agree(&stage).await;
}

#[tokio::test]
async fn a_repair_writes_the_row_that_it_judged_whatever_comes_meanwhile() {
    if !has_failpoints() {
        return;
    }
    let stage = one_lane(12).await;
    let shared = stage.shared().await;
    stage.pair.new.run(COPIED_BUT_ONE).await;
    for (point, written) in [("look_read=stop", 0), ("repair_judged=stop", 1)] {
        let mut repair = Copier::that("repairs", &stage, Some(point));
        repair.stands_still().await;
        stage.pair.legacy.run(CHANGED_TWICE).await;
        assert_eq!(worker(&shared).await, Outcome::Busy, "{point}: the lane is the repair's until it has written");
        repair.go_on();
        assert!(repair.ended().await);
        let version: i32 = stage.pair.new.value("SELECT version FROM users WHERE id = 1").await;
        assert_eq!(version, written, "{point}: events are on their way, which bring what is newer");
        // Again, with the same row wrong in the same way.
        stage.drain_by_hand(&shared).await;
        agree(&stage).await;
        let again = "BEGIN; SET LOCAL outbox_relay.applying = 'on'; UPDATE users SET version = 1, name = 'n1' WHERE id = 1; COMMIT";
        stage.pair.legacy.run(again).await;
        stage
            .pair
            .new
            .run("DELETE FROM users WHERE id = 1; DELETE FROM gone; INSERT INTO users VALUES (1, 'n1', 0)")
            .await;
    }
}

/// Under its lane's lock, too: a key that went over to another owner is written in that one's lane.
#[tokio::test]
async fn a_row_that_is_too_much_is_deleted_only_as_it_was_judged() {
    if !has_failpoints() {
        return;
    }
    let stage = one_lane(12).await;
    // Nothing but row 2 is wrong, so that it is what stands still.
    stage.pair.new.run("INSERT INTO users SELECT i, 'n' || i, 1 FROM generate_series(-5, 6) i").await;
    let lost = "BEGIN; SET LOCAL outbox_relay.applying = 'on'; DELETE FROM users WHERE id = 2; COMMIT";
    stage.pair.legacy.run(lost).await;
    let version = || stage.pair.new.value::<Option<i32>>("SELECT max(version) FROM users WHERE id = 2");
    let mut repair = Copier::that("repairs", &stage, Some("repair_judged=stop"));
    repair.stands_still().await;
    stage.pair.new.run("UPDATE users SET version = 77 WHERE id = 2").await;
    repair.go_on();
    assert!(repair.ended().await);
    assert_eq!(version().await, Some(77), "it was written since it was judged");
    assert!(Copier::that("repairs", &stage, None).ended().await);
    assert_eq!(version().await, None);
}

#[tokio::test]
async fn a_row_whose_lane_nobody_can_tell_is_deleted_only_as_it_was_judged() {
    if !has_failpoints() {
        return;
    }
    let stage = copying::stage(pair().await, 12, |config| {
        config.relay.lanes = 1;
        config.relay.deadline = DEADLINE;
        // Which only the row tells, not its key.
        config.entities[0].legacy.as_mut().unwrap().aggregate_id = "coalesce(noise, '') || id".into();
    })
    .await;
    install(&stage).await;
    let shared = stage.shared().await;
    stage.pair.new.run("INSERT INTO users SELECT i, 'n' || i, 1 FROM generate_series(-5, 6) i").await;
    let gone = "BEGIN; SET LOCAL outbox_relay.applying = 'on'; DELETE FROM users WHERE id = 1; COMMIT";
    stage.pair.legacy.run(gone).await;
    let mut repair = Copier::that("repairs", &stage, Some("repair_fenced=stop"));
    repair.stands_still().await;
    // No lane keeps the event away that makes it right.
    stage.pair.legacy.run("INSERT INTO users VALUES (1, 'back again', 2)").await;
    stage.drain_by_hand(&shared).await;
    repair.go_on();
    assert!(repair.ended().await);
    agree(&stage).await;
    stage.pair.legacy.run(gone).await;
    assert!(Copier::that("repairs", &stage, None).ended().await);
    agree(&stage).await;
    let kept = "SELECT string_agg(action || ' ' || key::text, ', ') FROM outbox_relay.repaired";
    assert_eq!(stage.pair.new.value::<String>(kept).await, "delete [\"1\"]");
}
