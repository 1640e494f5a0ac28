//! Healing: every accident of the protocol's table, one after the other, mixed, and interrupted. The oracle is a table without any
//! unique constraint, judged on the history that survived.

use std::time::Duration;

use outbox_relay::event::{EventId, Lane};
use outbox_relay::relay::Shared;
use outbox_relay::relay::batch::{self, Errand, Healed, Outcome};

use crate::support::child::{Child, has_failpoints};
use crate::support::past::Past;
use crate::support::stage::Stage;
use crate::support::{DEADLINE, eventually, own_servers};

/// Two lanes and small batches: more accidents for an event.
async fn small_stage() -> Stage {
    Stage::with(|config| {
        config.relay.lanes = 2;
        config.relay.batch = 5;
    })
    .await
}

async fn some_batches(stage: &Stage, shared: &Shared, batches: u32) {
    for n in 0..batches {
        let lane = Lane((n % u32::from(stage.config.relay.lanes)).cast_signed());
        batch::run_once(shared, lane, Errand::default()).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_source_forgot_is_settled_and_not_applied_again() {
    let stage = small_stage().await;
    let shared = stage.shared().await;
    stage.things(40, 7).await;
    some_batches(&stage, &shared, 2).await;
    let past = Past::of(&stage.pair.legacy).await;
    some_batches(&stage, &shared, 4).await;
    let applied: i64 = stage.pair.new.value("SELECT count(*) FROM applied").await;
    past.again(&stage.pair.legacy).await;
    let (outcome, _) = batch::run_once(&shared, Lane(0), Errand::default()).await.unwrap();
    assert!(matches!(outcome, Outcome::Healed(Healed::Settled(done)) if done.events == 5), "{outcome:?}");
    assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM applied").await, applied);
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    stage.history_agrees().await;
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn what_a_target_forgot_is_applied_again() {
    let stage = small_stage().await;
    let shared = stage.shared().await;
    stage.things(40, 7).await;
    some_batches(&stage, &shared, 2).await;
    let past = Past::of(&stage.pair.new).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    past.again(&stage.pair.new).await;
    let (outcome, _) = batch::run_once(&shared, Lane(0), Errand::default()).await.unwrap();
    assert!(matches!(outcome, Outcome::Healed(Healed::PutBack(n)) if n > 0), "{outcome:?}");
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.count("processed").await, 40);
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn both_sides_in_turn_go_back() {
    let stage = small_stage().await;
    let shared = stage.shared().await;
    stage.things(60, 7).await;
    some_batches(&stage, &shared, 2).await;
    let legacy = Past::of(&stage.pair.legacy).await;
    some_batches(&stage, &shared, 2).await;
    let new = Past::of(&stage.pair.new).await;
    some_batches(&stage, &shared, 4).await;
    // Both logs now have batches that the other one never saw.
    legacy.again(&stage.pair.legacy).await;
    some_batches(&stage, &shared, 1).await;
    new.again(&stage.pair.new).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.count("processed").await, 60);
    stage.history_agrees().await;
}

#[tokio::test]
async fn ids_handed_out_again_do_not_settle_other_events() {
    let stage = small_stage().await;
    let shared = stage.shared().await;
    stage.things(10, 3).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    let past = Past::of(&stage.pair.legacy).await;
    stage.things(6, 3).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    past.again(&stage.pair.legacy).await;
    // The same ids, other events, of other aggregates.
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'Thing', 'other' || i, 'Happened', '{\"version\": 1}' FROM generate_series(1, 6) i",
        )
        .await;
    let same: i64 = stage.pair.legacy.value("SELECT count(*) FROM outbox WHERE id BETWEEN 11 AND 16").await;
    assert_eq!(same, 6);
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    let divergent: i64 = stage.pair.legacy.value("SELECT count(*) FROM outbox_relay.divergent").await;
    assert_eq!(divergent, 6);
    assert_eq!(stage.count("processed").await, 16);
    let others: i64 = stage.pair.new.value("SELECT count(*) FROM applied WHERE aggregate LIKE 'other%'").await;
    assert_eq!(others, 6, "settled by id alone");
    stage.history_agrees().await;
}

#[tokio::test]
async fn an_event_that_a_later_one_overtook_fails_and_is_never_applied_by_itself() {
    let stage = small_stage().await;
    let shared = stage.shared().await;
    let early = stage.thing("a", 1).await;
    let late = stage.thing("a", 2).await;
    // The early one cannot be locked at first, fails, and is skipped by an operator: the late one is applied.
    stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'skipped' WHERE id = {early}")).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.status(late).await, "processed");
    // The source goes back to before both.
    stage
        .pair
        .legacy
        .run(
            "UPDATE outbox SET status = 'pending', processed_at = NULL;
             DELETE FROM outbox_relay.batch_log WHERE ids <> '{}'",
        )
        .await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!((stage.status(early).await, stage.status(late).await), ("failed".into(), "processed".into()));
    let cause: String = stage.pair.legacy.value("SELECT code FROM outbox_relay.failure").await;
    assert_eq!(cause, "overtaken");
    stage.history_agrees().await;
}

/// An attempt that was charged for the operator's error is given back by whoever charged it, when it turns out: perhaps after a
/// failover.
#[tokio::test]
async fn what_was_overtaken_is_not_revived_when_its_attempt_is_given_back() {
    let stage = Stage::with(|config| config.relay.lanes = 1).await;
    let shared = stage.shared().await;
    let early = stage.thing("a", 1).await;
    let late = stage.thing("a", 2).await;
    stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'failed' WHERE id = {early}")).await;
    let past = Past::of(&stage.pair.legacy).await;
    // It is skipped, and the later one applied; the source forgets both.
    stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'skipped' WHERE id = {early}")).await;
    stage.drain_by_hand(&shared).await;
    past.again(&stage.pair.legacy).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.status(late).await, "processed");
    let mut lane = shared.source.lock_lane(Lane(0)).await.unwrap().unwrap();
    lane.give_back(&[EventId(early)], &[]).await.unwrap();
    lane.commit().await.unwrap();
    stage.drain_by_hand(&shared).await;
    assert_eq!(stage.status(early).await, "failed");
    stage.history_agrees().await;
}

