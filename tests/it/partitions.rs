//! An outbox that is partitioned by day, made by the page's own SQL: its whole life.

use std::time::Duration;

use outbox_relay::check;
use outbox_relay::config::Config;
use outbox_relay::init::{self, Choices, InitError};
use outbox_relay::source::Names;

use crate::readme::{blocks, page};
use crate::retention::{age, retain};
use crate::support::past::Past;
use crate::support::stage::Stage;
use crate::support::{DEADLINE, eventually, pair};

/// The outbox as docs/scaling.md has it, with yesterday, today and a week.
async fn partitioned(change: impl FnOnce(&mut Config)) -> Stage {
    let pair = pair().await;
    let sql = blocks(&page("docs/scaling.md"), "test-partitioned");
    assert_eq!(sql.len(), 2);
    for block in sql {
        pair.legacy.run(&block).await;
    }
    Stage::on(pair, change).await
}

/// Events of these aggregates whose `created_at` lies on both sides of the last midnight, and round and round them.
fn around_midnight(events: u32, aggregates: u32) -> String {
    format!(
        "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
         SELECT 'Thing', (i % {aggregates})::text, 'Happened', jsonb_build_object('version', i),
                ((now() AT TIME ZONE 'UTC')::date AT TIME ZONE 'UTC') + (CASE WHEN i % 2 = 0 THEN 1 ELSE -1 END) * interval '1 minute'
         FROM generate_series(1, {events}) i"
    )
}

/// A remedy's, one a line, each with what is said beside it.
fn statements(remedy: &str) -> impl Iterator<Item = &str> {
    remedy.lines().map(|line| line.split("    (").next().unwrap())
}

async fn codes(stage: &Stage) -> Vec<String> {
    check::check(&stage.config).await.into_iter().map(|finding| finding.code).collect()
}

