//! `init --remove`: takes all but the outbox away.

use sqlx::postgres::PgPool;
use uuid::Uuid;

use super::adopt::ADDED;
use super::catalog::{self, objects_of};
use super::{InitError, SOURCE_SCHEMA, Side, Step, TARGET_SCHEMA, relay_indexes, run};
use crate::config::Config;
use crate::session::Session;
use crate::source::Names;
use crate::sql::{ident, literal, query_scalar};

/// What is taken away, and what is left to the operator.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removal {
    /// On the legacy database.
    pub source: Vec<Step>,
    /// On the new database.
    pub target: Vec<Step>,
    /// Columns that `init` added to an adopted outbox: told, not dropped, with the statement that would.
    pub columns: Vec<(String, String)>,
    /// What else to know.
    pub notes: Vec<String>,
}

/// What `init --remove` would do.
pub async fn removal(config: &Config, source: &PgPool, target: &PgPool) -> Result<Removal, InitError> {
    let names = Names::new(&config.legacy, config.relay.lanes);
    let on_source = catalog::source(config, &names, source).await.map_err(InitError::legacy)?;
    let on_target = catalog::target(config, target).await.map_err(InitError::new)?;
    let mut removal = Removal::default();
    let source_id = if on_source.has_installation {
        let sql = names.render("SELECT source_id FROM {relay}.installation");
        let (mut session, _) = Session::begin(source, catalog::READ).await.map_err(InitError::legacy)?;
        let found = query_scalar::<Uuid>(&sql, false).fetch_optional(session.connection()).await;
        session.rollback().await;
        found.map_err(InitError::legacy)?
    } else {
        None
    };
    if let Some((_, outbox)) = &on_source.made_for
        && *outbox != names.outbox
    {
        return Err(InitError::Refused(format!(
            "the schema {} belongs to the outbox {outbox}, not to {}",
            names.relay, names.outbox
        )));
    }
    let captures: Vec<&String> = on_source.objects.iter().filter(|name| name.starts_with("capture_")).collect();
    if !captures.is_empty() {
        let drops = captures.iter().map(|name| format!("DROP FUNCTION {}.{}() CASCADE;", names.relay, ident(name)));
        return Err(InitError::Refused(format!(
            "triggers of capture stand on legacy tables, and would go on writing events that nobody takes: outbox-relay capture remove, \
             first. Those of entities that are not configured any more, by hand: {}",
            drops.collect::<Vec<_>>().join(" ")
        )));
    }
    if let Some(outbox) = &on_source.outbox {
        let schema = ident(&config.legacy.outbox.schema);
        for index in relay_indexes(config) {
            let stands = outbox.valid_indexes.contains(&index.name) || outbox.invalid_indexes.contains(&index.name);
            if stands && outbox.kind == "p" {
                removal.source.push(Step::together(
                    format!("the relay's index {}, on all partitions", index.name),
                    "ACCESS EXCLUSIVE for a moment",
                    format!("DROP INDEX IF EXISTS {schema}.{};", ident(&index.name)),
                ));
            } else if stands {
                removal.source.push(Step::alone(
                    format!("the relay's index {}", index.name),
                    "SHARE UPDATE EXCLUSIVE, once transactions that are open now have ended: readers and writers go on",
                    format!("DROP INDEX CONCURRENTLY IF EXISTS {schema}.{};", ident(&index.name)),
                ));
            }
        }
        for column in outbox.columns.0.iter().filter(|c| c.comment.as_deref() == Some(ADDED)) {
            let sql = format!("ALTER TABLE {} DROP COLUMN {};", names.outbox, ident(&column.name));
            removal.columns.push((column.name.clone(), sql));
        }
    }
    removal.source.extend(
        tables(source, &config.legacy.schema, SOURCE_SCHEMA, &on_source.objects).await.map_err(InitError::legacy)?,
    );
    let others = others(config, target, source_id, &on_target).await.map_err(InitError::new)?;
    if others == 0 {
        removal.target.extend(
            tables(target, &config.new.schema, TARGET_SCHEMA, &on_target.objects).await.map_err(InitError::new)?,
        );
    } else {
        removal.notes.push(format!(
            "{others} other outboxes feed the new database: only what concerns this one is removed there."
        ));
        if let Some(id) = source_id {
            let (relay, id) = (ident(&config.new.schema), literal(&id.to_string()));
            let sql = ["batch_log", "forgotten", "lane", "source"]
                .map(|table| format!("DELETE FROM {relay}.{table} WHERE source_id = {id};"));
            removal.target.push(Step::together("what concerns this outbox", "these rows", sql.join("\n")));
        }
    }
    Ok(removal)
}

/// Takes it away. Stop all relays first.
pub async fn remove(config: &Config, source: &PgPool, target: &PgPool) -> Result<Removal, InitError> {
    let removal = removal(config, source, target).await?;
    run::run(Side::Legacy, source, &removal.source).await?;
    run::run(Side::New, target, &removal.target).await?;
    Ok(removal)
}

/// The relay's own objects, by name: its schema may hold others, and is dropped only when nothing else is in it.
async fn tables(pool: &PgPool, schema: &str, file: &str, there: &[String]) -> sqlx::Result<Vec<Step>> {
    let own = objects_of(file);
    let quoted = ident(schema);
    let mut sql: Vec<String> = own
        .iter()
        .rev()
        .filter(|(_, name)| there.contains(name))
        .map(|(kind, name)| format!("DROP {kind} IF EXISTS {quoted}.{} CASCADE;", ident(name)))
        .collect();
    if !sql.is_empty() && !holds_others(pool, schema, &own).await? {
        sql.push(format!("DROP SCHEMA IF EXISTS {quoted};"));
    }
    if sql.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![Step::together(
        "the relay's own tables",
        "ACCESS EXCLUSIVE on the relay's own tables: stop all relays first",
        sql.join("\n"),
    )])
}

async fn holds_others(pool: &PgPool, schema: &str, own: &[(&str, String)]) -> sqlx::Result<bool> {
    let own: Vec<String> = own.iter().map(|(_, name)| name.clone()).collect();
    let sql = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relname <> ALL ($2) \
               AND NOT EXISTS (SELECT FROM pg_depend d JOIN pg_class o ON o.oid = d.refobjid \
                               WHERE d.objid = c.oid AND d.deptype IN ('a', 'i') AND o.relname = ANY ($2))) \
               OR EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
               WHERE n.nspname = $1 AND p.proname <> ALL ($2))";
    let (mut session, _) = Session::begin(pool, catalog::READ).await?;
    let found = query_scalar(sql, false).bind(schema).bind(&own).fetch_one(session.connection()).await?;
    session.rollback().await;
    Ok(found)
}

async fn others(
    config: &Config,
    target: &PgPool,
    source_id: Option<Uuid>,
    catalog: &catalog::TargetCatalog,
) -> sqlx::Result<i64> {
    if !catalog.objects.iter().any(|object| object == "source") {
        return Ok(0);
    }
    let sql = format!("SELECT count(*) FROM {}.source WHERE source_id IS DISTINCT FROM $1", ident(&config.new.schema));
    let (mut session, _) = Session::begin(target, catalog::READ).await?;
    let found = query_scalar(&sql, false).bind(source_id).fetch_one(session.connection()).await;
    session.rollback().await;
    found
}