#[tokio::test]
async fn looking_for_the_overtaken_reads_no_more_than_the_backlog() {
    let stage = Stage::with(|config| config.relay.lanes = 1).await;
    stage.things(50_000, 5000).await;
    stage.pair.legacy.run("UPDATE outbox SET status = 'processed' WHERE id <= 49900").await;
    stage.pair.legacy.run("VACUUM ANALYZE outbox").await;
    let config = &stage.config;
    let names = outbox_relay::source::Names::new(&config.legacy, 1);
    let sql = names.render(include_str!("../../sql/source/heal_overtaken.sql"));
    let sql = sql.replace("$1", "0").replace("$2::text[]", "'{Thing}'::text[]");
    let sql = sql.replace("$3::text[]", "'{7}'::text[]").replace("$4::bigint[]", "'{50000}'::bigint[]");
    let sql = sql.replace("$5::text[]", "'{}'::text[]");
    let plan = stage.pair.legacy.explain(&sql).await;
    assert!(plan.buffers < 300, "{}", plan.text);
}

#[tokio::test]
async fn a_target_that_went_back_is_found_when_nothing_is_pending() {
    let stage = small_stage().await;
    let past = Past::of(&stage.pair.new).await;
    stage.things(20, 7).await;
    let running = stage.start().await;
    stage.drained().await;
    running.stop().await;
    past.again(&stage.pair.new).await;
    let running = stage.start().await;
    eventually(DEADLINE, "what the target forgot is applied again", || async {
        stage.pair.new.value::<i64>("SELECT count(*) FROM applied").await == 20
    })
    .await;
    stage.drained().await;
    running.stop().await;
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn a_lane_without_a_common_batch_stops_with_the_time_span_and_the_others_flow() {
    let stage = small_stage().await;
    let shared = stage.shared().await;
    stage.things(20, 7).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    let past = Past::of(&stage.pair.new).await;
    stage.things(20, 7).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    // Retention went over lane 0, further than the target's replica lagged.
    past.again(&stage.pair.new).await;
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO outbox_relay.forgotten SELECT 0, max(token) - 1, now() FROM outbox_relay.batch_log WHERE lane = 0;
             DELETE FROM outbox_relay.batch_log l WHERE lane = 0
             AND token < (SELECT max(token) FROM outbox_relay.batch_log WHERE lane = 0)",
        )
        .await;
    let stopped = stage.heal_by_hand(&shared).await;
    assert_eq!(stopped.len(), 1, "{stopped:?}");
    let year: String =
        stage.pair.legacy.value("SELECT to_char(now() AT TIME ZONE 'UTC', '\"between \"YYYY-MM-DD')").await;
    assert!(stopped[0].starts_with("lane 0: no batch is left") && stopped[0].contains(&year), "{stopped:?}");
    // The other lane was healed and goes on.
    let before = stage.count("processed").await;
    stage.things(20, 7).await;
    assert_eq!(stage.heal_by_hand(&shared).await.len(), 1);
    assert!(stage.count("processed").await > before);
}

#[tokio::test]
async fn a_lane_stops_rather_than_put_back_events_that_are_gone() {
    let stage = Stage::with(|config| config.relay.lanes = 1).await;
    let shared = stage.shared().await;
    let past = Past::of(&stage.pair.new).await;
    let first = stage.thing("a", 1).await;
    let second = stage.thing("a", 2).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    stage.pair.legacy.run(&format!("DELETE FROM outbox WHERE id = {first}")).await;
    past.again(&stage.pair.new).await;
    let stopped = stage.heal_by_hand(&shared).await;
    assert!(stopped[0].contains("1 of its events are no longer in the outbox"), "{stopped:?}");
    assert_eq!(stage.status(second).await, "processed", "nothing was changed");
}

