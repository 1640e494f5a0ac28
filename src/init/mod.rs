//! `init`: makes the outbox and the relay's own tables, or says how. Every step is data, so that what is printed for a DBA is
//! what is run.

use sqlx::postgres::PgPool;
use sqlx::{Executor, Row};
use uuid::Uuid;

use crate::config::Config;
use crate::connect::{TEST_LANES, is_undefined};
use crate::source::Names;
use crate::sql::{ident, literal, render, trusted};
use crate::target;

/// The version of the relay's own tables.
const SCHEMA_VERSION: i32 = 1;

/// One statement, with what a DBA wants to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it is for.
    pub why: String,
    /// What it locks, and for how long.
    pub locks: &'static str,
    /// The statement, or several that belong together.
    pub sql: String,
    /// Whether it must run outside a transaction (`CREATE INDEX CONCURRENTLY`).
    pub alone: bool,
}

/// What is known to be right when the two logs do not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Choices {
    /// The target has lost everything: all retained events are put back.
    pub target_is_empty: bool,
    /// The target is right as it is: the log starts anew.
    pub target_is_current: bool,
    /// A database was moved on purpose.
    pub moved: bool,
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A database said no.
    #[error("{side}: {error}")]
    Database {
        /// `legacy` or `new`.
        side: &'static str,
        /// What it said.
        error: sqlx::Error,
    },
    /// Refused, with what to do.
    #[error("{0}")]
    Refused(String),
}

/// The relay's tables and indexes on the source. `outbox_exists` leaves the table itself alone.
pub fn source_steps(config: &Config, outbox_exists: bool) -> Vec<Step> {
    let names = Names::new(&config.legacy, config.relay.lanes);
    let mut steps = Vec::new();
    if !outbox_exists {
        steps.push(Step {
            why: "the outbox that the application writes to".to_owned(),
            locks: "nothing: the table is new",
            sql: names.render(include_str!("../../sql/source/outbox.sql")),
            alone: false,
        });
    }
    steps.push(Step {
        why: "the relay's own tables beside it".to_owned(),
        locks: "nothing: the tables are new",
        sql: names.render(include_str!("../../sql/source/schema.sql")),
        alone: false,
    });
    let indexes = [
        ("pending", "ON {outbox} ({lane}, {id}) WHERE {status} = {pending}", "what is to be claimed, in order"),
        ("due", "ON {outbox} ({lane}, {next_attempt_at}) WHERE {status} = {retry}", "retries, by when they are due"),
        (
            "blocked",
            "ON {outbox} ({lane}, {hash}, {id}) WHERE {status} IN ({retry}, {held}, {failed})",
            "what an aggregate waits behind (a hash: an aggregate_id may be long)",
        ),
        (
            "unprocessed",
            "ON {outbox} ({status}, {id}) WHERE {status} IN ({retry}, {held}, {failed}, {skipped})",
            "lists for operators",
        ),
    ];
    for (suffix, definition, why) in indexes {
        let concurrently = if outbox_exists { "CONCURRENTLY " } else { "" };
        let name = ident(&format!("{}_relay_{suffix}", config.legacy.outbox.table));
        steps.push(Step {
            why: format!("a small partial index: {why}"),
            locks: if outbox_exists {
                "SHARE UPDATE EXCLUSIVE while it reads the table: readers and writers go on"
            } else {
                "nothing: the table is new"
            },
            sql: format!("CREATE INDEX {concurrently}IF NOT EXISTS {name} {};", names.render(definition)),
            alone: outbox_exists,
        });
    }
    let lanes = format!(
        "INSERT INTO {{relay}}.lane SELECT generate_series(0, {}) ON CONFLICT DO NOTHING;\n\
         INSERT INTO {{relay}}.installation (version, outbox, lanes, test_lanes) VALUES ({SCHEMA_VERSION}, {}, {}, ({TEST_LANES})) \
         ON CONFLICT DO NOTHING;",
        config.relay.lanes - 1,
        literal(&names.outbox),
        config.relay.lanes,
    );
    steps.push(Step {
        why: "the lanes, and what this installation is".to_owned(),
        locks: "nothing",
        sql: names.render(&lanes),
        alone: false,
    });
    steps
}

/// The relay's tables on the target.
pub fn target_steps(config: &Config) -> Vec<Step> {
    let names = [("relay", ident(&config.new.schema))];
    vec![
        Step {
            why: "the relay's own tables in the new database".to_owned(),
            locks: "nothing: the tables are new",
            sql: render(include_str!("../../sql/target/schema.sql"), &names),
            alone: false,
        },
        Step {
            why: "what this installation is".to_owned(),
            locks: "nothing",
            sql: render(
                &format!(
                    "INSERT INTO {{relay}}.installation (version) VALUES ({SCHEMA_VERSION}) ON CONFLICT DO NOTHING;"
                ),
                &names,
            ),
            alone: false,
        },
    ]
}

