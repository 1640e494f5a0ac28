//! Rounds: several lanes in one transaction on each side. What is plain shares it; where anything is the matter a lane drops out,
//! and is left to a batch of its own.

use std::sync::Arc;
use std::time::Duration;

use outbox_relay::event::Lane;
use outbox_relay::relay::Shared;
use outbox_relay::relay::round::{self, Round};
use outbox_relay::source::Names;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::stage::Stage;
use crate::support::{DEADLINE, eventually};

const LANES: u16 = 8;
/// The aggregate whose lane is in trouble.
const TROUBLE: &str = "a";

/// A round over all lanes.
async fn round(stage: &Stage, shared: &Shared) -> Round {
    let lanes: Vec<Lane> = (0..i32::from(stage.config.relay.lanes)).map(Lane).collect();
    let mut round = round::run_once(shared, &lanes).await.unwrap();
    round.settled.sort_by_key(|(lane, _)| *lane);
    round
}

async fn lane_of(stage: &Stage, kind: &str, aggregate: &str) -> Lane {
    let names = Names::new(&stage.config.legacy, stage.config.relay.lanes);
    let sql =
        format!("SELECT {{lane_of_key}} FROM (SELECT '{kind}' AS aggregate_type, '{aggregate}' AS aggregate_id) k");
    Lane(stage.pair.legacy.value(&names.render(&sql)).await)
}

/// The lanes that have pending events.
async fn lanes_with_work(stage: &Stage) -> Vec<Lane> {
    let names = Names::new(&stage.config.legacy, stage.config.relay.lanes);
    let sql = names.render("SELECT DISTINCT {lane} AS lane FROM {outbox} WHERE {status} = {pending} ORDER BY lane");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&stage.pair.legacy.pool).await.unwrap()
}

async fn several_lanes() -> (Stage, Arc<Shared>) {
    let stage = Stage::with(|config| config.relay.lanes = LANES).await;
    let shared = stage.shared().await;
    (stage, shared)
}

