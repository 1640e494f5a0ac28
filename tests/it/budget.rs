//! What a batch may cost, without a clock: statements, round trips, pages touched and log written, whatever lies around. A plan
//! that turns bad, or a statement more, fails here.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outbox_relay::config::{Action, DatabaseUrl, Entity, TableName};
use outbox_relay::demo::server::{Options, Server};
use outbox_relay::event::Lane;
use outbox_relay::relay::Shared;
use outbox_relay::relay::batch::{self, Errand, Outcome};
use outbox_relay::relay::round;
use sqlx::{Connection, Executor, PgConnection, Row};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::support::copying::{self, Copier, agree};
use crate::support::stage::{Stage, file};
use crate::support::{DEADLINE, Database, Servers, eventually, pair};

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
            // A crowd is made sooner.
            .with("shared_buffers", "'512MB'")
            .with("max_wal_size", "'8GB'")
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

/// Holds a statement to what is stated of it: how often it is made, and for each event, row or round how many pages it touches at most,
/// how many records of the log it writes, and their bytes.
async fn hold(
    name: &str,
    (database, text): (&Database, &str),
    calls: RangeInclusive<i64>,
    (number, each): (i64, &str),
    [pages, records, bytes]: [f64; 3],
) {
    let did = database.did(text).await;
    println!("{name}: {did:?}");
    assert!(calls.contains(&did.calls), "{name}: {did:?}, {calls:?} calls are stated");
    for (what, found, bound) in
        [("pages", did.buffers, pages), ("records", did.wal_records, records), ("bytes", did.wal_bytes, bytes)]
    {
        let found = found as f64 / number as f64;
        assert!(found <= bound, "{name}: {found} {what} {each}, at most {bound} are stated: {did:?}");
    }
}

