//! init: what it makes, that it may be run again, and what it refuses.

use outbox_relay::init::{self, Choices, InitError};
use sqlx::{AssertSqlSafe, Executor};

use crate::support::stage::Stage;
use crate::support::{DEADLINE, Database, eventually, pair};

fn refusal(result: Result<(), InitError>) -> String {
    match result {
        Err(InitError::Refused(text)) => text,
        other => panic!("not refused: {other:?}"),
    }
}

async fn plan(stage: &Stage) -> init::Plan {
    let choices = Choices::default();
    init::plan(&stage.config, &stage.pair.legacy.pool, &stage.pair.new.pool, choices).await.expect("a plan")
}

const INDEXES: &str = "SELECT string_agg(relname::text, ' ' ORDER BY relname) FROM pg_class WHERE relname LIKE 'outbox_relay_%' AND relkind = 'i'";

#[tokio::test]
async fn a_second_init_finds_nothing_to_do() {
    let stage = Stage::new().await;
    assert!(plan(&stage).await.is_empty(), "{:?}", plan(&stage).await);
    stage.init(Choices::default()).await.unwrap();
}

#[tokio::test]
async fn what_is_printed_is_what_init_would_run() {
    let pair = pair().await;
    let config = outbox_relay::config::Config::for_databases(&pair.legacy.url, &pair.new.url).unwrap();
    let (legacy, new) = (&pair.legacy.pool, &pair.new.pool);
    for role in ["app", "relay"] {
        create_role(&pair.legacy, role).await;
        create_role(&pair.new, role).await;
    }
    let plan = init::plan(&config, legacy, new, Choices::default()).await.unwrap();
    assert_eq!(plan.source, init::plan_for_empty(&config).source);
    let grants = init::grants(&config, legacy, &init::Roles::default()).await.unwrap();
    let script = init::script(&plan, &grants);
    assert!(script.contains("-- ==== On the new database ====") && script.contains("Locks:"), "{script}");
    // A DBA runs it by hand, in two parts; init finds nothing left to make.
    let (source, target) = script.split_once("-- ==== On the new database ====").unwrap();
    let without_sequence = source.replace("GRANT SELECT ON SEQUENCE", "-- GRANT SELECT ON SEQUENCE");
    pair.legacy.run(&without_sequence).await;
    pair.new.run(&target.lines().filter(|line| !line.starts_with("-- ")).collect::<Vec<_>>().join("\n")).await;
    let after = init::plan(&config, legacy, new, Choices::default()).await.unwrap();
    assert!(after.is_empty(), "{after:?}");
    init::init(&config, legacy, new, Choices::default()).await.unwrap();
}

#[tokio::test]
async fn databases_that_do_not_answer_are_printed_as_empty_ones() {
    let url = "postgres://nobody@127.0.0.1:1/none";
    let config = outbox_relay::config::Config::for_databases(url, url).unwrap();
    let pool = sqlx::postgres::PgPoolOptions::new()
        .acquire_timeout(std::time::Duration::from_secs(1))
        .connect_lazy(url)
        .unwrap();
    let script = init::print(&config, &pool, &pool, Choices::default(), &init::Roles::default()).await.unwrap();
    assert!(
        script.contains("were not asked")
            && script.contains("GRANT SELECT ON SEQUENCE \"public\".\"outbox_id_seq\" TO \"relay\";"),
        "{script}"
    );
}

async fn create_role(db: &Database, role: &str) {
    let sql = format!(
        "DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
    );
    db.pool.execute(AssertSqlSafe(sql)).await.unwrap();
}

#[tokio::test]
async fn an_interrupted_index_is_made_anew() {
    let stage = Stage::new().await;
    let legacy = &stage.pair.legacy;
    legacy.run("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'outbox_relay_due'::regclass; DROP INDEX outbox_relay_blocked").await;
    let steps: Vec<String> = plan(&stage).await.source.into_iter().map(|step| step.sql).collect();
    assert_eq!(steps.len(), 3, "{steps:?}");
    stage.init(Choices::default()).await.unwrap();
    assert!(plan(&stage).await.is_empty());
}