async fn session(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

fn settled(round: &Round) -> Vec<Lane> {
    round.settled.iter().map(|(lane, _)| *lane).collect()
}

#[tokio::test]
async fn a_round_applies_what_many_lanes_have_in_one_transaction_on_each_side() {
    let (stage, shared) = several_lanes().await;
    stage.things(60, 30).await;
    let lanes = lanes_with_work(&stage).await;
    let round = round(&stage, &shared).await;
    assert_eq!(settled(&round), lanes);
    assert_eq!(round.settled.iter().flat_map(|(_, counts)| counts.processed.values()).sum::<u64>(), 60);
    assert!(
        round.settled.iter().all(|(_, counts)| !counts.more && counts.lags.len() as u64 == counts.processed["Thing"])
    );
    assert_eq!(stage.count("processed").await, 60);
    stage.oracle_agrees().await;
    stage.history_agrees().await;
    // Each lane has an entry of its own in both logs, with its own events; one transaction wrote all of them.
    let entries = "SELECT string_agg(lane || ':' || token || ':' || nonce || ':' || ids::text, ' ' ORDER BY lane)
                   FROM outbox_relay.batch_log WHERE ids <> '{}'";
    let here: String = stage.pair.legacy.value(entries).await;
    assert_eq!(here, stage.pair.new.value::<String>(entries).await);
    assert_eq!(here.split(' ').count(), lanes.len());
    for database in [&stage.pair.legacy, &stage.pair.new] {
        let writers = "SELECT count(DISTINCT xmin::text) FROM outbox_relay.batch_log WHERE ids <> '{}'";
        assert_eq!(database.value::<i64>(writers).await, 1);
    }
    let astray: i64 = stage
        .pair
        .legacy
        .value(&Names::new(&stage.config.legacy, LANES).render(
            "SELECT count(*) FROM {relay}.batch_log l, unnest(l.ids) AS i (id) JOIN {outbox} o USING (id) WHERE {lane} <> l.lane",
        ))
        .await;
    assert_eq!(astray, 0);
    // Batches go on where it ended.
    stage.things(20, 20).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn a_lane_with_more_than_its_part_is_told_of_and_the_rest_stays_in_order() {
    let (stage, shared) = several_lanes().await;
    stage.things(400, 1).await;
    stage.thing("another", 1).await;
    let round = round(&stage, &shared).await;
    let counts = &round.settled.iter().find(|(_, counts)| counts.more).unwrap().1;
    assert_eq!(counts.processed["Thing"], 64);
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.count("processed").await, 401);
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn a_round_is_no_larger_than_a_batch() {
    let stage = Stage::with(|config| {
        config.relay.lanes = LANES;
        config.relay.batch = 16;
    })
    .await;
    let shared = stage.shared().await;
    stage.things(400, 40).await;
    round(&stage, &shared).await;
    assert_eq!(stage.count("processed").await, 16);
}

/// What may be the matter with a lane.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Matter {
    /// Somebody has locked an event.
    LockedEvent,
    /// An earlier event of the aggregate has failed.
    Failed,
    /// It waits for its next attempt.
    Retry,
    /// An event of a type that nobody has mapped.
    Unmapped,
    /// Put back by hand, below the lane's start.
    PutBack,
    /// Too large to be read with others.
    Large,
    /// Another worker has the lane, on the source,
    BusyHere,
    /// or still on the target.
    BusyThere,
    /// Applied, and not settled: the process died in between.
    HalfSettled,
    /// The target is another one than the log says.
    OtherPeer,
}

#[tokio::test]
async fn a_lane_where_something_is_the_matter_drops_out_of_a_round_and_nobody_else() {
    use Matter::*;
    for matter in [LockedEvent, Failed, Retry, Unmapped, PutBack, Large, BusyHere, BusyThere, HalfSettled, OtherPeer] {
        let (stage, shared) = several_lanes().await;
        let (legacy, new) = (&stage.pair.legacy, &stage.pair.new);
        let lane = lane_of(&stage, "Thing", TROUBLE).await;
        let before = stage.thing(TROUBLE, 1).await;
        if matches!(matter, PutBack | HalfSettled | OtherPeer) {
            assert_eq!(settled(&round(&stage, &shared).await), [lane]);
        }
        let mut somebody = session(if matter == BusyThere { &new.url } else { &legacy.url }).await;
        let trouble = match matter {
            LockedEvent => format!("BEGIN; SELECT FROM outbox WHERE id = {before} FOR UPDATE"),
            Failed => format!("UPDATE outbox SET status = 'failed' WHERE id = {before}"),
            Retry => format!("UPDATE outbox SET status = 'retry', next_attempt_at = now() + interval '1 hour' WHERE id = {before}"),
            Unmapped => format!("UPDATE outbox SET event_type = 'Odd' WHERE id = {before}"),
            PutBack => format!("INSERT INTO outbox_relay.put_back (lane, id) VALUES ({lane}, {before})"),
            Large => format!(
                "UPDATE outbox SET payload = payload || jsonb_build_object('note', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 2000) i))
                 WHERE id = {before}"
            ),
            BusyHere | BusyThere => format!("BEGIN; SELECT FROM outbox_relay.lane WHERE lane = {lane} FOR UPDATE"),
            HalfSettled => format!(
                "DELETE FROM outbox_relay.batch_log WHERE lane = {lane} AND ids <> '{{}}'; UPDATE outbox SET status = 'pending', processed_at = NULL WHERE id = {before}"
            ),
            OtherPeer => format!("UPDATE outbox_relay.batch_log SET peer = 'another/one' WHERE lane = {lane}"),
        };
        somebody.execute(AssertSqlSafe(trouble)).await.unwrap();
        stage.thing(TROUBLE, 2).await;
        stage.things_of("other ", 40, 40).await;
        let others: Vec<Lane> = lanes_with_work(&stage).await.into_iter().filter(|other| *other != lane).collect();
        let done = round(&stage, &shared).await;
        let (busy, late, alone) = match matter {
            BusyHere => (vec![lane], vec![], vec![]),
            LockedEvent => (vec![], vec![lane], vec![]),
            _ => (vec![], vec![], vec![lane]),
        };
        assert_eq!((&done.busy, &done.late, &done.alone), (&busy, &late, &alone), "{matter:?}");
        assert_eq!(settled(&done), others, "{matter:?}");
        // Nothing of the lane was touched.
        let applied: i64 = new.value(&format!("SELECT count(*) FROM applied WHERE aggregate = '{TROUBLE}'")).await;
        assert_eq!(applied, i64::from(matches!(matter, PutBack | HalfSettled | OtherPeer)), "{matter:?}");
        let attempts: i64 = legacy.value("SELECT coalesce(sum(attempts), 0) FROM outbox").await;
        assert_eq!(attempts, 0, "{matter:?}");
        somebody.close().await.unwrap();
        // And batches see to it.
        let stopped = stage.heal_by_hand(&shared).await;
        assert_eq!(stopped.is_empty(), matter != OtherPeer, "{matter:?}: {stopped:?}");
        stage.oracle_agrees().await;
        // With another peer the whole lane stays.
        let left = if matches!(matter, Failed | Retry | Unmapped) { 2 } else { 0 };
        let all: i64 = legacy.value("SELECT count(*) FROM outbox").await;
        if matter != OtherPeer {
            assert_eq!(stage.count("processed").await, all - left, "{matter:?}");
        }
    }
}

/// What follows a failed event of an aggregate often fails as it did: the others must neither be undone for it, nor have to be patient.
#[tokio::test]
async fn what_the_target_refuses_of_a_lane_that_drops_out_concerns_nobody_else() {
    let (stage, shared) = several_lanes().await;
    stage
        .pair
        .new
        .run(
            "CREATE TABLE patience (lock text);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO patience VALUES (current_setting('lock_timeout')); RETURN NULL; END $$;
             CREATE TRIGGER note AFTER INSERT ON applied FOR EACH STATEMENT EXECUTE FUNCTION note();",
        )
        .await;
    stage.things_of("first ", 10, 10).await;
    assert!(!settled(&round(&stage, &shared).await).is_empty());
    let lane = lane_of(&stage, "Thing", TROUBLE).await;
    let failed = stage.thing(TROUBLE, 1).await;
    stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'failed' WHERE id = {failed}")).await;
    stage.event("Thing", TROUBLE, "Happened", r#"{"version": "many"}"#).await;
    stage.things_of("other ", 40, 40).await;
    let others: Vec<Lane> = lanes_with_work(&stage).await.into_iter().filter(|other| *other != lane).collect();
    let done = round(&stage, &shared).await;
    assert_eq!((settled(&done), &done.alone), (others, &vec![lane]));
    let patience: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT lock FROM patience").fetch_all(&stage.pair.new.pool).await.unwrap();
    assert_eq!(patience.len(), 1, "it waits as long after an undo as before: {patience:?}");
}

#[tokio::test]
async fn what_is_refused_in_a_round_undoes_it_and_is_left_to_batches() {
    let (stage, shared) = several_lanes().await;
    stage.things(40, 40).await;
    let poison = stage.event("Thing", "poison", "Happened", r#"{"version": "many"}"#).await;
    let lanes = lanes_with_work(&stage).await;
    let done = round(&stage, &shared).await;
    let mut alone = done.alone.clone();
    alone.sort();
    assert_eq!((settled(&done), alone), (vec![], lanes));
    assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM applied").await, 0);
    assert_eq!(stage.count("pending").await, 41);
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.count("processed").await, 40);
    assert_ne!(stage.status(poison).await, "processed");
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn a_row_that_somebody_has_locked_on_the_target_holds_up_its_own_lane_alone() {
    let stage = Stage::with(|config| config.relay.lanes = LANES).await;
    stage.user(1, "UserCreated", "Ada", 1).await;
    let running = stage.start().await;
    stage.drained().await;
    let mut somebody = session(&stage.pair.new.url).await;
    somebody.execute("BEGIN; SELECT FROM users WHERE id = 1 FOR UPDATE").await.unwrap();
    let id = stage.user(1, "UserUpdated", "Ada", 2).await;
    stage.things_of("other ", 40, 40).await;
    let own = lane_of(&stage, "User", "1").await;
    let names = Names::new(&stage.config.legacy, LANES);
    let others =
        names.render(&format!("SELECT count(*) FROM {{outbox}} WHERE {{status}} = {{pending}} AND {{lane}} <> {own}"));
    let started = std::time::Instant::now();
    eventually(DEADLINE, "the other lanes are applied", || async {
        stage.pair.legacy.value::<i64>(&others).await == 0
    })
    .await;
    // The limit on a lock alone would be a third of the deadline.
    let limit = stage.config.relay.deadline / 3;
    assert!(started.elapsed() < limit, "{:?}", started.elapsed());
    assert_ne!(stage.status(id).await, "processed");
    somebody.execute("ROLLBACK").await.unwrap();
    stage.drained().await;
    running.stop().await;
    assert_eq!(stage.status(id).await, "processed");
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn what_is_written_first_is_applied_first_whichever_lanes_it_is_in() {
    let (stage, shared) = several_lanes().await;
    stage.things(40, 40).await;
    assert!(round(&stage, &shared).await.settled.len() > 4);
    let in_order = "SELECT bool_and(event > before) FROM (SELECT event, lag(event, 1, 0::bigint) OVER (ORDER BY n) AS before FROM applied) a";
    assert!(stage.pair.new.value::<bool>(in_order).await);
}

#[tokio::test]
async fn two_processes_make_rounds_in_the_same_lanes() {
    let stage = Stage::with(|config| config.relay.lanes = LANES).await;
    let (one, other) = (stage.start().await, stage.start().await);
    for _ in 0..40 {
        stage.things_of("other ", 40, 40).await;
        eventually(DEADLINE, "they are applied", || async { stage.count("pending").await == 0 }).await;
    }
    one.stop().await;
    other.stop().await;
    assert_eq!(stage.count("processed").await, 40 * 40);
    stage.oracle_agrees().await;
    stage.history_agrees().await;
}

#[tokio::test]
async fn what_is_paused_is_left_by_a_round() {
    let (stage, shared) = several_lanes().await;
    stage.things(20, 20).await;
    stage.user(1, "UserCreated", "Ada", 1).await;
    let pause = |kind: &str| format!("INSERT INTO outbox_relay.pause VALUES ('{kind}', 'because', 'somebody')");
    stage.pair.legacy.run(&pause("User")).await;
    round(&stage, &shared).await;
    assert_eq!((stage.count("processed").await, stage.count("pending").await), (20, 1));
    stage.things(20, 20).await;
    stage.pair.legacy.run(&pause("")).await;
    assert!(settled(&round(&stage, &shared).await).is_empty());
    assert_eq!(stage.count("pending").await, 21);
    stage.pair.legacy.run("DELETE FROM outbox_relay.pause").await;
    round(&stage, &shared).await;
    assert_eq!(stage.count("pending").await, 0);
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn a_start_position_that_a_round_leaves_does_not_pass_an_open_transaction() {
    let (stage, shared) = several_lanes().await;
    let mut slow = session(&stage.pair.legacy.url).await;
    slow.execute(
        "BEGIN; INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
         SELECT 'Thing', 'slow ' || i, 'Happened', '{\"version\": 1}' FROM generate_series(1, 30) i",
    )
    .await
    .unwrap();
    // Looks at the writers are half a second apart.
    for _ in 0..4 {
        stage.things(40, 40).await;
        round(&stage, &shared).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    slow.execute("COMMIT").await.unwrap();
    round(&stage, &shared).await;
    assert_eq!(stage.count("pending").await, 0);
    // And with nobody open it does move.
    stage.things(40, 40).await;
    round(&stage, &shared).await;
    let moved: i64 = stage.pair.legacy.value("SELECT count(*) FROM outbox_relay.batch_log WHERE position > 1").await;
    assert!(moved > 0);
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn a_relay_makes_rounds_while_events_trickle_and_ends_what_drops_out() {
    let stage = Stage::with(|config| config.relay.lanes = LANES).await;
    let running = stage.start().await;
    let trickle = async || {
        stage.things_of("other ", 40, 40).await;
        eventually(DEADLINE, "they are applied", || async { stage.count("pending").await == 0 }).await;
    };
    for _ in 0..30 {
        trickle().await;
    }
    let (entries, transactions): (i64, i64) =
        sqlx::query_as("SELECT count(*), count(DISTINCT xmin::text) FROM outbox_relay.batch_log WHERE ids <> '{}'")
            .fetch_one(&stage.pair.new.pool)
            .await
            .unwrap();
    assert!(transactions * 2 < entries, "{entries} entries in {transactions} transactions");
    let poison = stage.event("Thing", "7", "Happened", r#"{"version": "many"}"#).await;
    for _ in 0..30 {
        trickle().await;
    }
    running.stop().await;
    assert_ne!(stage.status(poison).await, "processed");
    assert_eq!(stage.count("processed").await, 60 * 40);
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn who_lingers_looks_for_new_events_only_so_long_after_it_brought_some() {
    const LINGER: Duration = Duration::from_millis(500);
    const TURNS: usize = 4;
    let stage = Stage::with(|config| (config.relay.lanes, config.relay.linger) = (LANES, LINGER)).await;
    let running = stage.start().await;
    let counted = || {
        let text = running.shared.metrics.encode();
        let lines = text.lines().filter(|line| line.contains("disposition=\"processed\""));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
    };
    let mut written = 0;
    // One in its lane alone, which gets a batch; then many, which share a round.
    for events in [1, 40] {
        let mut lingered = Vec::new();
        for turn in 0..TURNS {
            for part in ["first", "second"] {
                stage.things_of(&format!("{part}-{events}-{turn}-"), events, events).await;
                written += u64::from(events);
                eventually(DEADLINE, "the relay has counted them", || async { counted() == written }).await;
            }
            let sql = format!(
                "SELECT extract(epoch FROM (SELECT min(processed_at) FROM outbox WHERE aggregate_id LIKE 'second-{events}-{turn}-%')
                     - (SELECT min(created_at) FROM outbox WHERE aggregate_id LIKE 'first-{events}-{turn}-%'))::float8"
            );
            // The look that found the first came after they were written, and the next one so long after it.
            lingered.push(stage.pair.legacy.value::<f64>(&sql).await >= LINGER.as_secs_f64());
        }
        // A look that was on its way already may have found the second ones, at times.
        assert!(lingered.iter().filter(|it| **it).count() * 2 >= TURNS, "{events}: {lingered:?}");
    }
    running.stop().await;
}
