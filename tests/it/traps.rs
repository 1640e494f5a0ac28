//! The traps of the protocol, each by its name: what others fell into, and this must not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use outbox_relay::connect;
use outbox_relay::demo::server::Mode;
use outbox_relay::event::{BatchKey, Lane, Token};
use outbox_relay::relay::batch::{self, BatchError, Errand, Outcome};
use outbox_relay::source::Names;
use sqlx::{Connection, Executor, PgConnection};

use crate::support::child::Child;
use crate::support::past::Past;
use crate::support::proxy::Proxy;
use crate::support::stage::Stage;
use crate::support::{DEADLINE, Plan, eventually, own_servers};

async fn one_lane() -> Stage {
    Stage::with(|config| config.relay.lanes = 1).await
}

/// Somebody's own session.
async fn session(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

// Snapshot before lock.

#[tokio::test]
async fn what_is_read_of_a_lane_is_as_of_after_its_lock() {
    let stage = one_lane().await;
    for database in [&stage.pair.legacy, &stage.pair.new] {
        database
            .run(&format!("ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'", database.name))
            .await;
    }
    let shared = stage.shared().await;
    let mut holder = session(&stage.pair.new.url).await;
    holder.execute("BEGIN; SELECT * FROM outbox_relay.lane FOR UPDATE").await.unwrap();
    let waiting =
        tokio::spawn(async move { shared.target.lock_lane(Lane(0)).await.unwrap().unwrap().newest.unwrap().0 });
    eventually(DEADLINE, "somebody waits for the lane", || async {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        stage.pair.new.value::<i64>(sql).await == 1
    })
    .await;
    holder
        .execute(
            "INSERT INTO outbox_relay.batch_log (source_id, lane, token, nonce, peer, ids, event_ids, aggregate_types, aggregate_ids, given_up)
             SELECT source_id, lane, 1000000, nonce, peer, '{}', '{}', '{}', '{}', '{}' FROM outbox_relay.batch_log; COMMIT",
        )
        .await
        .unwrap();
    assert_eq!(waiting.await.unwrap().token, Token(1_000_000));
}

#[tokio::test]
async fn an_append_onto_another_parent_or_with_an_older_token_is_refused() {
    let stage = one_lane().await;
    let shared = stage.shared().await;
    stage.things(3, 1).await;
    assert!(matches!(stage.step(&shared).await.unwrap(), Outcome::Settled(_)));
    let mut lane = shared.target.lock_lane(Lane(0)).await.unwrap().unwrap();
    let (newest, peer) = lane.newest.clone().unwrap();
    let key = |token| BatchKey { token: Token(token), nonce: uuid::Uuid::new_v4() };
    assert!(!lane.append(newest, &peer, &[], &[]).await.unwrap(), "the same token");
    lane.newest = Some((key(newest.token.0), peer.clone()));
    assert!(!lane.append(key(newest.token.0 + 9), &peer, &[], &[]).await.unwrap(), "a parent of another history");
    lane.newest = Some((newest, peer.clone()));
    assert!(lane.append(key(newest.token.0 + 9), &peer, &[], &[]).await.unwrap());
}

// SKIP LOCKED on rows breaks order.

#[tokio::test]
async fn an_aggregate_with_a_locked_row_drops_out_from_that_id_on() {
    let stage = one_lane().await;
    let shared = stage.shared().await;
    let mut ids = Vec::new();
    for (aggregate, version) in [("a", 1), ("a", 2), ("b", 1), ("a", 3), ("b", 2)] {
        ids.push(stage.thing(aggregate, version).await);
    }
    let mut dba = session(&stage.pair.legacy.url).await;
    dba.execute(sqlx::AssertSqlSafe(format!("BEGIN; SELECT * FROM outbox WHERE id = {} FOR UPDATE", ids[1])))
        .await
        .unwrap();
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    let statuses: String =
        stage.pair.legacy.value("SELECT string_agg(left(status, 2), ' ' ORDER BY id) FROM outbox").await;
    assert_eq!(statuses, "pr pe pr pe pr");
    dba.execute("ROLLBACK").await.unwrap();
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.count("processed").await, 5);
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn who_locks_rows_that_are_to_be_healed_is_named() {
    let stage = one_lane().await;
    let shared = stage.shared().await;
    let past = Past::of(&stage.pair.legacy).await;
    let id = stage.thing("a", 1).await;
    stage.pair.legacy.run("CREATE SCHEMA aside; CREATE TABLE aside.kept AS TABLE outbox").await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    past.again(&stage.pair.legacy).await;
    stage.pair.legacy.run("INSERT INTO outbox OVERRIDING SYSTEM VALUE TABLE aside.kept").await;
    let mut dba = session(&stage.pair.legacy.url).await;
    dba.execute("SET application_name = 'the DBA'; BEGIN").await.unwrap();
    dba.execute("SELECT * FROM outbox FOR UPDATE").await.unwrap();
    match stage.step(&shared).await {
        Err(BatchError::Stopped(why)) => assert!(why.contains("locked by the DBA of postgres (pid "), "{why}"),
        other => panic!("{other:?}"),
    }
    dba.execute("ROLLBACK").await.unwrap();
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.status(id).await, "processed");
    stage.history_agrees().await;
}

