//! Retention: what is old enough goes, in small steps, and nothing that healing may still need.

use std::time::Duration;

use outbox_relay::relay::Shared;
use outbox_relay::retention;
use sqlx::{Connection, Executor, PgConnection};

use crate::support::past::Past;
use crate::support::stage::Stage;

/// Everything that happened so far happened an hour and a half ago, on both sides.
pub(crate) async fn age(stage: &Stage) {
    stage
        .pair
        .legacy
        .run(
            "UPDATE outbox SET processed_at = processed_at - interval '90 min';
             UPDATE outbox_relay.batch_log SET settled_at = settled_at - interval '90 min'",
        )
        .await;
    stage.pair.new.run("UPDATE outbox_relay.batch_log SET applied_at = applied_at - interval '90 min'").await;
}

pub(crate) async fn retain(stage: &Stage, shared: &Shared) -> retention::Counts {
    let mut all = retention::Counts::default();
    loop {
        let counts = run_once(stage, shared).await;
        if counts == retention::Counts::default() {
            return all;
        }
        all.processed += counts.processed;
        all.skipped += counts.skipped;
        all.entries += counts.entries;
    }
}

async fn run_once(stage: &Stage, shared: &Shared) -> retention::Counts {
    let done = retention::run_once(&stage.config, &shared.source, &shared.target).await.unwrap();
    assert!(done.refused.is_none(), "{done:?}");
    done.counts
}

async fn events(stage: &Stage) -> i64 {
    stage.pair.legacy.value("SELECT count(*) FROM outbox").await
}

#[tokio::test]
async fn processed_events_go_with_their_log_entries_and_what_is_not_old_or_not_processed_stays() {
    let stage = Stage::with(|config| {
        config.retention.processed = Duration::from_secs(3600);
        config.retention.skipped = Duration::from_secs(3600);
    })
    .await;
    let shared = stage.shared().await;
    for round in 1..=6 {
        for aggregate in ["a", "b", "c"] {
            stage.thing(aggregate, round).await;
        }
        stage.drain_by_hand(&shared).await;
    }
    let skipped = stage.thing("d", 1).await;
    let failed = stage.thing("e", 1).await;
    stage
        .pair
        .legacy
        .run(&format!(
            "UPDATE outbox SET status = 'skipped', processed_at = now() WHERE id = {skipped};
             UPDATE outbox SET status = 'failed', processed_at = now() - interval '1 year' WHERE id = {failed}"
        ))
        .await;
    assert_eq!(retain(&stage, &shared).await, retention::Counts::default(), "nothing is old");
    age(&stage).await;
    let recent = stage.thing("a", 7).await;
    stage.drain_by_hand(&shared).await;
    let counts = retain(&stage, &shared).await;
    assert_eq!(counts.skipped, 1);
    // The newest of a lane's old entries always stays, and what is newer, and their events with them.
    let newest: i64 = stage
        .pair
        .legacy
        .value(
            "SELECT coalesce(sum(cardinality(ids)), 0)::bigint FROM outbox_relay.batch_log l
             WHERE token >= (SELECT max(token) FROM outbox_relay.batch_log o
                             WHERE o.lane = l.lane AND settled_at < now() - interval '1 hour')",
        )
        .await;
    assert_eq!(events(&stage).await, newest + 1, "those entries' events, and the failed one");
    assert_eq!((stage.status(recent).await.as_str(), stage.status(failed).await.as_str()), ("processed", "failed"));
    let marked: i64 = stage.pair.legacy.value("SELECT count(*) FROM outbox_relay.forgotten").await;
    assert!(marked > 0);
    // The target has forgotten the same, and says so.
    let (entries, marks): (i64, i64) = (
        stage
            .pair
            .new
            .value("SELECT count(*) FROM outbox_relay.batch_log WHERE applied_at < now() - interval '1 hour'")
            .await,
        stage.pair.new.value("SELECT count(*) FROM outbox_relay.forgotten").await,
    );
    let lanes = i64::from(stage.config.relay.lanes);
    assert_eq!(entries, lanes, "of what is old, each lane's newest entry alone");
    assert!(marks > 0);
    // The logs still end alike, and the relay goes on.
    stage.thing("a", 8).await;
    stage.drain_by_hand(&shared).await;
    assert_eq!(stage.count("pending").await, 0);
}

