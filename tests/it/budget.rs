//! What a batch may cost, without a clock: statements, round trips, pages touched and log written, whatever lies around. A plan
//! that turns bad, or a statement more, fails here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outbox_relay::config::DatabaseUrl;
use outbox_relay::demo::server::{Options, Server};
use outbox_relay::event::Lane;
use outbox_relay::relay::Shared;
use outbox_relay::relay::batch::{self, Errand, Outcome};
use outbox_relay::relay::round;
use sqlx::{Connection, Executor, PgConnection, Row};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::copying::{self, Copier, agree};
use crate::support::stage::Stage;
use crate::support::{Database, Servers, pair};

/// Runs so many batches of one lane.
async fn batches(shared: &Shared, lane: i32, batches: u32) -> u64 {
    let mut processed = 0;
    for _ in 0..batches {
        match batch::run_once(shared, Lane(lane), Errand::default()).await.expect("a batch") {
            (Outcome::Settled(counts), _) => processed += counts.processed.values().sum::<u64>(),
            (other, _) => panic!("{other:?}"),
        }
    }
    processed
}

/// Servers that count what their statements do.
async fn counting_servers() -> Servers {
    let options = |name: &str| {
        Options::for_tests(name)
            .with("shared_preload_libraries", "'pg_stat_statements'")
            .with("pg_stat_statements.track_utility", "off")
            // What is touched must not depend on what a worker in the background has just tidied up.
            .with("autovacuum", "off")
    };
    let (legacy, new) = tokio::try_join!(Server::start(options("test-legacy")), Server::start(options("test-new")))
        .expect("two servers");
    Servers { legacy, new }
}

/// What statements whose text has this in it did since the last reset.
#[derive(Debug)]
struct Did {
    calls: i64,
    buffers: i64,
    wal_records: i64,
    wal_bytes: i64,
}

impl Database {
    async fn count_from_now(&self) {
        self.run("SELECT pg_stat_statements_reset()").await;
    }

    async fn did(&self, text: &str) -> Did {
        let row = sqlx::query(
            "SELECT coalesce(sum(calls), 0)::bigint, coalesce(sum(shared_blks_hit + shared_blks_read), 0)::bigint,
                    coalesce(sum(wal_records), 0)::bigint, coalesce(sum(wal_bytes), 0)::bigint
             FROM pg_stat_statements
             WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND position($1 IN query) > 0 AND query NOT LIKE '%pg_stat_statements%'",
        )
        .bind(text)
        .fetch_one(&self.pool)
        .await
        .expect("what statements did");
        Did { calls: row.get(0), buffers: row.get(1), wal_records: row.get(2), wal_bytes: row.get(3) }
    }
}

/// How many events lie around, of each kind: OUTBOX_RELAY_BUDGET_EVENTS, for a run by hand at full size.
fn around() -> i64 {
    std::env::var("OUTBOX_RELAY_BUDGET_EVENTS").map_or(100_000, |events| events.parse().expect("a number of events"))
}

/// So many events of twenty thousand aggregates.
fn mapped(events: i64) -> String {
    format!(
        "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
    SELECT 'User', (1 + i % 20000)::text, 'UserUpdated',
           jsonb_build_object('id', 1 + i % 20000, 'name', 'Ada', 'version', i, 'note', repeat('x', 250))
    FROM generate_series(1, {events}) i"
    )
}