#[tokio::test]
async fn a_clone_stops_until_it_is_said_to_be_moved() {
    let stage = small_stage().await;
    let shared = stage.shared().await;
    stage.things(4, 2).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    stage.pair.legacy.run("UPDATE outbox_relay.batch_log SET peer = '123/users'").await;
    stage.thing("x", 1).await;
    let stopped = stage.heal_by_hand(&shared).await;
    assert_eq!(stopped.len(), 2, "{stopped:?}");
    assert!(stopped[0].contains("init --moved"), "{stopped:?}");
    let moved = outbox_relay::init::Choices { moved: true, ..Default::default() };
    stage.init(moved).await.unwrap();
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    stage.oracle_agrees().await;
}

/// A few numbers by chance, the same for a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % sides as u64).unwrap()
    }
}

async fn a_mixture(seed: u64) {
    let mut dice = Dice(seed);
    let stage = small_stage().await;
    let shared = stage.shared().await;
    let mut past = (vec![Past::of(&stage.pair.legacy).await], vec![Past::of(&stage.pair.new).await]);
    for _ in 0..40 {
        match dice.roll(12) {
            0..=3 => stage.things(u32::try_from(dice.roll(9)).unwrap() + 1, 5).await,
            4..=7 => {
                let lane = Lane(i32::try_from(dice.roll(2)).unwrap());
                // Nothing, a batch, or one step of healing that is then left alone.
                let errand = Errand { full: dice.roll(4) == 0, due: true, ..Errand::default() };
                batch::run_once(&shared, lane, errand).await.unwrap();
            }
            8 => past.0.push(Past::of(&stage.pair.legacy).await),
            9 => past.1.push(Past::of(&stage.pair.new).await),
            10 => past.0[dice.roll(past.0.len())].again(&stage.pair.legacy).await,
            _ => past.1[dice.roll(past.1.len())].again(&stage.pair.new).await,
        }
    }
    let stopped = stage.heal_by_hand(&shared).await;
    assert!(stopped.is_empty(), "seed {seed}: {stopped:?}");
    println!("seed {seed}");
    stage.history_agrees().await;
}

/// Both sides go back again and again, also onto branches that were left before, in the midst of healing.
#[tokio::test]
async fn any_mixture_of_accidents_heals() {
    let seeds: u64 = std::env::var("OUTBOX_RELAY_TEST_SEEDS").map_or(6, |n| n.parse().unwrap());
    for first in (0..seeds).step_by(3) {
        tokio::join!(a_mixture(first), a_mixture(first + 1), a_mixture(first + 2));
    }
}

#[tokio::test]
async fn healing_that_is_interrupted_at_any_step_is_taken_up_again() {
    if !has_failpoints() {
        return;
    }
    for failpoint in ["heal_step", "heal_committed", "heal_step:3", "heal_committed:3"] {
        let stage = small_stage().await;
        let shared = stage.shared().await;
        let new = Past::of(&stage.pair.new).await;
        stage.things(60, 7).await;
        some_batches(&stage, &shared, 4).await;
        let legacy = Past::of(&stage.pair.legacy).await;
        some_batches(&stage, &shared, 4).await;
        legacy.again(&stage.pair.legacy).await;
        let mut child = Child::start(&stage, Some(failpoint));
        assert!(child.ended(DEADLINE).await.is_some_and(|status| !status.success()), "{failpoint}: settling");
        new.again(&stage.pair.new).await;
        let mut child = Child::start(&stage, Some(failpoint));
        assert!(child.ended(DEADLINE).await.is_some_and(|status| !status.success()), "{failpoint}: putting back");
        assert!(stage.heal_by_hand(&shared).await.is_empty());
        assert_eq!(stage.count("processed").await, 60);
        stage.history_agrees().await;
    }
}

/// The same with real servers, replicas, and a relay that is at work all the while.
#[tokio::test]
async fn both_databases_fail_over_to_lagging_replicas_under_load() {
    let mut servers = own_servers().await;
    let stage = Stage::on(servers.pair().await, |config| config.relay.batch = 50).await;
    let running = stage.start().await;
    stage.things(500, 40).await;
    stage.drained().await;
    let replica_of_new = servers.new.snapshot().await.unwrap();
    let replica_of_legacy = servers.legacy.snapshot().await.unwrap();
    stage.things(500, 40).await;
    stage.drained().await;
    servers.legacy.go_back_to(&replica_of_legacy).await.unwrap();
    // The new primary hands the lost ids out again, to be applied at once.
    stage.things(300, 40).await;
    servers.new.go_back_to(&replica_of_new).await.unwrap();
    stage.things(200, 40).await;
    let deadline = Duration::from_secs(60);
    eventually(deadline, "all that survived is applied", || async {
        let stopped = running.shared.state().stopped_lanes;
        assert!(stopped.is_empty(), "{stopped:?}");
        stage.count("pending").await == 0
            && stage.pair.new.value::<i64>("SELECT count(*) FROM applied").await >= stage.count("processed").await
    })
    .await;
    running.stop().await;
    stage.history_agrees().await;
}