/// Makes everything that is missing. May be run again.
pub async fn init(config: &Config, source: &PgPool, target: &PgPool, choices: Choices) -> Result<(), InitError> {
    let legacy = |error| InitError::Database { side: "legacy", error };
    let new = |error| InitError::Database { side: "new", error };
    let names = Names::new(&config.legacy, config.relay.lanes);
    refuse_other_lanes(config, &names, source).await?;
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(&names.outbox)
        .fetch_one(source)
        .await
        .map_err(legacy)?;
    run_steps(source, &source_steps(config, exists)).await.map_err(legacy)?;
    run_steps(target, &target_steps(config)).await.map_err(new)?;
    introduce(config, &names, source, target, choices).await
}

async fn run_steps(pool: &PgPool, steps: &[Step]) -> sqlx::Result<()> {
    for step in steps {
        tracing::debug!("{}", step.why);
        pool.execute(sqlx::raw_sql(trusted(&step.sql))).await?;
    }
    Ok(())
}

async fn refuse_other_lanes(config: &Config, names: &Names, source: &PgPool) -> Result<(), InitError> {
    let sql = names.render("SELECT lanes, outbox FROM {relay}.installation");
    let row = match sqlx::query(trusted(&sql)).fetch_optional(source).await {
        Ok(row) => row,
        Err(error) if is_undefined(&error) => None,
        Err(error) => return Err(InitError::Database { side: "legacy", error }),
    };
    let Some(row) = row else { return Ok(()) };
    let lanes: i32 = row.get("lanes");
    let outbox: String = row.get("outbox");
    if lanes != i32::from(config.relay.lanes) {
        return Err(InitError::Refused(format!(
            "relay.lanes is {}, but the relay's tables were made for {lanes}, and that is fixed: set lanes = {lanes}",
            config.relay.lanes
        )));
    }
    if outbox != names.outbox {
        return Err(InitError::Refused(format!(
            "the schema {} belongs to the outbox {outbox}; give {} its own with [legacy] schema",
            names.relay, names.outbox
        )));
    }
    Ok(())
}

/// Tells each side of the other, and writes the first entry that both logs have. The target first: an interrupted `init`
/// finds its half there.
async fn introduce(
    config: &Config,
    names: &Names,
    source: &PgPool,
    target: &PgPool,
    choices: Choices,
) -> Result<(), InitError> {
    let legacy = |error| InitError::Database { side: "legacy", error };
    let new = |error| InitError::Database { side: "new", error };
    let target_schema = ident(&config.new.schema);
    let sql = format!("SELECT target_id FROM {target_schema}.installation");
    let target_id: Uuid = sqlx::query_scalar(trusted(&sql)).fetch_one(target).await.map_err(new)?;
    let row = sqlx::query(trusted(&names.render("SELECT source_id, target_id FROM {relay}.installation")))
        .fetch_one(source)
        .await
        .map_err(legacy)?;
    let source_id: Uuid = row.get("source_id");
    let known: Option<Uuid> = row.get("target_id");
    if known.is_some_and(|known| known != target_id)
        && !(choices.moved || choices.target_is_empty || choices.target_is_current)
    {
        return Err(InitError::Refused(
            "this outbox feeds another new database already. A second service gets its own outbox and its own [legacy] schema. If \
             the new database was lost, say --target-is-empty (all retained events are applied again) or --target-is-current \
             (the log starts anew; verification is due); if it was moved, --moved"
                .to_owned(),
        ));
    }
    let source_identity = identity(source).await.map_err(legacy)?;
    let target_identity = identity(target).await.map_err(new)?;
    let target_names = target::names(&config.new.schema, source_id);
    for lane in 0..i32::from(config.relay.lanes) {
        let both =
            first_entry(lane, names, &target_names, source, target, (&source_identity, &target_identity), choices)
                .await;
        both?;
    }
    if choices.moved {
        rename_peers(names, &target_names, source, target, (&source_identity, &target_identity)).await?;
    }
    let sql = names.render("UPDATE {relay}.installation SET target_id = $1 WHERE target_id IS DISTINCT FROM $1");
    sqlx::query(trusted(&sql)).bind(target_id).execute(source).await.map_err(legacy)?;
    Ok(())
}

async fn identity(pool: &PgPool) -> sqlx::Result<String> {
    sqlx::query_scalar("SELECT (SELECT system_identifier FROM pg_control_system())::text || '/' || current_database()")
        .fetch_one(pool)
        .await
}