#[tokio::test]
async fn what_was_put_back_and_is_locked_is_not_overtaken() {
    let stage = one_lane().await;
    let shared = stage.shared().await;
    let replayed = stage.thing("a", 1).await;
    let waits = stage.thing("b", 1).await;
    stage.pair.legacy.run("UPDATE outbox SET status = 'failed'").await;
    // Until the position lies above both.
    eventually(DEADLINE, "the position moves on", || async {
        stage.thing("other", 1).await;
        stage.step(&shared).await.unwrap();
        position(&stage).await > waits + 1
    })
    .await;
    // A retry alone is claimed while somebody has locked what an operator has replayed.
    let sql = format!(
        "UPDATE outbox SET status = 'retry', next_attempt_at = now() WHERE id = {waits};
         UPDATE outbox SET status = 'pending' WHERE id = {replayed};
         INSERT INTO outbox_relay.put_back (lane, id) VALUES (0, {replayed})"
    );
    stage.pair.legacy.run(&sql).await;
    let mut dba = session(&stage.pair.legacy.url).await;
    let lock = format!("BEGIN; SELECT * FROM outbox WHERE id = {replayed} FOR UPDATE");
    dba.execute(sqlx::AssertSqlSafe(lock)).await.unwrap();
    stage.step(&shared).await.unwrap();
    assert_eq!(stage.status(waits).await, "processed");
    let later = stage.thing("a", 2).await;
    stage.step(&shared).await.unwrap();
    assert_eq!(stage.status(later).await, "pending", "an earlier one of its aggregate is locked");
    dba.execute("ROLLBACK").await.unwrap();
    stage.drain_by_hand(&shared).await;
    assert_eq!(stage.status(later).await, "processed");
    stage.oracle_agrees().await;
}

// A start position for the scan may not pass uncommitted rows.

/// The lane's start position.
async fn position(stage: &Stage) -> i64 {
    stage.pair.legacy.value("SELECT position FROM outbox_relay.batch_log ORDER BY token DESC LIMIT 1").await
}

/// Others write, and are settled, until this event's writer was seen holding its lock.
async fn the_writer_is_seen(stage: &Stage, shared: &outbox_relay::relay::Shared, id: i64) {
    eventually(DEADLINE, "the writers are looked at", || async {
        stage.thing("other", 1).await;
        stage.step(shared).await.unwrap();
        let sql = format!(
            "SELECT coalesce(mark >= {id} AND mark_holders <> '{{}}', false) FROM outbox_relay.batch_log ORDER BY token DESC LIMIT 1"
        );
        stage.pair.legacy.value(&sql).await
    })
    .await;
}

/// A writer that has drawn an id, and does not commit yet.
async fn late_writer(stage: &Stage) -> (PgConnection, i64) {
    let mut writer = session(&stage.pair.legacy.url).await;
    writer
        .execute(
            "BEGIN; INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             VALUES ('Thing', 'late', 'Happened', '{\"version\": 1}')",
        )
        .await
        .unwrap();
    let id = stage.pair.legacy.value("SELECT last_value FROM outbox_id_seq").await;
    (writer, id)
}