/// How many events lie around, of each kind: OUTBOX_RELAY_BUDGET_EVENTS says another number.
fn around() -> i64 {
    std::env::var("OUTBOX_RELAY_BUDGET_EVENTS").map_or(200_000, |events| events.parse().expect("a number of events"))
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

/// So many processed events, whose dead versions stay because somebody's transaction needs them, and behind them as many pending ones. By two
/// hands, and what nobody will claim has next to nothing in it, for it takes a while.
async fn crowd(legacy: &Database, events: i64) {
    const CLAIMED: i64 = 40_000;
    let half = events / 2;
    let small = |events: i64| {
        format!(
            "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, event_type, payload)
             SELECT '{}', 'User', (1 + i % 20000)::text, 'UserUpdated', '{{}}' FROM generate_series(1, {events}) i",
            Uuid::nil()
        )
    };
    let processed = |which| {
        format!("UPDATE outbox SET status = 'processed', processed_at = clock_timestamp() WHERE id {which} {half}")
    };
    for [one, other] in [
        [small(half), small(half)],
        [processed("<="), processed(">")],
        [mapped(CLAIMED), mapped(CLAIMED)],
        [small(half - CLAIMED), small(half - CLAIMED)],
    ] {
        tokio::join!(legacy.run(&one), legacy.run(&other));
    }
}

/// A million of each (`OUTBOX_RELAY_BUDGET_EVENTS=1000000`) take 27 s of the legacy server's processor time to make, by two hands half as long, so by default it is a
/// fifth of that; what a change must pass has all of it. What is stated is three tenths more than was found with a million (Postgres 15), nearly the same at each run.
#[tokio::test]
async fn a_batch_and_a_round_touch_and_write_little_however_much_is_pending_processed_or_dead() {
    let servers = counting_servers().await;
    let mut stage = Stage::on(servers.pair().await, |config| {
        config.relay.lanes = 16;
        config.relay.batch = 1000;
    })
    .await;
    let (legacy, new) = (&stage.pair.legacy, &stage.pair.new);
    let mut long = PgConnection::connect(&legacy.url).await.expect("a connection");
    long.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()").await.expect("a long one");
    let started = Instant::now();
    crowd(legacy, around()).await;
    println!("the crowd is there after {:?}", started.elapsed());
    new.run("INSERT INTO users SELECT i, 'Ada', 0 FROM generate_series(1, 20000) i").await;
    for database in [legacy, new] {
        database.run("CREATE EXTENSION pg_stat_statements; ANALYZE").await;
    }
    let by_batches = stage.shared().await;
    // Of twelve lanes two events each.
    stage.config.relay.batch = 24;
    let by_rounds = stage.shared().await;
    // The start of the scan moves past what is dead, for each lane by itself: with the second look at the writers.
    let all: Vec<Lane> = (0..16).map(Lane).collect();
    eventually(DEADLINE * 4, "the start of the scan moves past what is dead", || async {
        round::run_once(&by_rounds, &all).await.expect("a round");
        let lanes = "SELECT count(DISTINCT lane) FROM outbox_relay.batch_log WHERE position > ";
        legacy.value::<i64>(&format!("{lanes} {}", around())).await == 16
    })
    .await;
    println!("and passed after {:?}", started.elapsed());
    batches_cost_little(&stage, &by_batches).await;
    rounds_cost_little(&stage, &by_rounds).await;
    long.execute("ROLLBACK").await.expect("its end");
}

/// Ten batches of a thousand events.
async fn batches_cost_little(stage: &Stage, shared: &Shared) {
    let (legacy, new) = (&stage.pair.legacy, &stage.pair.new);
    // It connects and prepares.
    batches(shared, 15, 1).await;
    for database in [legacy, new] {
        database.count_from_now().await;
    }
    let mut events = 0;
    for batch in 0..10 {
        events += i64::try_from(batches(shared, 12 + batch % 4, 1).await).expect("not that many");
    }
    assert_eq!(events, 10_000);
    for (name, statement, stated) in [
        // A page of the index holds many, a row is found and then locked; nothing that is dead is walked over.
        ("claim", (legacy, "-- The oldest pending events"), [2.2, 1.3, 70.0]),
        // Two hands wrote them side by side, so an event may be on another page than the one before, or not.
        ("look again", (legacy, "-- Read after the claim"), [1.2, 0.01, 1.0]),
        // Found by its id; a new version on another page, and its entry in the primary key: three pages each.
        ("settle", (legacy, "-- $1 ids, $2 and $3 the times"), [15.0, 3.9, 860.0]),
        ("append", (legacy, "-- $1 lane, $2 token"), [0.03, 0.02, 12.0]),
        // A row that is there changes, within its page if it can: which rows these are, the hash of lanes says.
        ("apply", (new, "WITH batch AS"), [5.5, 2.4, 160.0]),
        ("append there", (new, "-- $1 source, $2 lane, $3 token"), [0.11, 0.07, 62.0]),
    ] {
        hold(name, statement, 10..=10, (events, "an event"), stated).await;
    }
    // Lock, read, claim, look again, settle, append, and the empty one before a commit; on the target lock, read, apply, append,
    // and the empty one.
    makes_statements(stage, 10 * 7, 10 * 5).await;
}

/// Ten rounds of twelve lanes with two events each.
async fn rounds_cost_little(stage: &Stage, shared: &Shared) {
    let (legacy, new) = (&stage.pair.legacy, &stage.pair.new);
    let lanes: Vec<Lane> = (0..12).map(Lane).collect();
    // It connects and prepares.
    round::run_once(shared, &lanes).await.expect("a round");
    for database in [legacy, new] {
        database.count_from_now().await;
    }
    for _ in 0..10 {
        let settled = round::run_once(shared, &lanes).await.expect("a round").settled;
        let events: u64 = settled.iter().flat_map(|(_, counts)| counts.processed.values()).sum();
        assert_eq!((settled.len(), events), (12, 24), "{settled:?}");
    }
    for (name, statement, stated) in [
        // A lane's row is found and locked.
        ("lock", (legacy, "-- The leases of several lanes"), [33.0, 16.0, 850.0]),
        ("lock there", (new, "-- The same for several lanes"), [17.0, 16.0, 850.0]),
        // Of each lane the newest entry, by two pages of an index and one of the log; here also a token, and whether something was put back.
        ("read", (legacy, "-- What a worker must know of each of several lanes"), [80.0, 0.6, 60.0]),
        ("read there", (new, "-- In a later statement than the locks"), [49.0, 0.1, 10.0]),
        // Of each lane three pages of the index; each row is found, read and locked. And what was settled since the last look at the writers is walked
        // over: 95 to 151 pages, by the clock. From the very start it would be 18,890.
        ("claim", (legacy, "-- The oldest pending events of several locked lanes"), [260.0, 32.0, 1_700.0]),
        // The same pages of the index, once more, and those of what waits, where nothing does.
        ("look again", (legacy, "-- Read after claim_lanes.sql"), [240.0, 0.1, 10.0]),
        // Each row as in a batch.
        ("settle", (legacy, "-- $1 ids, $2 and $3 the times"), [360.0, 94.0, 19_000.0]),
        ("apply", (new, "WITH batch AS"), [190.0, 82.0, 5_300.0]),
        // Of each lane a row, its entry in the index, and the look for its parent.
        ("append", (legacy, "-- An entry for each of several lanes"), [64.0, 32.0, 5_400.0]),
        ("append there", (new, "-- An entry for each of several lanes"), [85.0, 32.0, 7_500.0]),
    ] {
        hold(name, statement, 10..=10, (10, "a round"), stated).await;
    }
    // With the looks at the writers, at most one a round.
    hold("all", (legacy, ""), 10 * 7..=10 * 9, (10, "a round"), [1_000.0, 172.0, 27_000.0]).await;
    hold("all there", (new, ""), 10 * 5..=10 * 5, (10, "a round"), [340.0, 130.0, 13_600.0]).await;
    // As a batch: what is read with a batch's lock is a statement there, too.
    makes_statements(stage, 10 * 7, 10 * 5).await;
}

/// Holds both sides to their number of statements; now and then two more look at who still writes.
async fn makes_statements(stage: &Stage, here: i64, there: i64) {
    let (legacy, new) = (&stage.pair.legacy, &stage.pair.new);
    let writers = legacy.did("FROM pg_locks").await.calls + legacy.did("last_value").await.calls;
    let (did_here, did_there) = (legacy.did("").await, new.did("").await);
    println!("all: {did_here:?}, {did_there:?}");
    assert_eq!(did_here.calls - writers, here, "{did_here:?}");
    assert_eq!(did_there.calls, there, "{did_there:?}");
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
    for (name, statement, calls, stated) in [
        ("keys", (legacy, "-- The next keys"), 1..=30, [0.1, 0.01, 5.0]),
        ("rows", (legacy, "-- The rows that have these keys"), 1..=60, [4.5, 0.1, 10.0]),
        ("open events", (legacy, "-- Which of these aggregates"), 1..=60, [2.5, 0.01, 5.0]),
        ("write", (new, "WITH batch AS"), 1..=60, [7.0, 3.3, 250.0]),
    ] {
        hold(name, statement, calls, (40_000, "a row"), stated).await;
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

/// The most memory that verifying so many equal rows takes, by each of these mappings.
async fn peaks_of_verifying(rows: u32, mappings: &[Option<&str>]) -> Vec<u64> {
    let mut stage = copying::stage(pair().await, rows, |_| {}).await;
    let copy = format!(
        "DROP TRIGGER watch ON users; CREATE FUNCTION own(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1';
         INSERT INTO users SELECT i, 'n' || i, 1 FROM generate_series(-5, {rows} - 6) i; ANALYZE users"
    );
    stage.pair.new.run(&copy).await;
    let mut peaks = Vec::new();
    for mapping in mappings {
        stage.config.entities[0].mapping = mapping.map(|text| file("mappings/user.sql", text));
        peaks.extend(Copier::that("verifies", &stage, None).peak().await);
    }
    peaks
}

#[tokio::test]
async fn the_memory_of_a_verification_does_not_grow_with_the_table() {
    let by_legacy = "SELECT payload->>'id' AS id, payload->>'name' AS name, payload->>'version' AS version FROM event";
    // Which the legacy server does not understand: all rows are sent to the new one.
    let by_new =
        "SELECT payload->>'id' AS id, own(payload->>'name') AS name, payload->>'version' AS version FROM event";
    for (rows, mappings) in [(20_000, &[None, Some(by_legacy)][..]), (4_000, &[Some(by_new)])] {
        let (small, large) = (peaks_of_verifying(rows, mappings).await, peaks_of_verifying(rows * 10, mappings).await);
        println!("peaks of {rows} rows and of ten times as many: {small:?}, {large:?}");
        for (small, large) in small.iter().zip(&large) {
            assert!(large * 2 <= small * 3, "{small} bytes for {rows} rows, {large} for ten times as many");
        }
    }
}

/// Half of them are in buckets that differ, several times as many as are held: the first walk finds that, a second one with finer
/// buckets leaves but a few, and a third tells their keys.
#[tokio::test]
async fn rows_that_differ_here_and_there_are_found_in_three_walks() {
    let servers = counting_servers().await;
    let pair = servers.pair().await;
    pair.legacy
        .run("CREATE TABLE old (id text COLLATE \"C\" PRIMARY KEY, x int); INSERT INTO old SELECT i, i FROM generate_series(1, 200000) i")
        .await;
    pair.new
        .run(
            "CREATE EXTENSION pg_stat_statements; CREATE TABLE things (id text PRIMARY KEY, x int);
             INSERT INTO things SELECT i, CASE WHEN i % 67 = 0 THEN 0 ELSE i END FROM generate_series(1, 200000) i",
        )
        .await;
    let entity = Entity::new("Thing", TableName { schema: "public".into(), table: "things".into() }, &["id"]);
    let old = TableName { schema: "public".into(), table: "old".into() };
    let entity = entity.on("ThingCreated", Action::Upsert).made_of(old, "id");
    let stage = Stage::on(pair, |config| config.entities = vec![entity]).await;
    let new = &stage.pair.new;
    new.count_from_now().await;
    let report = crate::verify::verified(&stage).await;
    let of = &report.entities[0];
    assert_eq!(
        (of.method.as_str(), of.differing, of.legacy_rows, of.new_rows),
        ("buckets", 2_985, 200_000, 200_000),
        "{of:?}"
    );
    // Where a walk's first chunk ends.
    let walks = new.did("$2::text[] IS NULL AND $3::text[] IS NULL ORDER BY").await.calls;
    assert_eq!(walks, 3, "walks over the new table");
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
    // As a batch; on the source one more to read what a batch reads with its lock, and the look at the writers.
    assert!(most.0 <= 7 + 1 + 2, "{} on the source", most.0);
    assert!(most.1 <= 4 + 1, "{} on the target", most.1);
}

/// How long the quickest of some turns takes. The first ones connect and prepare, on two connections: one that was given back is asked
/// whether it is well, and meanwhile the next turn takes another.
async fn quickest(mut turn: impl AsyncFnMut()) -> Duration {
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        turn().await;
        quickest = quickest.min(started.elapsed());
    }
    quickest
}

/// What bounds a round is what it waits for, so the two servers work side by side: of thirteen round trips it waits for nine.
#[tokio::test]
async fn a_round_does_not_let_one_server_wait_while_the_other_works() {
    let trip = Duration::from_millis(100);
    let (stage, _, _) = counted(16, trip).await;
    let shared = stage.shared().await;
    let lanes: Vec<Lane> = (0..16).map(Lane).collect();
    let quickest = quickest(async || {
        stage.things(80, 80).await;
        assert_eq!(round::run_once(&shared, &lanes).await.expect("a round").settled.len(), 16, "all lanes");
    })
    .await;
    println!("{quickest:?} with {trip:?} a round trip");
    // Lock; read and look at the writers and claim, or lock and read at once; look again, or apply; append and commit, or settle and append; commit.
    assert!(quickest < trip * 12, "{quickest:?}");
}

/// Likewise a batch: the source settles and appends while the target appends and commits, so of ten round trips it waits for eight.
#[tokio::test]
async fn a_batch_does_not_let_the_source_wait_while_the_target_commits() {
    let trip = Duration::from_millis(200);
    let (mut stage, _, _) = counted(1, trip).await;
    look_at_no_writers(&stage).await;
    stage.things(20, 20).await;
    stage.config.relay.batch = 1;
    let shared = stage.shared().await;
    let quickest = quickest(async || assert_eq!(batches(&shared, 0, 1).await, 1)).await;
    println!("{quickest:?} with {trip:?} a round trip");
    // Lock; lock there; claim; look again; apply; append and commit, or settle and append; commit.
    assert!(quickest < trip * 9, "{quickest:?}");
}

/// A chunk waits for six answers before it knows how long its rows took, here for much longer than a lane is to be held: fewer rows would not
/// shorten that.
#[tokio::test]
async fn a_copy_over_a_long_way_does_not_shrink_its_chunks() {
    let (mut stage, _, _) = counted(2, Duration::from_millis(60)).await;
    copying::copied(&mut stage.config);
    let legacy = "INSERT INTO users SELECT i, 'n' || i, 1 FROM generate_series(1, 6000) i";
    stage.pair.legacy.run(&format!("{} {legacy}", copying::LEGACY)).await;
    let summary = copying::copy(&stage).await;
    assert!(summary.is_whole(), "{summary:?}");
    let chunks: Vec<i64> = sqlx::query_scalar("SELECT count(*) FROM users GROUP BY xmin::text ORDER BY min(id)")
        .fetch_all(&stage.pair.new.pool)
        .await
        .expect("the new rows");
    println!("{chunks:?}");
    assert!(chunks.len() <= 20, "{} chunks: {:?} …", chunks.len(), chunks.iter().take(40).collect::<Vec<_>>());
}

/// From now on a process that starts does not look twice a second at who still writes, with two round trips: where numbers are handed out
/// ahead it would learn nothing.
async fn look_at_no_writers(stage: &Stage) {
    stage.pair.legacy.run("ALTER SEQUENCE outbox_id_seq CACHE 2").await;
}

#[tokio::test]
async fn a_batch_costs_ten_round_trips() {
    let (mut stage, asked_here, asked_there) = counted(1, Duration::ZERO).await;
    look_at_no_writers(&stage).await;
    stage.things(20, 20).await;
    stage.config.relay.batch = 1;
    let shared = stage.shared().await;
    // The first ones connect and prepare.
    batches(&shared, 0, 3).await;
    let before = (asked_here.load(Ordering::SeqCst), asked_there.load(Ordering::SeqCst));
    assert_eq!(batches(&shared, 0, 10).await, 10);
    let here = asked_here.load(Ordering::SeqCst) - before.0;
    let there = asked_there.load(Ordering::SeqCst) - before.1;
    println!("ten batches: {here} round trips to the source, {there} to the target");
    // Begin and lock, claim, look again, settle, append, commit; begin and lock, apply, append, commit. On each side one more that
    // no batch waits for: the pool asks a connection that comes back whether it is well. The one before these may be among them.
    assert!(here <= 10 * (6 + 1) + 1, "{here} on the source");
    assert!(there <= 10 * (4 + 1) + 1, "{there} on the target");
}
