//! The new database: every mapping against its tables, and what the relay's role may do.

use std::collections::BTreeSet;

use sqlx::Row;
use sqlx::postgres::PgPool;

use super::{Finding, reading};
use crate::config::{Action, Config, Entity};
use crate::init::grants::{privileges, tables_of_target};
use crate::mapping;
use crate::session::Session;
use crate::sql::{ident, query, query_scalar};

pub(super) async fn check(config: &Config, pool: &PgPool) -> sqlx::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut session = reading(pool).await?;
    findings.extend(own_tables(config, &mut session).await?);
    for entity in &config.entities {
        findings.extend(rights(entity, &mut session).await?);
        findings.extend(volatile(config, entity, &mut session).await?);
        findings.extend(deferred(entity, &mut session).await?);
    }
    session.rollback().await;
    for entity in &config.entities {
        findings.extend(compiles(config, entity, pool).await?);
    }
    Ok(findings)
}

async fn own_tables(config: &Config, session: &mut Session) -> sqlx::Result<Vec<Finding>> {
    let sql = "SELECT current_user::text AS role, (SELECT string_agg(c.relname::text, ', ') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1 AND c.relkind = 'r' AND c.relname = ANY ($2) AND NOT (has_table_privilege(c.oid, 'SELECT') \
               AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))) AS lacking";
    let row =
        query(sql, false).bind(&config.new.schema).bind(tables_of_target()).fetch_one(session.connection()).await?;
    let Some(lacking) = row.try_get::<Option<String>, _>("lacking")? else { return Ok(Vec::new()) };
    let role: String = row.try_get("role")?;
    Ok(vec![Finding::problem(
        "rights.new",
        format!("the role {role} lacks SELECT, INSERT, UPDATE or DELETE on the relay's own tables {lacking}"),
        "the relay fails as soon as it needs it",
        format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {} TO {};",
            ident(&config.new.schema),
            ident(&role)
        ),
    )])
}

async fn rights(entity: &Entity, session: &mut Session) -> sqlx::Result<Vec<Finding>> {
    let Some(table) = &entity.table else { return Ok(Vec::new()) };
    let name = format!("{}.{}", ident(&table.schema), ident(&table.table));
    let sql = "SELECT current_user::text AS role, array_agg(p) FILTER (WHERE NOT has_table_privilege(c.oid, p)) AS lacking, \
               has_schema_privilege(c.relnamespace, 'USAGE') AS schema FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               CROSS JOIN unnest($3::text[]) AS p WHERE n.nspname = $1 AND c.relname = $2 GROUP BY c.relnamespace";
    let row = query(sql, false)
        .bind(&table.schema)
        .bind(&table.table)
        .bind(privileges(entity))
        .fetch_optional(session.connection())
        .await?;
    // A table that is not there is the mapping's finding.
    let Some(row) = row else { return Ok(Vec::new()) };
    let role: String = row.try_get("role")?;
    let mut findings = Vec::new();
    let why = format!("entity {} stops at its first event", entity.name);
    if !row.try_get::<bool, _>("schema")? {
        let remedy = format!("GRANT USAGE ON SCHEMA {} TO {};", ident(&table.schema), ident(&role));
        findings.push(Finding::problem(
            "rights.schema",
            format!("the role {role} lacks USAGE on the schema {}", table.schema),
            why.clone(),
            remedy,
        ));
    }
    if let Some(lacking) = row.try_get::<Option<Vec<String>>, _>("lacking")? {
        let lacking = lacking.join(", ");
        let remedy = format!("GRANT {lacking} ON {name} TO {};", ident(&role));
        findings.push(Finding::problem(
            "rights.table",
            format!("the role {role} lacks {lacking} on {name}"),
            why,
            remedy,
        ));
    }
    Ok(findings)
}

/// By name, for what a statement calls is known to nobody but the planner: every function that any visible overload makes volatile.
async fn volatile(config: &Config, entity: &Entity, session: &mut Session) -> sqlx::Result<Vec<Finding>> {
    let Some(file) = &entity.mapping else { return Ok(Vec::new()) };
    let called: BTreeSet<String> = mapping::text::called(&file.text).into_iter().collect();
    let sql = "SELECT DISTINCT p.proname::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
               WHERE p.provolatile = 'v' AND p.prokind = 'f' AND n.nspname IN ('pg_catalog', $1) AND p.proname = ANY ($2) ORDER BY 1";
    let found: Vec<String> = query_scalar(sql, false)
        .bind(&config.new.search_path)
        .bind(called.into_iter().collect::<Vec<_>>())
        .fetch_all(session.connection())
        .await?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![Finding::warning(
        "mapping.volatile",
        format!(
            "{}: the mapping of entity {} calls {}, which yields something else each time",
            file.path.display(),
            entity.name,
            found.join(", ")
        ),
        "the first copy, verification and repair evaluate the mapping too, and would find differences",
        "take the value from the payload or from event.created_at",
    )])
}

async fn deferred(entity: &Entity, session: &mut Session) -> sqlx::Result<Vec<Finding>> {
    let Some(table) = &entity.table else { return Ok(Vec::new()) };
    let sql = "SELECT k.conname::text FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE k.condeferred AND n.nspname = $1 AND c.relname = $2 ORDER BY 1";
    let found: Vec<String> =
        query_scalar(sql, false).bind(&table.schema).bind(&table.table).fetch_all(session.connection()).await?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let what = format!("entity {}: {} is checked at the end of a transaction", entity.name, found.join(", "));
    Ok(vec![Finding::note(
        "mapping.deferred",
        what,
        "the relay checks it after each group of events, so that the failing one is found",
    )])
}

async fn compiles(config: &Config, entity: &Entity, pool: &PgPool) -> sqlx::Result<Vec<Finding>> {
    let mut session = reading(pool).await?;
    let search_path = format!("SET LOCAL search_path = pg_catalog, {};", ident(&config.new.search_path));
    let compiled = mapping::compile(entity, session.connection(), &search_path, &config.new.schema).await;
    session.rollback().await;
    match compiled {
        Ok(_) => Ok(Vec::new()),
        Err(error) if error.unreachable => Err(sqlx::Error::Protocol(error.message)),
        Err(error) => {
            let why = if entity.events.values().all(|a| *a == Action::Ignore) {
                ""
            } else {
                "its events wait until it is mended"
            };
            let remedy = if error.code == "mapping.key" && error.message.starts_with("no unique constraint") {
                let key: Vec<String> = entity.key.iter().map(|k| ident(k)).collect();
                let table = entity
                    .table
                    .as_ref()
                    .map(|t| format!("{}.{}", ident(&t.schema), ident(&t.table)))
                    .unwrap_or_default();
                format!("CREATE UNIQUE INDEX CONCURRENTLY ON {table} ({});", key.join(", "))
            } else {
                String::new()
            };
            Ok(vec![Finding::problem(error.code, error.to_string(), why, remedy)])
        }
    }
}