#[tokio::test]
async fn what_trickled_in_goes_as_quickly_as_it_came() {
    let stage = Stage::with(|config| {
        config.relay.lanes = 1;
        config.relay.batch = 1;
        config.retention.processed = Duration::from_secs(3600);
    })
    .await;
    let shared = stage.shared().await;
    stage.things(100, 100).await;
    stage.drain_by_hand(&shared).await;
    age(&stage).await;
    // An entry for every event; one stays.
    let gone = run_once(&stage, &shared).await;
    assert!(gone.processed >= 98, "{gone:?} in one step");
}

#[tokio::test]
async fn nothing_goes_that_a_failover_within_replica_lag_needs() {
    let stage = Stage::with(|config| {
        config.retention.processed = Duration::from_secs(1);
        config.relay.replica_lag = Duration::from_secs(2 * 3600);
    })
    .await;
    let shared = stage.shared().await;
    stage.thing("a", 1).await;
    stage.drain_by_hand(&shared).await;
    let past = Past::of(&stage.pair.new).await;
    for version in 2..=4 {
        stage.thing("a", version).await;
        stage.drain_by_hand(&shared).await;
    }
    age(&stage).await;
    assert_eq!(retain(&stage, &shared).await, retention::Counts::default());
    // The target goes back by those ninety minutes: all that it forgot is there to be applied again.
    past.again(&stage.pair.new).await;
    stage.heal_by_hand(&shared).await;
    stage.drain_by_hand(&shared).await;
    stage.oracle_agrees().await;
}

/// One lane, an hour for everything, batches of one event.
async fn an_hour() -> Stage {
    Stage::with(|config| {
        config.retention.processed = Duration::from_secs(3600);
        config.relay.replica_lag = Duration::from_secs(3600);
        config.relay.lanes = 1;
        config.relay.batch = 1;
    })
    .await
}

#[tokio::test]
async fn however_old_the_rest_is_both_sides_remember_what_a_recent_batch_was_built_on() {
    for target_goes_back in [true, false] {
        let stage = an_hour().await;
        let shared = stage.shared().await;
        for version in 1..=3 {
            stage.thing("a", version).await;
        }
        stage.drain_by_hand(&shared).await;
        age(&stage).await;
        stage.thing("a", 4).await;
        let side = if target_goes_back { &stage.pair.new } else { &stage.pair.legacy };
        let past = Past::of(side).await;
        stage.drain_by_hand(&shared).await;
        assert!(retain(&stage, &shared).await.entries > 0);
        // That batch alone is lost.
        past.again(side).await;
        let stopped = stage.heal_by_hand(&shared).await;
        assert!(stopped.is_empty(), "target {target_goes_back}: {stopped:?}");
        let applied: String =
            stage.pair.new.value("SELECT string_agg(version::text, ' ' ORDER BY n) FROM applied").await;
        assert_eq!(applied, "1 2 3 4");
    }
}

#[tokio::test]
async fn what_was_settled_late_is_not_forgotten_by_when_it_was_applied() {
    let stage = an_hour().await;
    let shared = stage.shared().await;
    for version in 1..=3 {
        stage.thing("a", version).await;
    }
    let past = Past::of(&stage.pair.legacy).await;
    stage.drain_by_hand(&shared).await;
    // The source went back, and nobody was there for ninety minutes.
    past.again(&stage.pair.legacy).await;
    age(&stage).await;
    let past = Past::of(&stage.pair.legacy).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    retain(&stage, &shared).await;
    // It goes back again, by a moment.
    past.again(&stage.pair.legacy).await;
    let stopped = stage.heal_by_hand(&shared).await;
    assert!(stopped.is_empty(), "{stopped:?}");
    stage.history_agrees().await;
}

#[tokio::test]
async fn nothing_goes_that_the_target_lost_before() {
    let stage = an_hour().await;
    let shared = stage.shared().await;
    stage.thing("a", 1).await;
    stage.drain_by_hand(&shared).await;
    let past = Past::of(&stage.pair.new).await;
    for version in 2..=4 {
        stage.thing("a", version).await;
    }
    stage.drain_by_hand(&shared).await;
    // The target is away for ninety minutes, and comes back as a replica that lagged.
    past.again(&stage.pair.new).await;
    age(&stage).await;
    retain(&stage, &shared).await;
    let stopped = stage.heal_by_hand(&shared).await;
    assert!(stopped.is_empty(), "{stopped:?}");
    stage.oracle_agrees().await;
    stage.history_agrees().await;
}