#[tokio::test]
async fn a_batch_touches_and_writes_little_however_much_is_pending_processed_or_dead() {
    let servers = counting_servers().await;
    let stage = Stage::on(servers.pair().await, |config| {
        config.relay.lanes = 4;
        config.relay.batch = 1000;
    })
    .await;
    let (legacy, new) = (&stage.pair.legacy, &stage.pair.new);
    for database in [legacy, new] {
        database.run("CREATE EXTENSION pg_stat_statements").await;
    }
    let shared = stage.shared().await;
    // Many processed ones, whose dead versions stay because somebody's transaction needs them; then as many pending ones.
    let mut long = PgConnection::connect(&legacy.url).await.expect("a connection");
    long.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()").await.expect("a long one");
    legacy.run(&mapped(around())).await;
    stage.drain_by_hand(&shared).await;
    assert_eq!(stage.count("processed").await, around());
    legacy.run(&mapped(around())).await;
    for database in [legacy, new] {
        database.run("ANALYZE").await;
    }
    // The start of the scan moves past what is dead: half a second after a batch has looked at the writers.
    for turn in 0.. {
        batches(&shared, 0, 1).await;
        if legacy.value::<i64>("SELECT max(position) FROM outbox_relay.batch_log WHERE lane = 0").await > around() {
            break;
        }
        assert!(turn < 12, "the start of the scan does not move");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    for database in [legacy, new] {
        database.count_from_now().await;
    }
    let events = i64::try_from(batches(&shared, 0, 10).await).expect("not that many");
    assert_eq!(events, 10_000);

    // What, on which side, pages an event, records of the log an event, their bytes an event.
    for (name, database, text, pages, records, bytes) in [
        ("claim", legacy, "-- The oldest pending events", 3.0, 1.2, 70.0),
        ("look again", legacy, "-- Read after the claim", 1.5, 0.1, 10.0),
        ("settle", legacy, "-- $1 ids, $2 and $3 the times", 14.0, 3.5, 800.0),
        ("append", legacy, "-- $1 lane, $2 token", 0.1, 0.05, 20.0),
        ("apply", new, "WITH batch AS", 12.0, 4.5, 350.0),
        ("append there", new, "-- $1 source, $2 lane, $3 token", 0.2, 0.1, 80.0),
    ] {
        let did = database.did(text).await;
        println!("{name}: {did:?}");
        assert_eq!(did.calls, 10, "{name}: {did:?}");
        for (what, found, bound) in
            [("pages", did.buffers, pages), ("records", did.wal_records, records), ("bytes", did.wal_bytes, bytes)]
        {
            let each = found as f64 / events as f64;
            assert!(each <= bound, "{name}: {each} {what} an event, at most {bound} are stated: {did:?}");
        }
    }
    // Lock, read, claim, look again, settle, append, and the empty one before a commit; on the target lock, read, apply, append,
    // and the empty one. Twice a second two more look at who still writes.
    let writers = legacy.did("FROM pg_locks").await.calls + legacy.did("last_value").await.calls;
    let (here, there) = (legacy.did("").await, new.did("").await);
    assert_eq!(here.calls - writers, 10 * 7, "{here:?}");
    assert_eq!(there.calls, 10 * 5, "{there:?}");
    long.execute("ROLLBACK").await.expect("its end");
}

/// What a batch's events cost the relay itself. In one thread, in which they are counted.
#[test]
fn an_event_asks_for_memory_a_stated_number_of_times() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (stage, shared) = runtime.block_on(async {
        let stage = Stage::with(|config| config.relay.lanes = 1).await;
        stage.pair.legacy.run(&mapped(10_000)).await;
        let shared = stage.shared().await;
        // It connects and prepares.
        batches(&shared, 0, 1).await;
        (stage, shared)
    });
    let mut events = 0;
    let asked = allocation_counter::measure(|| events = runtime.block_on(batches(&shared, 0, 4)));
    println!("{events} events: {asked:?}");
    let (times, bytes) = (asked.count_total / events, asked.bytes_total / events);
    assert!(times <= 9, "{times} times an event: {asked:?}");
    assert!(bytes <= 5_000, "{bytes} bytes an event: {asked:?}");
    // At once no more than a batch or two, whatever is pending.
    assert!(asked.bytes_max <= 8 << 20, "{asked:?}");
    drop(stage);
}