/// Others write, and are settled, for as long as the mark lasts: the writers are looked at once more.
async fn others_flow(stage: &Stage, shared: &outbox_relay::relay::Shared) {
    let start = std::time::Instant::now();
    eventually(DEADLINE, "others flow", || async {
        stage.thing("other", 1).await;
        stage.step(shared).await.unwrap();
        start.elapsed() > Duration::from_millis(600)
    })
    .await;
}

/// Until the mark is old enough for another look when the next batch begins.
async fn the_mark_is_old(stage: &Stage) {
    eventually(DEADLINE, "the mark is old", || the_mark_is_older_than(stage, "0.6 s")).await;
}

async fn the_mark_is_older_than(stage: &Stage, age: &str) -> bool {
    let sql = "SELECT clock_timestamp() - marked_at > ";
    let newest = "FROM outbox_relay.batch_log ORDER BY token DESC LIMIT 1";
    stage.pair.legacy.value(&format!("{sql} '{age}' {newest}")).await
}

/// Until the position has gone beyond everything that is there now.
async fn position_moves_on(stage: &Stage, shared: &outbox_relay::relay::Shared) {
    let id = stage.thing("other", 1).await;
    eventually(DEADLINE, "the position moves on", || async {
        stage.thing("other", 1).await;
        stage.step(shared).await.unwrap();
        position(stage).await > id
    })
    .await;
}

#[tokio::test]
async fn a_start_position_does_not_pass_a_transaction_that_is_open_for_seconds() {
    let stage = one_lane().await;
    let shared = stage.shared().await;
    position_moves_on(&stage, &shared).await;
    let (mut writer, id) = late_writer(&stage).await;
    for _ in 0..3 {
        others_flow(&stage, &shared).await;
        assert!(position(&stage).await <= id);
    }
    writer.execute("COMMIT").await.unwrap();
    stage.step(&shared).await.unwrap();
    assert_eq!(stage.status(id).await, "processed");
    position_moves_on(&stage, &shared).await;
    assert_eq!(stage.count("pending").await, 0);
}

#[tokio::test]
async fn a_start_position_does_not_pass_a_transaction_that_is_prepared_meanwhile() {
    let stage = one_lane().await;
    let shared = stage.shared().await;
    position_moves_on(&stage, &shared).await;
    let (mut writer, id) = late_writer(&stage).await;
    the_writer_is_seen(&stage, &shared, id).await;
    let name = format!("late_{}", stage.pair.legacy.name);
    writer.execute(sqlx::AssertSqlSafe(format!("PREPARE TRANSACTION '{name}'"))).await.unwrap();
    for _ in 0..4 {
        others_flow(&stage, &shared).await;
        assert!(position(&stage).await <= id);
    }
    writer.execute(sqlx::AssertSqlSafe(format!("COMMIT PREPARED '{name}'"))).await.unwrap();
    stage.step(&shared).await.unwrap();
    assert_eq!(stage.status(id).await, "processed");
    position_moves_on(&stage, &shared).await;
}

#[tokio::test]
async fn a_start_position_does_not_pass_who_commits_between_the_scan_and_the_settling() {
    let stage = one_lane().await;
    stage.pair.new.run(GATE).await;
    let shared = stage.shared().await;
    position_moves_on(&stage, &shared).await;
    let (mut writer, id) = late_writer(&stage).await;
    the_writer_is_seen(&stage, &shared, id).await;
    the_mark_is_old(&stage).await;
    let gate = closed_gate(&stage).await;
    stage.thing("other", 1).await;
    let batch = tokio::spawn({
        let shared = shared.clone();
        async move { outbox_relay::relay::batch::run_once(&shared, Lane(0), Default::default()).await.unwrap() }
    });
    at_the_gate(&stage, 1).await;
    writer.execute("COMMIT").await.unwrap();
    gate.close().await.unwrap();
    batch.await.unwrap();
    assert!(position(&stage).await <= id);
    stage.step(&shared).await.unwrap();
    assert_eq!(stage.status(id).await, "processed");
}

