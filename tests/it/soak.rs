//! Everything at once, at random: writers, relays that come and go, killed sessions, operators, a DBA. Prints its seed; another
//! one, and a longer time, by `OUTBOX_RELAY_SOAK_SEED` and `OUTBOX_RELAY_SOAK_SECONDS`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outbox_relay::event::EventId;
use outbox_relay::operator::What;
use outbox_relay::operator::{Bulk, By, EventRef, Filter, Operator, Verb};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::support::child::Child;
use crate::support::eventually;
use crate::support::stage::{Running, Stage};

/// Small and repeatable.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    async fn rest(&mut self, millis: u64) {
        tokio::time::sleep(Duration::from_millis(self.below(millis))).await;
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

const AGGREGATES: u64 = 60;

/// Some aggregates, a few events each; late commits, rollbacks, gaps, now and then an event that is refused.
async fn write(stage: &Stage, mut dice: Dice, over: &AtomicBool) {
    let mut connection = PgConnection::connect(&stage.pair.legacy.url).await.unwrap();
    while !over.load(Ordering::SeqCst) {
        let first = dice.below(AGGREGATES - 3);
        let end = if dice.below(8) == 0 { "ROLLBACK" } else { "COMMIT" };
        let late = if dice.below(25) == 0 { dice.below(1200) } else { dice.below(10) };
        let version = if dice.below(150) == 0 { "'\"x\"'::jsonb" } else { "to_jsonb(version + i)" };
        let sql = format!(
            "BEGIN; SELECT FROM things WHERE id BETWEEN {first} AND {first} + 2 ORDER BY id FOR UPDATE;
             UPDATE things SET version = version + 2 WHERE id BETWEEN {first} AND {first} + 2;
             WITH e AS (
                 INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
                 SELECT 'Thing', id::text, 'Happened', jsonb_build_object('version', {version})
                 FROM things, generate_series(-1, 0) i WHERE id BETWEEN {first} AND {first} + 2 ORDER BY i
                 RETURNING id)
             INSERT INTO written SELECT id FROM e;
             SELECT pg_sleep({late} / 1000.0); {end}"
        );
        connection.execute(AssertSqlSafe(sql)).await.unwrap();
        dice.rest(20).await;
    }
}

/// Relays in processes of their own, killed; one in this process, stopped and started, whose retention is short.
async fn relays(stage: &Stage, mut dice: Dice, over: &AtomicBool) {
    let mut children = [Child::start(stage, None), Child::start(stage, None)];
    let mut own: Option<Running> = None;
    while !over.load(Ordering::SeqCst) {
        match dice.below(3) {
            0 => match own.take() {
                Some(running) => running.stop().await,
                None => own = Some(stage.start().await),
            },
            n => children[n as usize - 1] = Child::start(stage, None),
        }
        dice.rest(1500).await;
    }
    if let Some(running) = own {
        running.stop().await;
    }
}

async fn accidents(stage: &Stage, mut dice: Dice, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        let side = if dice.below(2) == 0 { &stage.pair.legacy } else { &stage.pair.new };
        match dice.below(4) {
            0 | 1 => {
                let sql = "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
                           WHERE datname = current_database() AND application_name = 'outbox-relay' ORDER BY random() LIMIT 2) s";
                let _: i64 = side.value(sql).await;
            }
            2 => {
                let mut dba = PgConnection::connect(&stage.pair.legacy.url).await.unwrap();
                let sql = "BEGIN; SELECT FROM outbox WHERE status <> 'processed' ORDER BY random() LIMIT 5 FOR UPDATE SKIP LOCKED";
                dba.execute(sql).await.unwrap();
                dice.rest(800).await;
            }
            _ => {
                // Tables that are not there for a moment: the operator's error, and its probes.
                stage.pair.new.run("ALTER TABLE applied RENAME TO elsewhere").await;
                dice.rest(600).await;
                stage.pair.new.run("ALTER TABLE elsewhere RENAME TO applied").await;
            }
        }
        dice.rest(700).await;
    }
}