#[tokio::test]
async fn init_gives_way_to_a_long_transaction_of_the_application() {
    let pair = pair().await;
    pair.legacy.run("CREATE TABLE outbox (id bigserial PRIMARY KEY, event_id uuid NOT NULL, aggregate_type text, aggregate_id text, event_type text, payload jsonb)").await;
    let config = outbox_relay::config::Config::for_databases(&pair.legacy.url, &pair.new.url).unwrap();
    let mut writer = pair.legacy.pool.begin().await.unwrap();
    let insert = "INSERT INTO outbox (event_id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'A', '1', 'E', '{}')";
    writer.execute(insert).await.unwrap();
    let (legacy, new) = (pair.legacy.pool.clone(), pair.new.pool.clone());
    let task = tokio::spawn(async move { init::init(&config, &legacy, &new, Choices::default()).await });
    let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'outbox'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted)";
    eventually(DEADLINE, "init waits for the lock", || async { pair.legacy.value::<bool>(waits).await }).await;
    // Another writer gets in before the first one has ended: init does not queue it for good.
    pair.legacy.run(insert).await;
    assert!(!task.is_finished());
    writer.rollback().await.unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn another_lane_count_another_outbox_and_a_newer_version_are_refused() {
    let mut stage = Stage::new().await;
    stage.config.relay.lanes = 8;
    assert!(refusal(stage.init(Choices::default()).await).contains("set lanes = 16"));
    stage.config.relay.lanes = 16;
    stage.config.legacy.outbox.table = "other".into();
    assert!(refusal(stage.init(Choices::default()).await).contains("belongs to the outbox \"public\".\"outbox\""));
    stage.config.legacy.outbox.table = "outbox".into();
    stage.pair.new.run("UPDATE outbox_relay.installation SET version = 99").await;
    assert!(refusal(stage.init(Choices::default()).await).contains("newer outbox-relay"));
}

/// Some users and things processed, one event of each kind.
async fn worked() -> Stage {
    let stage = Stage::new().await;
    let shared = stage.shared().await;
    for n in 1..=20 {
        stage.user(n, "UserCreated", "Ada", 1).await;
        stage.thing(&n.to_string(), 1).await;
    }
    stage.drain_by_hand(&shared).await;
    assert_eq!(stage.count("processed").await, 40);
    stage
}

async fn users(stage: &Stage) -> i64 {
    stage.pair.new.value("SELECT count(*) FROM users").await
}

/// Points the stage to a new database that has nothing but the application's tables.
async fn lose_the_new_database(stage: &mut Stage) {
    let fresh = pair().await;
    fresh.new.run(crate::support::stage::NEW_SCHEMA).await;
    stage.config.new.url = outbox_relay::config::Config::for_databases(&fresh.new.url, &fresh.new.url).unwrap().new.url;
    stage.pair.new = fresh.new;
}

#[tokio::test]
async fn a_fresh_new_database_is_refused_until_told_that_it_is_empty() {
    let mut stage = worked().await;
    let failed = stage.event("User", "500", "UserCreated", "{}").await;
    stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'failed' WHERE id = {failed}")).await;
    lose_the_new_database(&mut stage).await;
    let text = refusal(stage.init(Choices::default()).await);
    assert!(text.contains("--target-is-empty") && text.contains("--target-is-current"), "{text}");
    assert!(refusal(stage.init(Choices { moved: true, ..Choices::default() }).await).contains("--target-is-empty"));
    let nothing: bool = stage.pair.new.value("SELECT to_regclass('outbox_relay.installation') IS NULL").await;
    assert!(nothing, "a refusal leaves nothing behind");
    stage.init(Choices { target_is_empty: true, ..Choices::default() }).await.unwrap();
    assert_eq!((stage.count("pending").await, stage.count("failed").await), (40, 1));
    let shared = stage.shared().await;
    stage.drain_by_hand(&shared).await;
    assert_eq!((users(&stage).await, stage.count("processed").await), (20, 40));
    stage.oracle_agrees().await;
    stage.init(Choices::default()).await.unwrap();
}

#[tokio::test]
async fn a_new_database_that_is_current_starts_the_log_anew_and_applies_nothing_again() {
    let mut stage = worked().await;
    lose_the_new_database(&mut stage).await;
    let later = stage.user(99, "UserCreated", "Zoe", 1).await;
    stage.init(Choices { target_is_current: true, ..Choices::default() }).await.unwrap();
    let shared = stage.shared().await;
    stage.drain_by_hand(&shared).await;
    assert_eq!(stage.status(later).await, "processed");
    assert_eq!(users(&stage).await, 1);
}