#[tokio::test]
async fn a_look_at_the_writers_ages_while_a_batch_runs() {
    let stage = one_lane().await;
    stage.pair.new.run(GATE).await;
    let shared = stage.shared().await;
    // This one looks; the next one waits for the target, and remembers the same look.
    stage.thing("other", 1).await;
    stage.step(&shared).await.unwrap();
    stage.thing("other", 2).await;
    let gate = closed_gate(&stage).await;
    let batch = tokio::spawn({
        let shared = shared.clone();
        async move { outbox_relay::relay::batch::run_once(&shared, Lane(0), Default::default()).await.unwrap() }
    });
    at_the_gate(&stage, 1).await;
    let waits = std::time::Instant::now();
    eventually(DEADLINE, "it waits", || async { waits.elapsed() > Duration::from_millis(600) }).await;
    gate.close().await.unwrap();
    batch.await.unwrap();
    assert!(stage.count("processed").await == 2 && the_mark_is_older_than(&stage, "0.5 s").await);
}

/// Whoever applies waits here while somebody holds the gate.
const GATE: &str = "
    CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$;
    CREATE TRIGGER gate BEFORE INSERT ON applied FOR EACH STATEMENT EXECUTE FUNCTION gate()";

async fn closed_gate(stage: &Stage) -> PgConnection {
    let mut gate = session(&stage.pair.new.url).await;
    gate.execute("SELECT pg_advisory_lock(7)").await.unwrap();
    gate
}

async fn at_the_gate(stage: &Stage, n: i64) {
    eventually(DEADLINE, "a batch is being applied", || async {
        let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        stage.pair.new.value::<i64>(sql).await >= n
    })
    .await;
}

#[tokio::test]
async fn ids_drawn_ahead_are_found_by_the_full_scan() {
    let stage = one_lane().await;
    stage.pair.legacy.run("ALTER TABLE outbox ALTER id RESTART WITH 100000").await;
    let shared = stage.shared().await;
    position_moves_on(&stage, &shared).await;
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) OVERRIDING SYSTEM VALUE
             VALUES (17, 'Thing', 'ahead', 'Happened', '{\"version\": 1}')",
        )
        .await;
    assert!(matches!(stage.step(&shared).await.unwrap(), Outcome::Nothing));
    let running = stage.start().await;
    eventually(DEADLINE, "it is found", || async { stage.status(17).await == "processed" }).await;
    running.stop().await;
}

#[tokio::test]
async fn what_is_put_back_below_the_start_position_is_found_without_a_full_scan() {
    let stage = one_lane().await;
    stage.pair.legacy.run("ALTER TABLE outbox ALTER id RESTART WITH 100000").await;
    let shared = stage.shared().await;
    position_moves_on(&stage, &shared).await;
    let past = Past::of(&stage.pair.new).await;
    let ahead = "INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) OVERRIDING SYSTEM VALUE
         VALUES (17, 'Thing', 'ahead', 'Happened', '{\"version\": 1}')";
    stage.pair.legacy.run(ahead).await;
    let full = Errand { full: true, ..Errand::default() };
    batch::run_once(&shared, Lane(0), full).await.unwrap();
    assert_eq!(stage.status(17).await, "processed");
    past.again(&stage.pair.new).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.status(17).await, "processed");
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn a_start_position_goes_back_with_its_source() {
    let stage = one_lane().await;
    let shared = stage.shared().await;
    let past = Past::of(&stage.pair.legacy).await;
    position_moves_on(&stage, &shared).await;
    let before = position(&stage).await;
    past.again(&stage.pair.legacy).await;
    let id = stage.thing("new", 1).await;
    assert!(id < before);
    // Never a full scan here.
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.status(id).await, "processed");
}

// The planner; what sits at the front.

impl Stage {
    /// The claim of lane 0 from a position, without these types.
    async fn explain_claim(&self, position: i64, stopped: &str) -> Plan {
        let names = Names::new(&self.config.legacy, self.config.relay.lanes);
        let sql = names.render(include_str!("../../sql/source/claim.sql"));
        let sql = sql.replace("$1", "0").replace("$2", &position.to_string()).replace("$3", &format!("'{stopped}'"));
        self.pair.legacy.explain(&sql.replace("$4", "1000").replace("$5", "16000000")).await
    }