async fn first_entry(
    lane: i32,
    names: &Names,
    target_names: &[(&str, String)],
    source: &PgPool,
    target: &PgPool,
    (source_identity, target_identity): (&str, &str),
    choices: Choices,
) -> Result<(), InitError> {
    let legacy = |error| InitError::Database { side: "legacy", error };
    let new = |error| InitError::Database { side: "new", error };
    let mut transaction = target.begin().await.map_err(new)?;
    let sql = render(include_str!("../../sql/target/add_lane.sql"), target_names);
    sqlx::query(trusted(&sql))
        .bind(lane)
        .bind(i32::from(names.lanes()))
        .execute(&mut *transaction)
        .await
        .map_err(new)?;
    let sql = render(
        "SELECT token, nonce FROM {relay}.batch_log WHERE source_id = {source} AND lane = $1 ORDER BY token DESC LIMIT 1",
        target_names,
    );
    let on_target: Option<(i64, Uuid)> =
        sqlx::query_as(trusted(&sql)).bind(lane).fetch_optional(&mut *transaction).await.map_err(new)?;
    let sql = names.render("SELECT count(*) FROM {relay}.batch_log WHERE lane = $1");
    let on_source: i64 = sqlx::query_scalar(trusted(&sql)).bind(lane).fetch_one(source).await.map_err(legacy)?;
    let restart = choices.target_is_empty || choices.target_is_current;
    if on_source > 0 && !restart {
        if on_target.is_none() {
            return Err(InitError::Refused(format!(
                "the new database has no log of lane {lane}, but the legacy one has: was it lost or exchanged? Say \
                 --target-is-empty (all retained events are applied again) or --target-is-current (the log starts anew; \
                 verification is due)"
            )));
        }
        return Ok(());
    }
    let key = match on_target {
        Some(key) if !restart => key,
        _ => {
            let sql = names.render("SELECT nextval('{relay}.token'::regclass)::bigint");
            let mut token: i64 = sqlx::query_scalar(trusted(&sql)).fetch_one(source).await.map_err(legacy)?;
            while on_target.is_some_and(|(newest, _)| token <= newest) {
                token = sqlx::query_scalar(trusted(&sql)).fetch_one(source).await.map_err(legacy)?;
            }
            let nonce = Uuid::new_v4();
            let sql = render(include_str!("../../sql/target/first_entry.sql"), target_names);
            sqlx::query(trusted(&sql))
                .bind(lane)
                .bind(token)
                .bind(nonce)
                .bind(source_identity)
                .execute(&mut *transaction)
                .await
                .map_err(new)?;
            (token, nonce)
        }
    };
    transaction.commit().await.map_err(new)?;
    let mut transaction = source.begin().await.map_err(legacy)?;
    let sql = names.render("SELECT lane FROM {relay}.lane WHERE lane = $1 FOR UPDATE");
    sqlx::query(trusted(&sql)).bind(lane).execute(&mut *transaction).await.map_err(legacy)?;
    if choices.target_is_empty {
        let sql = names.render(
            "UPDATE {outbox} SET {status} = {pending}, {processed_at} = NULL WHERE {lane} = $1 AND {status} = {processed}",
        );
        sqlx::query(trusted(&sql)).bind(lane).execute(&mut *transaction).await.map_err(legacy)?;
    }
    if restart {
        let sql = names.render("DELETE FROM {relay}.batch_log WHERE lane = $1");
        sqlx::query(trusted(&sql)).bind(lane).execute(&mut *transaction).await.map_err(legacy)?;
    }
    let sql = names.render(include_str!("../../sql/source/first_entry.sql"));
    sqlx::query(trusted(&sql))
        .bind(lane)
        .bind(key.0)
        .bind(key.1)
        .bind(target_identity)
        .execute(&mut *transaction)
        .await
        .map_err(legacy)?;
    transaction.commit().await.map_err(legacy)
}

/// The databases were moved on purpose: the newest entries name the new places from now on.
async fn rename_peers(
    names: &Names,
    target_names: &[(&str, String)],
    source: &PgPool,
    target: &PgPool,
    (source_identity, target_identity): (&str, &str),
) -> Result<(), InitError> {
    let sql = names.render("UPDATE {relay}.batch_log SET peer = $1 WHERE peer <> $1");
    sqlx::query(trusted(&sql))
        .bind(target_identity)
        .execute(source)
        .await
        .map_err(|error| InitError::Database { side: "legacy", error })?;
    let sql = render("UPDATE {relay}.batch_log SET peer = $1 WHERE peer <> $1 AND source_id = {source}", target_names);
    sqlx::query(trusted(&sql))
        .bind(source_identity)
        .execute(target)
        .await
        .map_err(|error| InitError::Database { side: "new", error })?;
    Ok(())
}