#[tokio::test]
async fn an_interrupted_restart_is_finished_by_the_next() {
    let mut stage = worked().await;
    lose_the_new_database(&mut stage).await;
    stage.init(Choices { target_is_empty: true, ..Choices::default() }).await.unwrap();
    // As if the first run had ended after the target's half of lane 3, before the source knew its new target.
    stage.pair.legacy.run("UPDATE outbox_relay.installation SET target_id = gen_random_uuid(); DELETE FROM outbox_relay.batch_log WHERE lane = 3").await;
    assert!(refusal(stage.init(Choices::default()).await).contains("--target-is-empty"));
    stage.init(Choices { target_is_empty: true, ..Choices::default() }).await.unwrap();
    let shared = stage.shared().await;
    stage.drain_by_hand(&shared).await;
    assert_eq!(users(&stage).await, 20);
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn a_source_that_lost_its_log_does_not_apply_again_what_the_target_has() {
    let stage = worked().await;
    let legacy = &stage.pair.legacy;
    legacy.run("DELETE FROM outbox_relay.batch_log; UPDATE outbox SET status = 'pending', processed_at = NULL").await;
    stage.init(Choices::default()).await.unwrap();
    let shared = stage.shared().await;
    stage.drain_by_hand(&shared).await;
    assert_eq!(stage.count("processed").await, 40);
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn a_moved_pair_stops_until_told() {
    let mut stage = worked().await;
    for (db, side) in [(&mut stage.pair.legacy, 0), (&mut stage.pair.new, 1)] {
        let moved = format!("{}_moved", db.name);
        let admin = db.url.replace(&db.name, "postgres");
        db.pool.close().await;
        let pool = sqlx::PgPool::connect(&admin).await.unwrap();
        pool.execute(AssertSqlSafe(format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'",
            db.name
        )))
        .await
        .unwrap();
        pool.execute(AssertSqlSafe(format!("ALTER DATABASE {} RENAME TO {moved}", db.name))).await.unwrap();
        let url = db.url.replace(&db.name, &moved);
        db.pool = sqlx::postgres::PgPoolOptions::new().max_connections(5).connect(&url).await.unwrap();
        let config = outbox_relay::config::Config::for_databases(&url, &url).unwrap();
        if side == 0 { stage.config.legacy.url = config.legacy.url } else { stage.config.new.url = config.new.url }
    }
    let event = stage.user(99, "UserCreated", "Zoe", 1).await;
    let text = refusal(stage.init(Choices::default()).await);
    assert!(text.contains("_moved, but the log was written against") && text.contains("--moved"), "{text}");
    let shared = stage.shared().await;
    let errand = outbox_relay::relay::batch::Errand::default();
    let mut stopped = 0;
    for lane in 0..16 {
        let result = outbox_relay::relay::batch::run_once(&shared, outbox_relay::event::Lane(lane), errand).await;
        stopped += i32::from(matches!(result, Err(outbox_relay::relay::batch::BatchError::Stopped(_))));
    }
    assert_eq!(stopped, 16);
    let findings = outbox_relay::check::check(&stage.config).await;
    assert!(findings.iter().any(|f| f.code == "installation.moved"), "{findings:?}");
    stage.init(Choices { moved: true, ..Choices::default() }).await.unwrap();
    stage.drain_by_hand(&shared).await;
    assert_eq!(stage.status(event).await, "processed");
    assert_eq!(users(&stage).await, 21);
    stage.oracle_agrees().await;
}

#[tokio::test]
async fn remove_takes_all_but_the_outbox_away() {
    let stage = worked().await;
    stage.pair.new.run("CREATE TABLE outbox_relay.not_ours (n int)").await;
    init::remove(&stage.config, &stage.pair.legacy.pool, &stage.pair.new.pool).await.unwrap();
    assert_eq!(stage.count("processed").await, 40);
    let gone: bool = stage.pair.legacy.value("SELECT to_regnamespace('outbox_relay') IS NULL").await;
    assert!(gone);
    assert_eq!(stage.pair.legacy.value::<Option<String>>(INDEXES).await, None);
    let left: String = stage
        .pair
        .new
        .value("SELECT string_agg(relname, ',') FROM pg_class WHERE relnamespace = 'outbox_relay'::regnamespace")
        .await;
    assert_eq!(left, "not_ours", "what is not the relay's stays");
    // And again, and back.
    init::remove(&stage.config, &stage.pair.legacy.pool, &stage.pair.new.pool).await.unwrap();
    stage.init(Choices { existing: Some(init::Existing::Pending), ..Choices::default() }).await.unwrap();
    let event = stage.user(77, "UserCreated", "Zoe", 1).await;
    stage.drain_by_hand(&stage.shared().await.clone()).await;
    assert_eq!(stage.status(event).await, "processed");
}