    async fn explain_look(&self, stopped: &str, lanes: &str) -> Plan {
        let names = Names::new(&self.config.legacy, self.config.relay.lanes);
        let sql = names.render(include_str!("../../sql/source/look.sql"));
        let sql = sql.replace("$1", &format!("'{stopped}'")).replace("$2", "false").replace("$3", "true");
        self.pair.legacy.explain(&sql.replace("$4", &format!("'{lanes}'"))).await
    }
}

fn is_ordered_scan(plan: &Plan, buffers: i64) {
    let text = &plan.text;
    assert!(text.contains("Index Scan using outbox_relay_pending"), "{text}");
    assert!(!text.contains("Bitmap") && !text.contains("Seq Scan on outbox"), "{text}");
    assert!(plan.buffers < buffers, "{} buffers, more than {buffers}\n{text}", plan.buffers);
}

#[tokio::test]
async fn a_claim_walks_the_index_in_order_however_long_the_backlog() {
    let stage = Stage::with(|config| config.relay.lanes = 4).await;
    let legacy = &stage.pair.legacy;
    stage.things(100_000, 10_000).await;
    // Somebody's long transaction holds back vacuum: what is processed leaves dead entries behind.
    let mut long = session(&legacy.url).await;
    long.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox").await.unwrap();
    legacy.run("UPDATE outbox SET status = 'processed' WHERE id <= 50000").await;
    stage.things(50_000, 10_000).await;
    // 1,000 rows are read and locked: three pages each, at most.
    is_ordered_scan(&stage.explain_claim(50_001, "{}").await, 5_000);
    legacy.run("ANALYZE outbox").await;
    is_ordered_scan(&stage.explain_claim(50_001, "{}").await, 5_000);
    long.execute("ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn retries_held_and_failed_events_at_the_front_slow_nobody_down() {
    let stage = Stage::with(|config| config.relay.lanes = 1).await;
    let legacy = &stage.pair.legacy;
    stage.things(100_000, 1000).await;
    legacy
        .run(
            "UPDATE outbox SET status = (ARRAY['retry', 'held', 'failed'])[1 + id % 3],
             next_attempt_at = CASE WHEN id % 3 = 0 THEN now() + '1 day'::interval END",
        )
        .await;
    legacy.run("VACUUM ANALYZE outbox").await;
    legacy.run("INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('Thing', 'x', 'Happened', '{}')").await;
    is_ordered_scan(&stage.explain_look("{}", "{0}").await, 60);
    // Nothing is read of a lane that is not asked for.
    let elsewhere = stage.explain_look("{}", "{1}").await.text;
    let scan = elsewhere.lines().find(|line| line.contains("using outbox_relay_pending"));
    assert!(scan.is_some_and(|line| line.contains("never executed")), "{elsewhere}");
    is_ordered_scan(&stage.explain_claim(i64::MIN, "{}").await, 60);
    let free = Stage::with(|config| config.relay.lanes = 1).await;
    beside("100,000 events in retry, held and failed", &stage, &free).await;
}

/// Told, not asserted: clocks on a shared machine prove nothing, the plans above do.
async fn beside(crowd: &str, stage: &Stage, free: &Stage) {
    let mut seconds = Vec::new();
    for stage in [free, stage] {
        let shared = stage.shared().await;
        stage.things_of("Quick", 5000, 500).await;
        let start = std::time::Instant::now();
        while stage.count("processed").await < 5000 {
            stage.step(&shared).await.unwrap();
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    println!("draining 5,000 events beside {crowd}: {:.2} of the free rate", seconds[0] / seconds[1]);
}

#[tokio::test]
async fn a_stopped_crowd_at_the_front_slows_nobody_down() {
    let stage = one_lane().await;
    let legacy = &stage.pair.legacy;
    legacy
        .run(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'User', (i % 1000)::text, 'UserCreated', '{}' FROM generate_series(1, 100000) i",
        )
        .await;
    legacy.run("INSERT INTO outbox_relay.pause VALUES ('User', 'a test', 'me')").await;
    let shared = stage.shared().await;
    position_moves_on(&stage, &shared).await;
    let from = position(&stage).await;
    assert!(from > 100_000);
    legacy.run("VACUUM ANALYZE outbox").await;
    stage.thing("x", 1).await;
    is_ordered_scan(&stage.explain_look("{}", "{0}").await, 80);
    // Behind the crowd there is one row, which the primary key finds as well.
    let claim = stage.explain_claim(from, "{User}").await;
    assert!(claim.buffers < 80 && !claim.text.contains("Seq Scan on outbox"), "{}", claim.text);
    assert!(matches!(stage.step(&shared).await.unwrap(), Outcome::Settled(_)));
    legacy.run("DELETE FROM outbox WHERE status = 'processed'").await;
    beside("100,000 events of a paused type", &stage, &one_lane().await).await;
    // Once they are no longer stopped, they are found again.
    legacy.run("DELETE FROM outbox_relay.pause").await;
    assert!(shared.source.look(&[], false, false).await.unwrap().iter().any(|sighting| sighting.pending));
}

#[tokio::test]
async fn a_quiet_crowd_is_passed_over_unless_somebody_has_locked_a_row_in_it() {
    let stage = one_lane().await;
    let legacy = &stage.pair.legacy;
    let shared = stage.shared().await;
    let locked = stage.thing("a", 1).await;
    legacy
        .run(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'User', (i % 1000)::text, 'UserCreated', '{}' FROM generate_series(1, 5000) i;
             INSERT INTO outbox_relay.pause VALUES ('User', 'a test', 'me')",
        )
        .await;
    let mut dba = session(&legacy.url).await;
    dba.execute(sqlx::AssertSqlSafe(format!("BEGIN; SELECT FROM outbox WHERE id = {locked} FOR UPDATE")))
        .await
        .unwrap();
    // Leaves a mark above all of it, which the next claim finds decided.
    stage.thing("other", 1).await;
    stage.step(&shared).await.unwrap();
    the_mark_is_old(&stage).await;
    let advance = || async {
        let errand = Errand { advance: true, ..Errand::default() };
        batch::run_once(&shared, Lane(0), errand).await.unwrap().0
    };
    assert_eq!(advance().await, Outcome::Nothing);
    assert!(position(&stage).await <= locked);
    dba.execute("ROLLBACK").await.unwrap();
    stage.step(&shared).await.unwrap();
    assert_eq!(stage.status(locked).await, "processed");
    the_mark_is_old(&stage).await;
    assert!(matches!(advance().await, Outcome::Settled(_)));
    assert!(position(&stage).await > locked + 5000);
}

#[tokio::test]
async fn a_crowd_where_nothing_was_ever_settled_is_passed_over_at_the_second_turn() {
    let stage = one_lane().await;
    let shared = stage.shared().await;
    stage.things(5000, 100).await;
    stage.pair.legacy.run("INSERT INTO outbox_relay.pause VALUES ('Thing', 'a test', 'me')").await;
    for passed in [false, true, true] {
        let errand = Errand { advance: true, ..Errand::default() };
        batch::run_once(&shared, Lane(0), errand).await.unwrap();
        assert_eq!(position(&stage).await > 5000, passed);
        the_mark_is_old(&stage).await;
    }
    // It is not lost: resumed, all of it comes.
    stage.pair.legacy.run("DELETE FROM outbox_relay.pause").await;
    stage.drain_by_hand(&shared).await;
    stage.oracle_agrees().await;
    assert_eq!(stage.count("processed").await, 5000);
}

#[tokio::test]
async fn what_is_paused_waits_and_prompts_nobody() {
    let stage = one_lane().await;
    let shared = stage.shared().await;
    stage.things(5, 2).await;
    for kind in ["Thing", ""] {
        stage.pair.legacy.run(&format!("INSERT INTO outbox_relay.pause VALUES ('{kind}', 'a test', 'me')")).await;
        assert_eq!(shared.source.look(&[], true, true).await.unwrap(), []);
        assert!(matches!(stage.step(&shared).await.unwrap(), Outcome::Nothing | Outcome::Paused));
        assert_eq!(stage.count("pending").await, 5);
        stage.pair.legacy.run("DELETE FROM outbox_relay.pause").await;
    }
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.count("processed").await, 5);
}

// A host that dies without a word, or is frozen.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_a_lane_for_ever_is_ended_and_nobody_else() {
    let stage = Stage::with(|config| {
        config.relay.lanes = 1;
        config.relay.deadline = Duration::from_millis(300);
    })
    .await;
    let (legacy, new) = (&stage.pair.legacy, &stage.pair.new);
    legacy.run("CREATE TABLE application (n int)").await;
    new.run("CREATE TABLE application (n int)").await;
    // On both sides: the application, in the midst of a long transaction of its own, and a ghost without any time limit.
    let mut innocent = Vec::new();
    let mut ghosts = Vec::new();
    for url in [&legacy.url, &new.url] {
        let mut connection = session(url).await;
        connection.execute("BEGIN; INSERT INTO application VALUES (1)").await.unwrap();
        innocent.push(connection);
        let mut connection = session(url).await;
        connection.execute("BEGIN; SELECT * FROM outbox_relay.lane FOR UPDATE").await.unwrap();
        ghosts.push(connection);
    }
    let running = stage.start().await;
    stage.things(5, 2).await;
    stage.drained().await;
    running.stop().await;
    for mut connection in innocent {
        connection.execute("COMMIT").await.unwrap();
    }
    for mut connection in ghosts {
        assert!(connection.execute("SELECT 1").await.is_err());
    }
    stage.oracle_agrees().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_process_is_overtaken_and_refused_when_thawed() {
    let stage = Stage::with(|config| {
        config.relay.lanes = 2;
        config.relay.deadline = Duration::from_millis(500);
    })
    .await;
    stage.pair.new.run(GATE).await;
    let gate = closed_gate(&stage).await;
    let mut child = Child::start(&stage, None);
    stage.things(200, 20).await;
    at_the_gate(&stage, 2).await;
    // Both lanes are in the midst of a batch.
    child.freeze();
    gate.close().await.unwrap();
    let running = stage.start().await;
    stage.drained().await;
    stage.things(50, 20).await;
    stage.drained().await;
    child.thaw();
    stage.things(50, 20).await;
    stage.drained().await;
    running.stop().await;
    // It is well again, and of use.
    assert!(child.is_running());
    stage.things(50, 20).await;
    stage.drained().await;
    drop(child);
    let shared = stage.shared().await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.count("processed").await, 350);
    stage.oracle_agrees().await;
}

// A target that hangs, or is away.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_hangs_or_is_away_costs_time_and_no_attempts() {
    let mut servers = own_servers().await;
    let stage = Stage::on(servers.pair().await, |config| config.relay.deadline = Duration::from_secs(1)).await;
    let running = stage.start().await;
    stage.things(100, 20).await;
    stage.drained().await;

    servers.new.freeze();
    stage.things(100, 20).await;
    eventually(DEADLINE, "the breaker opens", || async { running.shared.breaker.report().is_some() }).await;
    servers.new.thaw();
    stage.drained().await;

    servers.new.stop(Mode::Immediate).await.unwrap();
    stage.things(100, 20).await;
    eventually(DEADLINE, "the breaker opens", || async { running.shared.breaker.report().is_some() }).await;
    servers.new.restart().await.unwrap();
    stage.drained().await;

    servers.legacy.freeze();
    eventually(DEADLINE, "the source is missed", || async { running.shared.state().source_away.is_some() }).await;
    servers.legacy.thaw();
    stage.things(100, 20).await;
    stage.drained().await;

    servers.legacy.stop(Mode::Immediate).await.unwrap();
    servers.legacy.restart().await.unwrap();
    stage.things(100, 20).await;
    stage.drained().await;
    running.stop().await;
    assert_eq!(stage.pair.legacy.value::<i64>("SELECT sum(attempts)::bigint FROM outbox").await, 0);
    assert_eq!(stage.count("processed").await, 500);
    stage.oracle_agrees().await;
}

