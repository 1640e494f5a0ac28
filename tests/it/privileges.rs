//! Least privilege: the application and the relay with just the grants that `init --print` gives.

use outbox_relay::check;
use outbox_relay::config::Config;
use outbox_relay::init::{self, Roles};
use sqlx::{AssertSqlSafe, Executor, PgPool};
use uuid::Uuid;

use crate::support::Database;
use crate::support::stage::Stage;

fn as_role(db: &Database, role: &str) -> String {
    let (_, rest) = db.url.split_once("://").unwrap();
    let (_, host) = rest.split_once('@').unwrap();
    format!("postgres://{role}@{host}")
}

async fn roles(stage: &Stage) -> Roles {
    let id = Uuid::new_v4().simple().to_string();
    let roles = Roles { app: format!("app_{id}"), relay: format!("relay_{id}") };
    for db in [&stage.pair.legacy, &stage.pair.new] {
        db.run(&format!(
            "CREATE ROLE {} LOGIN; CREATE ROLE {} LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC",
            roles.app, roles.relay
        ))
        .await;
    }
    roles
}

/// The stage's configuration, under the relay's role.
async fn granted(stage: &Stage) -> (Config, Roles) {
    let roles = roles(stage).await;
    let grants = init::grants(&stage.config, &stage.pair.legacy.pool, &roles).await.unwrap();
    for (db, grants) in [(&stage.pair.legacy, grants.source), (&stage.pair.new, grants.target)] {
        for grant in grants {
            db.pool.execute(AssertSqlSafe(grant.clone())).await.unwrap_or_else(|e| panic!("{e}\n{grant}"));
        }
    }
    // The handler's own table: whatever the file needs.
    stage
        .pair
        .new
        .run(&format!("GRANT INSERT ON applied TO {0}; GRANT USAGE ON SEQUENCE applied_n_seq TO {0}", roles.relay))
        .await;
    let urls =
        Config::for_databases(&as_role(&stage.pair.legacy, &roles.relay), &as_role(&stage.pair.new, &roles.relay))
            .unwrap();
    let mut config = stage.config.clone();
    config.legacy.url = urls.legacy.url;
    config.new.url = urls.new.url;
    (config, roles)
}

#[tokio::test]
async fn the_relay_runs_with_its_grants_alone_and_without_ddl() {
    let mut stage = Stage::new().await;
    let (config, roles) = granted(&stage).await;
    stage.config = config;
    let creates = "SELECT has_schema_privilege($1, 'outbox_relay', 'CREATE') OR has_schema_privilege($1, 'public', 'CREATE') OR has_database_privilege($1, current_database(), 'CREATE')";
    for db in [&stage.pair.legacy, &stage.pair.new] {
        let may: bool = sqlx::query_scalar(creates).bind(&roles.relay).fetch_one(&db.pool).await.unwrap();
        assert!(!may, "no rights to create anything");
    }
    let findings = check::check(&stage.config).await;
    assert!(!check::any_problem(&findings), "{}", check::render(&findings));
    let running = stage.start().await;
    for n in 1..=50 {
        stage.thing(&(n % 5).to_string(), n).await;
        stage.user(i64::from(n), "UserCreated", "Ada", 1).await;
    }
    stage.user(1, "UserDeleted", "Ada", 2).await;
    let poison = stage.event("User", "777", "UserCreated", r#"{"id": 777, "name": "x", "version": "no"}"#).await;
    stage.user(777, "UserUpdated", "behind", 2).await;
    stage.drained().await;
    assert_eq!(stage.status(poison).await, "failed");
    assert_eq!(stage.count("held").await, 1);
    assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM users").await, 49);
    stage.oracle_agrees().await;
    running.stop().await;
    let errors: i64 = stage.pair.legacy.value("SELECT count(*) FROM outbox_relay.failure WHERE code = '42501'").await;
    assert_eq!(errors, 0);
}

#[tokio::test]
async fn the_relays_role_finishes_what_a_dba_printed_and_ran() {
    let stage = Stage::new().await;
    let (config, _) = granted(&stage).await;
    let pool = |url: &outbox_relay::config::DatabaseUrl| outbox_relay::connect::pool(url, true, 2).unwrap();
    init::init(&config, &pool(&config.legacy.url), &pool(&config.new.url), init::Choices::default()).await.unwrap();
}

#[tokio::test]
async fn the_application_may_write_events_and_touch_nothing_of_the_relays() {
    let stage = Stage::new().await;
    let (_, roles) = granted(&stage).await;
    let app = PgPool::connect(&as_role(&stage.pair.legacy, &roles.app)).await.unwrap();
    let sql = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('User', '1', 'UserCreated', '{}') RETURNING id, event_id";
    let (id, _): (i64, Uuid) = sqlx::query_as(sql).fetch_one(&app).await.unwrap();
    for sql in [
        "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, status) VALUES ('User', '1', 'UserCreated', '{}', 'processed')".to_owned(),
        format!("UPDATE outbox SET status = 'processed' WHERE id = {id}"),
        format!("DELETE FROM outbox WHERE id = {id}"),
        "SELECT payload FROM outbox".to_owned(),
        "SELECT * FROM outbox_relay.lane".to_owned(),
    ] {
        let error = app.execute(AssertSqlSafe(sql.clone())).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("42501"), "{sql}");
    }
}