#[tokio::test]
async fn a_copy_costs_a_few_statements_a_chunk_and_a_few_pages_a_row() {
    let servers = counting_servers().await;
    // Nobody hurries it: chunks become as large as the page allows, on however slow a machine.
    let stage = copying::stage(servers.pair().await, 40_000, |config| {
        config.relay.lanes = 4;
        config.backfill.lock_time = std::time::Duration::from_secs(10);
    })
    .await;
    let (legacy, new) = (&stage.pair.legacy, &stage.pair.new);
    // What watches the new table would be counted with it.
    new.run("DROP TRIGGER watch ON users").await;
    for database in [legacy, new] {
        database.run("CREATE EXTENSION pg_stat_statements; ANALYZE").await;
        database.count_from_now().await;
    }
    let summary = copying::copy(&stage).await;
    assert_eq!(summary.copies[0].rows, 40_000, "{summary:?}");
    agree(&stage).await;
    for (name, database, text, calls, pages, records, bytes) in [
        ("keys", legacy, "-- The next keys", 30, 0.1, 0.01, 5.0),
        ("rows", legacy, "-- The rows that have these keys", 60, 4.5, 0.1, 10.0),
        ("open events", legacy, "-- Which of these aggregates", 60, 2.5, 0.01, 5.0),
        ("write", new, "WITH batch AS", 60, 7.0, 3.3, 250.0),
    ] {
        let did = database.did(text).await;
        println!("{name}: {did:?}");
        assert!((1..=calls).contains(&did.calls), "{name}: {did:?}, at most {calls} are stated");
        for (what, found, bound) in
            [("pages", did.buffers, pages), ("records", did.wal_records, records), ("bytes", did.wal_bytes, bytes)]
        {
            let each = found as f64 / 40_000.0;
            assert!(each <= bound, "{name}: {each} {what} a row, at most {bound} are stated: {did:?}");
        }
    }
    let all = (legacy.did("").await.calls, new.did("").await.calls);
    println!("all: {all:?}");
    assert!(all.0 <= 600 && all.1 <= 600, "{all:?} statements for 40,000 rows");
}

#[tokio::test]
async fn the_memory_of_a_copy_does_not_grow_with_the_table() {
    let mut peaks = Vec::new();
    for rows in [6_000, 60_000] {
        let stage = copying::stage(pair().await, rows, |_| {}).await;
        stage.pair.new.run("DROP TRIGGER watch ON users").await;
        // Each row reads as two kilobytes: the whole table as 120 megabytes.
        stage.pair.legacy.run("UPDATE users SET noise = repeat('x', 1900)").await;
        peaks.extend(Copier::start(&stage, None).peak().await);
        agree(&stage).await;
    }
    println!("peaks: {peaks:?}");
    if let [small, large] = peaks[..] {
        assert!(large < small + (64 << 20), "{small} bytes for 6,000 rows, {large} for 60,000");
    }
}

/// Counts how often a client waits for an answer, `delay` longer than the server lets it.
async fn counting_wire(port: u16, delay: Duration) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let own = listener.local_addr().expect("a port").port();
    let asked = Arc::new(AtomicU64::new(0));
    let counted = asked.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.expect("the server");
            tokio::spawn(count_questions(client, server, counted.clone(), delay));
        }
    });
    (own, asked)
}