// A batch is bounded in bytes too.

#[tokio::test]
async fn a_batch_is_bounded_in_bytes_and_a_giant_passes() {
    let stage = Stage::with(|config| {
        config.relay.lanes = 1;
        config.relay.batch_bytes = 2 << 20;
    })
    .await;
    // Text by chance is stored as large as it is; text that repeats itself takes a hundredth.
    let write = |events: u32, kilobytes: u32, chance: &str| {
        format!(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'Thing', i::text, 'Happened', jsonb_build_object('version', i, 'text',
                 (SELECT string_agg(md5({chance}::text), '') FROM generate_series(1, {kilobytes} * 32) WHERE i > 0))
             FROM generate_series(1, {events}) i"
        )
    };
    let shared = stage.shared().await;
    for (events, chance) in [(100, "random()"), (150, "'x'")] {
        stage.pair.legacy.run(&write(events, 1000, chance)).await;
        for _ in 0..3 {
            match stage.step(&shared).await.unwrap() {
                Outcome::Settled(counts) => assert!(counts.processed["Thing"] <= 3 && counts.more, "{counts:?}"),
                other => panic!("{other:?}"),
            }
        }
        stage.pair.legacy.run("UPDATE outbox SET status = 'skipped' WHERE status = 'pending'").await;
    }
    stage.pair.legacy.run(&write(1, 50_000, "random()")).await;
    stage.things(10, 2).await;
    match stage.step(&shared).await.unwrap() {
        Outcome::Settled(counts) => assert_eq!(counts.processed["Thing"], 1),
        other => panic!("{other:?}"),
    }
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.count("pending").await, 0);
}

