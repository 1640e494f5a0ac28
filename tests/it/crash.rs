//! Processes that die: between every two steps of a batch, and at any moment under load.

use std::time::Duration;

use crate::support::child::{Child, has_failpoints, relay_as_told};
use crate::support::stage::Stage;
use crate::support::{DEADLINE, eventually};

/// Not a test: the process that others kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the tests that kill it"]
async fn child_that_relays() {
    relay_as_told().await;
}

/// Every place between two steps of the loop.
const STEPS: [&str; 8] = [
    "source_locked",
    "target_locked",
    "claimed",
    "applied",
    "appended",
    "target_committed",
    "settled",
    "source_committed",
];

#[tokio::test]
async fn a_crash_between_any_two_steps_applies_once() {
    if !has_failpoints() {
        return;
    }
    let stage = Stage::with(|config| {
        config.relay.lanes = 2;
        config.relay.batch = 10;
    })
    .await;
    for (round, step) in STEPS.iter().flat_map(|step| [(1, *step), (3, *step)]) {
        stage.things(60, 7).await;
        let mut child = Child::start(&stage, Some(&format!("{step}:{round}")));
        let status = child.ended(DEADLINE).await;
        assert!(status.is_some_and(|status| !status.success()), "{step}: {status:?}");
    }
    let running = stage.start().await;
    stage.drained().await;
    running.stop().await;
    assert_eq!(stage.count("processed").await, 60 * 16);
    stage.oracle_agrees().await;
}

/// Writers as they are: several statements a transaction, some slow, some rolled back, each leaving a gap in the ids. The lock on
/// the aggregate's row makes the order of ids the order of changes.
async fn write(stage: &Stage, writer: u32, transactions: u32, aggregates: u32) {
    let mut connection = stage.pair.legacy.pool.acquire().await.unwrap();
    for n in 0..transactions {
        let lot = (n * 7919 + writer * 104_729) % 1000;
        let first = lot % (aggregates - 5);
        let end = if lot.is_multiple_of(10) { "ROLLBACK" } else { "COMMIT" };
        let sleep = if lot % 50 == 7 { "SELECT pg_sleep(0.05);" } else { "" };
        // Five things, two events each, and a user's state; their rows locked in order.
        let sql = format!(
            "BEGIN; UPDATE things SET version = version + 2 WHERE id BETWEEN {first} AND {first} + 4;
             INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'Thing', id::text, 'Happened', jsonb_build_object('version', version - 1 + i)
             FROM things, generate_series(0, 1) i WHERE id BETWEEN {first} AND {first} + 4 ORDER BY i;
             INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'User', id::text, 'UserUpdated', jsonb_build_object('id', id, 'name', 'n' || version, 'version', version)
             FROM things WHERE id BETWEEN {first} AND {first} + 4;
             {sleep} {end}"
        );
        use sqlx::Executor;
        while let Err(error) = connection.execute(sqlx::AssertSqlSafe(sql.clone())).await {
            // Two writers that lock overlapping rows in different orders: one of them tries again.
            assert_eq!(error.as_database_error().and_then(|e| e.code()).as_deref(), Some("40P01"), "{error}");
            connection.execute("ROLLBACK").await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_events_survive_two_processes_that_are_killed_again_and_again() {
    let stage = Stage::with(|config| config.relay.batch = 200).await;
    let legacy = &stage.pair.legacy;
    legacy.run("CREATE TABLE things AS SELECT i AS id, 0 AS version FROM generate_series(0, 1999) i; ALTER TABLE things ADD PRIMARY KEY (id)").await;
    let written = std::sync::atomic::AtomicBool::new(false);
    let kills = async {
        let mut kills = 0u64;
        let mut children = [Child::start(&stage, None), Child::start(&stage, None)];
        while !written.load(std::sync::atomic::Ordering::SeqCst) || kills < 8 {
            tokio::time::sleep(Duration::from_millis(150 + kills * 7919 % 500)).await;
            children[usize::from(kills % 2 == 1)] = Child::start(&stage, None);
            kills += 1;
        }
        children
    };
    let writers = async {
        tokio::join!(
            write(&stage, 0, 560, 2000),
            write(&stage, 1, 560, 2000),
            write(&stage, 2, 560, 2000),
            write(&stage, 3, 560, 2000)
        );
        written.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    let (children, ()) = tokio::join!(kills, writers);
    eventually(Duration::from_secs(60), "the outbox drains", || async {
        stage.count("pending").await + stage.count("retry").await == 0
    })
    .await;
    drop(children);
    // What a killed worker applied and did not settle is settled by whoever comes next.
    let shared = stage.shared().await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    let events = stage.count("processed").await;
    println!("{events} events");
    assert!(events >= 20_000, "{events} events");
    assert_eq!(events, legacy.value::<i64>("SELECT count(*) FROM outbox").await);
    stage.oracle_agrees().await;
    let newest = "SELECT coalesce(string_agg(id || ':' || version, ',' ORDER BY id), '') FROM";
    let there: String = stage
        .pair
        .new
        .value(&format!("{newest} (SELECT aggregate::int AS id, max(version) AS version FROM applied GROUP BY 1) t"))
        .await;
    let here: String = legacy.value(&format!("{newest} things WHERE version > 0")).await;
    assert_eq!(there, here);
    // And the table that is written by a mapping is the mapping of legacy.
    let all = "SELECT coalesce(string_agg(concat_ws(':', id, version, name), ',' ORDER BY id), '') FROM";
    let there: String = stage.pair.new.value(&format!("{all} users")).await;
    let here: String = legacy
        .value(&format!("{all} (SELECT id, version, 'n' || version AS name FROM things WHERE version > 0) t"))
        .await;
    assert_eq!(there, here);
}
