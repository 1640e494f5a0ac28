//! The legacy rows that entities are made of: that they can be read, what tells them apart, and whose they are.

use sqlx::Row;
use sqlx::postgres::PgPool;

use super::{Finding, LIMITS, reading};
use crate::config::{Config, Entity, RowsFrom};
use crate::disposition::told;
use crate::session::{is_statement_timeout, sqlstate};
use crate::source::{Legacy, Names, Source};
use crate::sql::{ident, query};

pub(super) async fn check(config: &Config, pool: &PgPool) -> sqlx::Result<Vec<Finding>> {
    let names = Names::new(&config.legacy, config.relay.lanes);
    let source = Source::new(pool.clone(), names, LIMITS.deadline, false, None, false);
    let mut findings = Vec::new();
    for entity in &config.entities {
        match source.legacy(entity).await {
            Ok(None) => {}
            Ok(Some(legacy)) => {
                findings.extend(key(entity, pool).await?);
                findings.extend(event_types(entity));
                findings.extend(disagreeing(config, entity, &legacy, &source).await?);
            }
            Err(error) => findings.push(unreadable(entity, &error)?),
        }
    }
    Ok(findings)
}

const WHY: &str = "backfill, capture and verify read these rows";

fn unreadable(entity: &Entity, error: &sqlx::Error) -> sqlx::Result<Finding> {
    let what = format!("entity {}: its legacy rows cannot be read: {}", entity.name, told(error));
    let from = entity.legacy.as_ref().map(|rows| &rows.from);
    let remedy = match from {
        Some(RowsFrom::Query(file)) => format!("mend {}", file.path.display()),
        _ => "mend entity.legacy".to_owned(),
    };
    Ok(match (sqlstate(error).as_deref(), from) {
        (Some("42501"), Some(RowsFrom::Table(table))) => {
            let remedy = format!(
                "GRANT USAGE ON SCHEMA {0} TO CURRENT_USER; GRANT SELECT ON {0}.{1} TO CURRENT_USER;    (with the relay's role in its \
                 place; row security must not apply to it)",
                ident(&table.schema),
                ident(&table.table)
            );
            Finding::problem("legacy.rights", what, WHY, remedy)
        }
        (Some("42P01" | "3F000"), _) => Finding::problem("legacy.table", what, WHY, remedy),
        (Some(_), _) => Finding::problem("legacy.rows", what, WHY, remedy),
        (None, _) if matches!(error, sqlx::Error::Configuration(_)) => {
            Finding::problem("legacy.rows", what, WHY, remedy)
        }
        (None, _) => return Err(sqlx::Error::Protocol(told(error))),
    })
}

/// A page goes on after the last key: two rows with one key, or a key that is NULL, would be passed over.
async fn key(entity: &Entity, pool: &PgPool) -> sqlx::Result<Vec<Finding>> {
    let Some(rows) = &entity.legacy else { return Ok(Vec::new()) };
    let RowsFrom::Table(table) = &rows.from else { return Ok(Vec::new()) };
    let mut session = reading(pool).await?;
    let sql = include_str!("../../sql/legacy/key.sql");
    let ask = query(sql, false).bind(&table.schema).bind(&table.table).bind(&rows.key);
    let row = ask.fetch_one(session.connection()).await?;
    session.rollback().await;
    let key: Vec<String> = rows.key.iter().map(|column| ident(column)).collect();
    let table = format!("{}.{}", ident(&table.schema), ident(&table.table));
    let mut findings = Vec::new();
    if !row.try_get::<bool, _>("is_unique")? {
        findings.push(Finding::problem(
            "legacy.key",
            format!("entity {}: no unique index on {table} covers the key {}", entity.name, rows.key.join(", ")),
            "a row whose key another one has may be passed over; and each page would sort the whole table",
            format!("CREATE UNIQUE INDEX CONCURRENTLY ON {table} ({});", key.join(", ")),
        ));
    }
    if let Some(nullable) = row.try_get::<Option<String>, _>("nullable")? {
        findings.push(Finding::problem(
            "legacy.key",
            format!("entity {}: {nullable} of the key may be NULL in {table}", entity.name),
            "a row whose key is NULL is passed over",
            format!("ALTER TABLE {table} ALTER COLUMN {} SET NOT NULL;    (or name another key)", ident(&nullable)),
        ));
    }
    Ok(findings)
}

/// What capture writes must be taken by the entity.
fn event_types(entity: &Entity) -> Vec<Finding> {
    let Some(rows) = &entity.legacy else { return Vec::new() };
    if entity.events.contains_key(&rows.capture.insert) {
        return Vec::new();
    }
    vec![Finding::note(
        "legacy.event_type",
        format!("entity {} takes no event type {}", entity.name, rows.capture.insert),
        "copied rows come to the mapping under this name, and capture would write it: name the one that your application writes in \
         [entity.capture] insert = \"…\"",
    )]
}

/// A row is kept apart from its events by the lane of their aggregate: both must say the same one.
async fn disagreeing(config: &Config, entity: &Entity, legacy: &Legacy, source: &Source) -> sqlx::Result<Vec<Finding>> {
    let sql = legacy.disagreeing(&Names::new(&config.legacy, config.relay.lanes));
    let mut session = reading(&source.pool).await?;
    session.script(legacy.settings()).await?;
    let found = query(&sql, false).fetch_optional(session.connection()).await;
    session.rollback().await;
    let row = match found {
        Ok(Some(row)) => row,
        Ok(None) => return Ok(Vec::new()),
        // No outbox yet, which is told elsewhere; or payloads that hold something else under the key's name.
        Err(error) if is_statement_timeout(&error) || sqlstate(&error).is_some() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let (id, said): (i64, String) = (row.try_get("id")?, row.try_get("said")?);
    let given: Option<String> = row.try_get("given")?;
    let given = given.map_or("NULL".to_owned(), |given| format!("\"{given}\""));
    Ok(vec![Finding::problem(
        "legacy.aggregate_id",
        format!(
            "entity {}: entity.legacy.aggregate_id gives {given} for a row whose event {id} has the aggregate_id \"{said}\"",
            entity.name
        ),
        "a row is kept apart from its events by their aggregate: a copy could write an old state over a new one",
        "legacy = { …, aggregate_id = \"an SQL expression over the row that gives what the events say\" }",
    )])
}