// The lane's hash.

#[tokio::test]
async fn a_server_that_hashes_to_other_lanes_is_refused() {
    let stage = one_lane().await;
    stage.pair.legacy.run("UPDATE outbox_relay.installation SET test_lanes = '{0, 0, 0, 1}'").await;
    let error = connect::open(&stage.config).await.err().unwrap().to_string();
    assert!(error.contains("hashes aggregates to other lanes"), "{error}");
}

// Deadlocks on the target.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_that_write_the_same_rows_do_not_deadlock() {
    let stage = Stage::with(|config| config.relay.batch = 50).await;
    let running = stage.start().await;
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'User', i::text, 'UserUpdated', jsonb_build_object('id', i * 7919 % 40, 'name', 'x', 'version', 1)
             FROM generate_series(1, 8000) i",
        )
        .await;
    stage.drained().await;
    running.stop().await;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(stage.pair.new.value::<i64>(deadlocks).await, 0);
    assert_eq!(stage.count("processed").await, 8000);
}

// An unknown commit.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_takes_effect_once() {
    let mut stage = Stage::with(|config| {
        config.relay.lanes = 4;
        config.relay.batch = 20;
    })
    .await;
    let port_of = |url: &str| url.rsplit(':').next().unwrap().split('/').next().unwrap().parse::<u16>().unwrap();
    let mut cut = Vec::new();
    let urls = [stage.pair.legacy.url.clone(), stage.pair.new.url.clone()];
    let [legacy, new] = [&urls[0], &urls[1]].map(|url| (url, port_of(url)));
    let mut through = Vec::new();
    for ((url, port), every) in [(legacy, 13), (new, 7)] {
        let proxy = Proxy::before(port, every).await;
        through.push(url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port)));
        cut.push(proxy.cut);
    }
    let changed = crate::support::stage::config(&through[0], &through[1]);
    stage.config.legacy.url = changed.legacy.url;
    stage.config.new.url = changed.new.url;
    let shared = stage.shared().await;
    for _ in 0..5 {
        stage.things(200, 20).await;
        assert!(stage.heal_by_hand(&shared).await.is_empty());
    }
    for cut in cut {
        assert!(cut.load(Ordering::SeqCst) >= 4, "too few were cut to tell");
    }
    assert_eq!(stage.count("processed").await, 1000);
    stage.oracle_agrees().await;
}