#[tokio::test]
async fn zero_deletes_on_settling() {
    let stage = Stage::with(|config| config.retention.processed = Duration::ZERO).await;
    let shared = stage.shared().await;
    for version in 1..=5 {
        stage.thing("a", version).await;
    }
    stage.drain_by_hand(&shared).await;
    assert_eq!(events(&stage).await, 0);
    assert_eq!(stage.pair.new.value::<i64>("SELECT count(DISTINCT event) FROM applied").await, 5);
}

/// An application's own table refers to events of one lane.
#[tokio::test]
async fn what_is_refused_in_one_lane_keeps_no_other_from_being_cleaned() {
    let stage = Stage::with(|config| {
        config.retention.processed = Duration::from_secs(60);
        config.relay.replica_lag = Duration::from_secs(60);
        config.relay.lanes = 8;
    })
    .await;
    let shared = stage.shared().await;
    let kept = stage.thing("a", 1).await;
    stage.drain_by_hand(&shared).await;
    for round in 1..=3 {
        for aggregate in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            stage.thing(aggregate, round + 1).await;
        }
        stage.drain_by_hand(&shared).await;
    }
    age(&stage).await;
    stage
        .pair
        .legacy
        .run(&format!(
            "CREATE TABLE of_ours (event bigint REFERENCES outbox (id)); INSERT INTO of_ours VALUES ({kept})"
        ))
        .await;
    let done = retention::run_once(&stage.config, &shared.source, &shared.target).await.unwrap();
    assert!(done.counts.processed > 0, "{done:?}");
    assert!(done.refused.as_ref().is_some_and(|why| why.to_string().contains("of_ours")), "{done:?}");
    // Once nobody refers to it any more it goes like the others.
    stage.pair.legacy.run("DROP TABLE of_ours").await;
    retain(&stage, &shared).await;
    assert_eq!(stage.pair.legacy.value::<i64>(&format!("SELECT count(*) FROM outbox WHERE id = {kept}")).await, 0);
}

/// The target committed, and the source did not: with "0s" what heals that deletes, too.
#[tokio::test]
async fn zero_deletes_what_healing_settles() {
    let stage = Stage::with(|config| config.retention.processed = Duration::ZERO).await;
    let shared = stage.shared().await;
    for version in 1..=5 {
        stage.thing("a", version).await;
    }
    let past = Past::of(&stage.pair.legacy).await;
    stage.drain_by_hand(&shared).await;
    past.again(&stage.pair.legacy).await;
    assert_eq!(events(&stage).await, 5);
    stage.drain_by_hand(&shared).await;
    assert_eq!(events(&stage).await, 0);
    assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM applied").await, 5, "each once");
}

#[tokio::test]
async fn it_waits_for_nobody_and_locks_nobody_out() {
    let stage = Stage::with(|config| {
        config.retention.processed = Duration::from_secs(60);
        config.relay.replica_lag = Duration::from_secs(60);
        config.relay.lanes = 1;
    })
    .await;
    let shared = stage.shared().await;
    for version in 1..=3 {
        stage.thing("a", version).await;
        stage.drain_by_hand(&shared).await;
    }
    age(&stage).await;
    // A worker has the lane: its turn comes later, and it does not wait.
    let mut worker = PgConnection::connect(&stage.pair.legacy.url).await.unwrap();
    worker.execute("BEGIN; SELECT FROM outbox_relay.lane WHERE lane = 0 FOR UPDATE").await.unwrap();
    let counts = run_once(&stage, &shared).await;
    assert_eq!((counts.processed, counts.entries), (0, 0));
    worker.execute("ROLLBACK").await.unwrap();
    // The application's transaction holds the table's lock and inserts: it is not waited for either.
    let mut writer = PgConnection::connect(&stage.pair.legacy.url).await.unwrap();
    writer
        .execute("BEGIN; INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('Thing', 'w', 'Happened', '{\"version\": 1}')")
        .await
        .unwrap();
    let counts = retain(&stage, &shared).await;
    assert!(counts.processed > 0, "{counts:?}");
    writer.execute("COMMIT").await.unwrap();
}