#[tokio::test]
async fn a_partitioned_outbox_is_made_checked_and_relayed_across_midnight_and_its_old_days_are_dropped_meanwhile() {
    let stage = partitioned(|config| {
        config.relay.lanes = 4;
        config.relay.batch = 50;
        config.retention.processed = Duration::from_secs(3600);
    })
    .await;
    let legacy = &stage.pair.legacy;
    assert_eq!(codes(&stage).await, Vec::<String>::new(), "{:?}", check::check(&stage.config).await);
    let again = init::plan(&stage.config, &legacy.pool, &stage.pair.new.pool, Choices::default()).await.unwrap();
    assert!(again.is_empty(), "{again:?}");
    let running = stage.start().await;
    for _ in 0..10 {
        legacy.run(&around_midnight(100, 7)).await;
    }
    // Whoever writes to a partition itself, with ids of the same sequence.
    legacy
        .run(
            "DO $$ BEGIN EXECUTE format('INSERT INTO %I (id, aggregate_type, aggregate_id, event_type, payload)
                 SELECT nextval(pg_get_serial_sequence(''outbox'', ''id'')), ''Thing'', ''direct'', ''Happened'', jsonb_build_object(''version'', i)
                 FROM generate_series(1, 20) i', 'outbox_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')); END $$",
        )
        .await;
    stage.drained().await;
    assert_eq!(stage.count("processed").await, 1020);
    stage.oracle_agrees().await;
    // A failing one is held, replayed and applied as anywhere else.
    let failing = stage.user(1, "UserCreated", "Ada", 1).await;
    stage.drained().await;
    assert_eq!(stage.status(failing).await, "processed");
    running.stop().await;

    // Retention takes what is old; one entry a lane stays, with its events.
    let shared = stage.shared().await;
    age(&stage).await;
    assert!(retain(&stage, &shared).await.processed > 700);
    // What is left of yesterday goes by hand, as if the newest entries were of today: the day is empty, and old enough to be told.
    legacy
        .run(
            "CREATE TABLE outbox_old PARTITION OF outbox FOR VALUES FROM ('2020-01-01 00:00Z') TO ('2020-01-02 00:00Z')",
        )
        .await;
    let findings = check::check(&stage.config).await;
    let empty = findings.iter().find(|finding| finding.code == "outbox.partition_empty").expect("an empty day");
    assert!(empty.what.contains("public.outbox_old"), "{empty:?}");
    // Dropped by the remedy itself, while the relay runs and the application writes.
    let running = stage.start().await;
    legacy.run(&around_midnight(200, 7)).await;
    for statement in statements(&empty.remedy) {
        legacy.run(statement).await;
    }
    legacy.run(&around_midnight(200, 7)).await;
    stage.drained().await;
    running.stop().await;
    let there = "SELECT to_regclass('outbox_old') IS NULL";
    assert!(legacy.value::<bool>(there).await);
    // Days run out: told before the application's inserts fail.
    legacy
        .run(
            "DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'outbox'::regclass LOOP
                 IF t::text > 'outbox_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD') THEN EXECUTE 'DROP TABLE ' || t; END IF;
             END LOOP; END $$",
        )
        .await;
    let findings = check::check(&stage.config).await;
    let missing = findings.iter().find(|finding| finding.code == "outbox.partition_missing").expect("no tomorrow");
    legacy.run(&missing.remedy).await;
    assert_eq!(codes(&stage).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_poison_event_is_held_skipped_past_and_replayed_across_days_while_many_write() {
    let stage = partitioned(|config| config.relay.lanes = 4).await;
    let legacy = &stage.pair.legacy;
    let running = stage.start().await;
    let poison = |id: i64| {
        let payload = format!("{{\"id\": {id}, \"name\": \"x\", \"version\": \"x\"}}");
        async move {
            legacy
                .value::<i64>(&format!(
                    "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
             VALUES ('User', '{id}', 'UserUpdated', '{payload}', now() - interval '1 day') RETURNING id"
                ))
                .await
        }
    };
    let (bad, worse) = (poison(1).await, poison(2).await);
    let becomes = async |id: i64, status: &str| {
        eventually(DEADLINE, status, || async { stage.status(id).await == status }).await;
    };
    becomes(bad, "failed").await;
    becomes(worse, "failed").await;
    let behind = [stage.user(1, "UserUpdated", "second", 2).await, stage.user(1, "UserUpdated", "third", 3).await];
    for id in behind {
        becomes(id, "held").await;
    }
    // Each with aggregates of its own, as who writes to the same one waits for the other.
    let many = |writer: u32| around_midnight(100, 7).replace("(i % 7)::text", &format!("'{writer}-' || (i % 7)"));
    let (one, two, three, four) = (many(1), many(2), many(3), many(4));
    tokio::join!(legacy.run(&one), legacy.run(&two), legacy.run(&three), legacy.run(&four));
    // Mended and replayed; the other one is given up.
    legacy
        .run(&format!(
            "BEGIN; SELECT * FROM outbox_relay.lane FOR UPDATE;
             INSERT INTO outbox_relay.put_back (lane, id) SELECT lane, {bad} FROM outbox_relay.lane;
             UPDATE outbox SET status = 'pending', attempts = 0, payload = '{{\"id\": 1, \"name\": \"first\", \"version\": 1}}' WHERE id = {bad};
             UPDATE outbox SET status = 'skipped' WHERE id = {worse}; COMMIT"
        ))
        .await;
    for id in [bad, behind[0], behind[1]] {
        becomes(id, "processed").await;
    }
    stage.drained().await;
    running.stop().await;
    assert_eq!(stage.pair.new.value::<String>("SELECT string_agg(name, ',') FROM users").await, "third");
    assert_eq!((stage.count("processed").await, stage.count("skipped").await), (403, 1));
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn a_day_that_gets_an_event_after_it_was_seen_empty_is_not_dropped() {
    let stage = partitioned(|_| {}).await;
    let legacy = &stage.pair.legacy;
    let day =
        "CREATE TABLE outbox_old PARTITION OF outbox FOR VALUES FROM ('2020-01-01 00:00Z') TO ('2020-01-02 00:00Z')";
    legacy.run(day).await;
    let findings = check::check(&stage.config).await;
    let empty = findings.iter().find(|finding| finding.code == "outbox.partition_empty").expect("an empty day");
    let event = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
                 VALUES ('Thing', 'late', 'Happened', '{\"version\": 1}', '2020-01-01 12:00Z')";
    // The writer was open when the check looked, and detaching waits for it.
    let mut writer = legacy.pool.begin().await.unwrap();
    sqlx::query(event).execute(&mut *writer).await.unwrap();
    let mut steps = statements(&empty.remedy);
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE%DETACH%' AND wait_event_type = 'Lock' AND datname = current_database()";
    tokio::join!(legacy.run(steps.next().unwrap()), async {
        eventually(DEADLINE, "it waits", || async { legacy.value::<i64>(waits).await == 1 }).await;
        writer.commit().await.unwrap();
    });
    let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(steps.next().unwrap().to_owned())).execute(&legacy.pool).await;
    let refused = refused.unwrap_err();
    let said = refused.as_database_error().unwrap().downcast_ref::<sqlx::postgres::PgDatabaseError>();
    assert!(said.message().contains("attach it again"), "{said:?}");
    legacy.run(said.hint().unwrap()).await;
    let running = stage.start().await;
    stage.drained().await;
    running.stop().await;
    assert_eq!(stage.count("processed").await, 1);
    stage.oracle_agrees().await;
    assert_eq!(codes(&stage).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_partitioned_outbox_is_healed_whichever_side_goes_back() {
    let stage = partitioned(|config| {
        config.relay.lanes = 2;
        config.relay.batch = 5;
    })
    .await;
    let shared = stage.shared().await;
    stage.pair.legacy.run(&around_midnight(40, 7)).await;
    let legacy = Past::of(&stage.pair.legacy).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    let applied: i64 = stage.pair.new.value("SELECT count(*) FROM applied").await;
    legacy.again(&stage.pair.legacy).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(
        stage.pair.new.value::<i64>("SELECT count(*) FROM applied").await,
        applied,
        "settled, not applied again"
    );
    let new = Past::of(&stage.pair.new).await;
    stage.pair.legacy.run(&around_midnight(40, 7)).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    new.again(&stage.pair.new).await;
    assert!(stage.heal_by_hand(&shared).await.is_empty());
    assert_eq!(stage.count("processed").await, 80);
    stage.history_agrees().await;
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn a_claim_merges_the_partitions_in_order_and_settling_looks_into_the_days_concerned() {
    let stage = partitioned(|config| config.relay.lanes = 1).await;
    let legacy = &stage.pair.legacy;
    legacy
        .run(
            "DO $$ BEGIN FOR d IN 1..20 LOOP EXECUTE format('CREATE TABLE outbox_d%s PARTITION OF outbox FOR VALUES FROM (%L) TO (%L)',
                 d, '2020-01-01 00:00Z'::timestamptz + d * interval '1 day', '2020-01-02 00:00Z'::timestamptz + d * interval '1 day'); END LOOP; END $$;
             INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, created_at, status)
             SELECT 'Thing', (i % 1000)::text, 'Happened', '{\"version\": 1}', '2020-01-02 00:00Z'::timestamptz + i * interval '20 days' / 20000,
                    CASE WHEN i < 19000 THEN 'processed' ELSE 'pending' END
             FROM generate_series(0, 19999) i",
        )
        .await;
    legacy.run("VACUUM ANALYZE outbox").await;
    let names = Names::new(&stage.config.legacy, 1).partitioned();
    let bound = |file: &str, values: &[&str]| {
        let mut sql = names.render(file);
        for (at, value) in values.iter().enumerate().rev() {
            sql = sql.replace(&format!("${}", at + 1), value);
        }
        sql
    };
    let claim = include_str!("../../sql/source/claim.sql");
    let plan = legacy.explain(&bound(claim, &["0", "0", "'{}'::text[]", "500", "16777216"])).await;
    assert!(plan.text.contains("Merge Append"), "{}", plan.text);
    let locking = plan.text.split("LockRows").nth(1).unwrap().split("->  CTE").next().unwrap();
    let locking = locking.split("CTE ").next().unwrap();
    assert!(!locking.contains("Sort Method"), "{}", plan.text);
    assert!(!locking.contains("Seq Scan"), "{}", plan.text);
    // Three pages for each of the 500 rows, and two for each partition.
    assert!(plan.buffers < 1_700, "{} pages\n{}", plan.buffers, plan.text);
    let settle = include_str!("../../sql/source/settle_processed.sql");
    let ids = "ARRAY(SELECT generate_series(19001, 19500))";
    let day = ["'2020-01-20 00:00Z'", "'2020-01-21 23:59Z'"];
    let plan = legacy.explain(&bound(settle, &[ids, day[0], day[1]])).await;
    let touched = (1..=20).filter(|d| plan.text.contains(&format!(" on outbox_d{d} "))).count();
    assert!(touched <= 3, "{touched} partitions\n{}", plan.text);
}

#[tokio::test]
async fn an_interrupted_init_of_a_partitioned_outbox_is_finished_and_what_cannot_be_is_refused() {
    let stage = partitioned(|_| {}).await;
    let legacy = &stage.pair.legacy;
    // As if it had ended before the second partition was attached: the whole index is invalid, one part of it missing.
    legacy.run("DROP INDEX outbox_relay_pending").await;
    let plan = || init::plan(&stage.config, &legacy.pool, &stage.pair.new.pool, Choices::default());
    let steps = plan().await.unwrap().source;
    for step in &steps[..steps.len() - 1] {
        legacy.run(&step.sql).await;
    }
    let left = plan().await.unwrap().source;
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(codes(&stage).await.contains(&"index.invalid".to_owned()));
    stage.init(Choices::default()).await.unwrap();
    assert_eq!(codes(&stage).await, Vec::<String>::new());
    // It can be taken away again, all but the outbox.
    init::remove(&stage.config, &legacy.pool, &stage.pair.new.pool).await.unwrap();
    let left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'outbox%relay%' AND relkind IN ('i', 'I')";
    assert_eq!(legacy.value::<i64>(left).await, 0);

    for (table, refusal) in [
        ("id bigint NOT NULL, PRIMARY KEY (id, created_at)", "takes no number by itself"),
        (
            "id bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (created_at, id)",
            "PRIMARY KEY (\"id\", \"created_at\")",
        ),
    ] {
        let pair = pair().await;
        pair.legacy
            .run(&format!(
                "CREATE TABLE outbox (aggregate_type text NOT NULL, aggregate_id text NOT NULL, event_type text NOT NULL,
                     payload jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), {table}) PARTITION BY RANGE (created_at)"
            ))
            .await;
        let config = Config::for_databases(&pair.legacy.url, &pair.new.url).unwrap();
        let refused = init::init(&config, &pair.legacy.pool, &pair.new.pool, Choices::default()).await;
        let Err(InitError::Refused(text)) = refused else { panic!("{refused:?}") };
        assert!(text.contains(refusal), "{text}");
    }
    // A second level is refused as well.
    let pair = pair().await;
    pair.legacy.run(&blocks(&page("docs/scaling.md"), "test-partitioned")[0]).await;
    pair.legacy
        .run("CREATE TABLE outbox_year PARTITION OF outbox FOR VALUES FROM ('2020-01-01') TO ('2021-01-01') PARTITION BY RANGE (created_at)")
        .await;
    let config = Config::for_databases(&pair.legacy.url, &pair.new.url).unwrap();
    let refused = init::init(&config, &pair.legacy.pool, &pair.new.pool, Choices::default()).await;
    assert!(matches!(&refused, Err(InitError::Refused(text)) if text.contains("one level")), "{refused:?}");
}