/// Each turn from the server's speaking to the client's is a round trip, however many messages the client sends.
async fn count_questions(client: TcpStream, server: TcpStream, asked: Arc<AtomicU64>, delay: Duration) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (mut said, mut answer) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut clients_turn = true;
    loop {
        tokio::select! {
            n = from_client.read(&mut said) => {
                let Ok(n @ 1..) = n else { return };
                if clients_turn {
                    asked.fetch_add(1, Ordering::SeqCst);
                    clients_turn = false;
                    tokio::time::sleep(delay).await;
                }
                if to_server.write_all(&said[..n]).await.is_err() {
                    return;
                }
            }
            n = from_server.read(&mut answer) => {
                let Ok(n @ 1..) = n else { return };
                clients_turn = true;
                if to_client.write_all(&answer[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A stage whose statements are counted, and delayed, on the way: to the source, to the target.
async fn counted(lanes: u16, delay: Duration) -> (Stage, Arc<AtomicU64>, Arc<AtomicU64>) {
    let mut stage = Stage::with(|config| config.relay.lanes = lanes).await;
    let port =
        |url: &str| url.rsplit_once(':').and_then(|(_, end)| end.split('/').next()?.parse().ok()).expect("a port");
    let (legacy, new) = (port(&stage.pair.legacy.url), port(&stage.pair.new.url));
    let ((here, asked_here), (there, asked_there)) =
        (counting_wire(legacy, delay).await, counting_wire(new, delay).await);
    let over = |url: &str, from: u16, to: u16| {
        DatabaseUrl::parse(&url.replace(&format!(":{from}/"), &format!(":{to}/"))).expect("a url")
    };
    stage.config.legacy.url = over(&stage.pair.legacy.url, legacy, here);
    stage.config.new.url = over(&stage.pair.new.url, new, there);
    (stage, asked_here, asked_there)
}

#[tokio::test]
async fn a_round_costs_a_round_trip_more_than_one_batch_however_many_lanes_share_it() {
    let (stage, asked_here, asked_there) = counted(16, Duration::ZERO).await;
    let shared = stage.shared().await;
    let lanes: Vec<Lane> = (0..16).map(Lane).collect();
    let mut most = (0, 0);
    let mut settled = 0;
    for round in 0..10 {
        stage.things(80, 80).await;
        // The first ones connect and prepare, also what looks at the writers, ten times a second.
        if round <= 2 {
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        let before = (asked_here.load(Ordering::SeqCst), asked_there.load(Ordering::SeqCst));
        settled += round::run_once(&shared, &lanes).await.expect("a round").settled.len();
        if round > 2 {
            let here = asked_here.load(Ordering::SeqCst) - before.0;
            let there = asked_there.load(Ordering::SeqCst) - before.1;
            most = (here.max(most.0), there.max(most.1));
        }
    }
    println!("a round: {} round trips to the source, {} to the target", most.0, most.1);
    assert_eq!(settled, 160, "all lanes, each time");
    // As a batch, and one to read what a batch reads with its lock.
    assert!(most.0 <= 7 + 1 + 2, "{} on the source", most.0);
    assert!(most.1 <= 5 + 1, "{} on the target", most.1);
}

/// What bounds a round is what it waits for, so the two servers work side by side: of fourteen round trips it waits for nine.
#[tokio::test]
async fn a_round_does_not_let_one_server_wait_while_the_other_works() {
    let trip = Duration::from_millis(100);
    let (stage, _, _) = counted(16, trip).await;
    let shared = stage.shared().await;
    let lanes: Vec<Lane> = (0..16).map(Lane).collect();
    let mut quickest = Duration::MAX;
    for round in 0..4 {
        stage.things(80, 80).await;
        let started = Instant::now();
        let settled = round::run_once(&shared, &lanes).await.expect("a round").settled.len();
        assert_eq!(settled, 16, "all lanes");
        // The first one connects and prepares.
        if round > 0 {
            quickest = quickest.min(started.elapsed());
        }
    }
    println!("{quickest:?} with {trip:?} a round trip");
    // Lock; read and look at the writers and claim, or lock and read; look again, or apply; append and commit, or settle and append; commit.
    assert!(quickest < trip * 12, "{quickest:?}");
}

#[tokio::test]
async fn a_batch_costs_ten_round_trips() {
    let (mut stage, asked_here, asked_there) = counted(1, Duration::ZERO).await;
    stage.things(20, 20).await;
    stage.config.relay.batch = 1;
    let shared = stage.shared().await;
    // The first ones connect and prepare.
    batches(&shared, 0, 3).await;
    let before = (asked_here.load(Ordering::SeqCst), asked_there.load(Ordering::SeqCst));
    batches(&shared, 0, 10).await;
    let here = asked_here.load(Ordering::SeqCst) - before.0;
    let there = asked_there.load(Ordering::SeqCst) - before.1;
    // Begin and lock, claim, look again, settle, append, commit; begin and lock, apply, append, commit. On each side one more that
    // no batch waits for: the pool asks a connection that comes back whether it is well. Twice a second two, to look at who
    // still writes.
    println!("ten batches: {here} round trips to the source, {there} to the target");
    assert!(here <= 10 * 7 + 20, "{here} on the source");
    assert!(there <= 10 * 5, "{there} on the target");
}
