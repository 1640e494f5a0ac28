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
        match source.described(entity).await {
            Ok(None) => {}
            Ok(Some(legacy)) => {
                findings.extend(key(config, entity, &legacy, &source).await?);
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
async fn key(config: &Config, entity: &Entity, legacy: &Legacy, source: &Source) -> sqlx::Result<Vec<Finding>> {
    let legacy = legacy.clone().shown_to(config.redact.for_admins());
    let mut found = source.key_troubles(entity, &legacy).await?;
    let mut findings = Vec::new();
    match source.repeated_key(entity, &legacy).await {
        Ok(repeated) => found.extend(repeated),
        Err(error) if is_late(&error) => findings.push(Finding::note(
            "legacy.key_unread",
            format!(
                "entity {}: whether two of its rows have the same key was not found out in {:?}",
                entity.name, LIMITS.deadline
            ),
            "backfill and verify end when they meet such rows",
        )),
        Err(error) => return Err(error),
    }
    findings.extend(
        found
            .iter()
            .map(|trouble| Finding::problem(trouble.code(), trouble.what(), trouble.consequence(), trouble.remedy())),
    );
    Ok(findings)
}

fn is_late(error: &sqlx::Error) -> bool {
    is_statement_timeout(error)
        || matches!(error, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut)
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