async fn operators(stage: &Stage, mut dice: Dice, over: &AtomicBool) {
    let operator = Operator::new(&stage.config).unwrap();
    let by = By::new("soak", "at random").unwrap();
    while !over.load(Ordering::SeqCst) {
        // Sessions are ended under them too: what fails is tried again some time.
        match dice.below(4) {
            0 => {
                let what = if dice.below(2) == 0 { What::All } else { What::AggregateType("Thing".into()) };
                let _ = operator.pause(&what, &by, Some(Duration::from_secs(1))).await;
                dice.rest(500).await;
                let _ = operator.resume(&what, &by).await;
            }
            1 => {
                let sql = "SELECT coalesce(min(id), 0) FROM outbox WHERE status IN ('failed', 'retry')";
                let id = stage.pair.legacy.value(sql).await;
                let _ = operator.skip(&EventRef::Id(EventId(id)), &by).await;
            }
            n => {
                let verb = if n == 2 { Verb::Replay } else { Verb::Skip };
                let filter = Filter { aggregate_type: Some("Thing".into()), ..Filter::default() };
                let bulk = Bulk { filter, ..Bulk::default() };
                let _ = operator.bulk(verb, &bulk, &by, &CancellationToken::new()).await;
            }
        }
        dice.rest(1500).await;
    }
    while operator.resume(&What::All, &by).await.is_err() {}
    while operator.resume(&What::AggregateType("Thing".into()), &by).await.is_err() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_nothing_is_lost_doubled_or_out_of_order() {
    let seed = number("OUTBOX_RELAY_SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let seconds = number("OUTBOX_RELAY_SOAK_SECONDS").unwrap_or(15);
    println!("OUTBOX_RELAY_SOAK_SEED={seed} OUTBOX_RELAY_SOAK_SECONDS={seconds}");
    let mut dice = Dice(seed);
    let shape = dice.below(4) as usize;
    let stage = Stage::with(|config| {
        config.relay.lanes = [1, 4, 16, 200][shape];
        config.relay.batch = [1, 7, 50, 1000][dice.below(4) as usize];
        config.relay.workers = [1, 2, 4, 8][dice.below(4) as usize];
        config.relay.deadline = Duration::from_secs(4);
        config.relay.replica_lag = Duration::from_secs(1);
        config.retention.processed = Duration::from_secs(2);
    })
    .await;
    let c = &stage.config.relay;
    println!("{} lanes, batches of {}, {} workers", c.lanes, c.batch, c.workers);
    let legacy = &stage.pair.legacy;
    legacy
        .run(&format!(
            "CREATE TABLE things AS SELECT i AS id, 0 AS version FROM generate_series(0, {AGGREGATES}) i;
             ALTER TABLE things ADD PRIMARY KEY (id); CREATE TABLE written (id bigint)"
        ))
        .await;
    let over = AtomicBool::new(false);
    let mut next = || Dice(seed.wrapping_mul(31).wrapping_add(dice.below(1 << 30)));
    let dices = [next(), next(), next(), next(), next(), next()];
    let [a, b, c, d, e, f] = dices;
    let started = Instant::now();
    tokio::join!(
        write(&stage, a, &over),
        write(&stage, b, &over),
        write(&stage, c, &over),
        relays(&stage, d, &over),
        accidents(&stage, e, &over),
        operators(&stage, f, &over),
        async {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            over.store(true, Ordering::SeqCst);
        }
    );
    // What failed is passed over, so that those behind it go on.
    let running = stage.start().await;
    let operator = Operator::new(&stage.config).unwrap();
    let by = By::new("soak", "the end").unwrap();
    let open = "SELECT count(*) FROM outbox WHERE status NOT IN ('processed', 'skipped')";
    eventually(Duration::from_secs(90 + 4 * seconds), "the outbox drains", || async {
        let filter = Filter { status: Some(outbox_relay::event::Status::Failed), ..Filter::default() };
        let bulk = Bulk { filter, ..Bulk::default() };
        operator.bulk(Verb::Skip, &bulk, &by, &CancellationToken::new()).await.unwrap();
        legacy.value::<i64>(open).await == 0
    })
    .await;
    running.stop().await;
    let shared = stage.shared().await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());

    let applied: Vec<(i64, String)> = sqlx::query_as("SELECT event, aggregate FROM applied ORDER BY n")
        .fetch_all(&stage.pair.new.pool)
        .await
        .unwrap();
    let expected: Vec<i64> = sqlx::query_scalar(
        "SELECT id FROM written WHERE id NOT IN (SELECT id FROM outbox WHERE status = 'skipped') ORDER BY id",
    )
    .fetch_all(&legacy.pool)
    .await
    .unwrap();
    let mut once: Vec<i64> = applied.iter().map(|(event, _)| *event).collect();
    once.sort_unstable();
    let skipped = stage.count("skipped").await;
    println!("{} applied, {skipped} skipped, in {:?}", once.len(), started.elapsed());
    let doubled: Vec<&[i64]> = once.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(doubled.is_empty(), "seed {seed}: applied twice: {doubled:?}");
    let lost: Vec<&i64> = expected.iter().filter(|id| once.binary_search(id).is_err()).collect();
    assert!(lost.is_empty(), "seed {seed}: lost: {lost:?}");
    assert_eq!(once, expected, "seed {seed}: applied although skipped");
    let mut last = std::collections::HashMap::new();
    for (event, aggregate) in &applied {
        let before = last.insert(aggregate, *event);
        assert!(before.is_none_or(|before| before < *event), "seed {seed}: {aggregate}: {before:?}, then {event}");
    }
}
