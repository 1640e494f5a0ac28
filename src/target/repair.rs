//! What repair and resync write besides the rows: who changed what, from what, to what.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::Row;
use sqlx::postgres::PgRow;
use utoipa::ToSchema;

use super::{Target, TargetLane};
use crate::config::Entity;
use crate::mapping::{self, Mapping, MappingError};
use crate::session::Session;
use crate::source::RowKey;
use crate::sql::{from_json, query};

/// One row that was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    entity: String,
    key: String,
    action: &'static str,
    before: Option<String>,
    after: Option<String>,
}

impl Repair {
    /// It was deleted.
    pub fn deleted(entity: &str, key: &RowKey, before: &str) -> Repair {
        Repair {
            entity: entity.to_owned(),
            key: json(key),
            action: "delete",
            before: Some(before.to_owned()),
            after: None,
        }
    }

    /// It was written.
    pub fn written(entity: &str, key: &RowKey, before: Option<&String>, after: Option<&String>) -> Repair {
        let (before, after) = (before.cloned(), after.cloned());
        Repair { entity: entity.to_owned(), key: json(key), action: "write", before, after }
    }

    /// With the rows as they may be kept.
    pub fn shown(self, show: impl Fn(&str) -> String) -> Repair {
        Repair { before: self.before.as_deref().map(&show), after: self.after.as_deref().map(&show), ..self }
    }
}

/// The last that was repaired of an entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RepairedLast {
    /// Which entity.
    #[serde(skip)]
    pub entity: String,
    /// When, by the target's clock.
    pub at: DateTime<Utc>,
    /// By whom.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// `repair` or `resync`.
    pub command: String,
    /// Rows that were ever written so.
    pub rows_written: i64,
    /// Rows that were ever deleted so.
    pub rows_deleted: i64,
}

/// A row that was repaired.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RepairedRow {
    /// In order.
    pub id: i64,
    /// When, by the target's clock.
    pub at: DateTime<Utc>,
    /// By whom.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// `repair` or `resync`.
    pub command: String,
    /// Which entity.
    pub entity: String,
    /// The row's key.
    pub key: Vec<String>,
    /// `write` or `delete`.
    pub action: String,
    /// The row as it was, without what nobody is shown; none: it was not there.
    #[schema(value_type = Option<serde_json::Value>)]
    pub before: Option<Box<RawValue>>,
    /// The row as it is now; none: it is gone.
    #[schema(value_type = Option<serde_json::Value>)]
    pub after: Option<Box<RawValue>>,
}

fn json(key: &RowKey) -> String {
    serde_json::to_string(&key.0).unwrap_or_default()
}

impl Target {
    /// An entity's mapping, compiled.
    pub async fn mapping(&self, entity: &Entity) -> Result<Mapping, MappingError> {
        let away = |error| MappingError::database(entity, error);
        let (mut session, _) = Session::begin(&self.pool, &self.limits.sql()).await.map_err(away)?;
        let made = mapping::compile(entity, session.connection(), &self.settings_sql(), &self.schema).await;
        session.rollback().await;
        made
    }

    /// The last that was repaired of each of these entities.
    pub async fn repaired_last(&self, entities: &[String]) -> sqlx::Result<Vec<RepairedLast>> {
        let sql = self.render(include_str!("../../sql/target/repaired_last.sql"));
        let rows = self.ask(self.query(&sql).bind(entities)).await?;
        let last = |row: &PgRow| {
            Ok(RepairedLast {
                entity: row.try_get("entity")?,
                at: row.try_get("at")?,
                actor: row.try_get("actor")?,
                reason: row.try_get("reason")?,
                command: row.try_get("command")?,
                rows_written: row.try_get("written")?,
                rows_deleted: row.try_get("deleted")?,
            })
        };
        rows.iter().map(last).collect()
    }

    /// Rows that were repaired, newest first: of one entity or of all, older ones than `below`.
    pub async fn repairs(
        &self,
        below: Option<i64>,
        at_most: u32,
        entity: Option<&str>,
    ) -> sqlx::Result<Vec<RepairedRow>> {
        let sql = self.render(include_str!("../../sql/target/repairs.sql"));
        let asked = self.query(&sql).bind(below.unwrap_or(i64::MAX)).bind(i64::from(at_most)).bind(entity);
        let row = |row: &PgRow| {
            let text = |column: &str| -> sqlx::Result<Option<Box<RawValue>>> {
                row.try_get::<Option<&str>, _>(column)?.map(from_json).transpose()
            };
            Ok(RepairedRow {
                id: row.try_get("id")?,
                at: row.try_get("at")?,
                actor: row.try_get("actor")?,
                reason: row.try_get("reason")?,
                command: row.try_get("command")?,
                entity: row.try_get("entity")?,
                key: from_json(row.try_get("key")?)?,
                action: row.try_get("action")?,
                before: text("before")?,
                after: text("after")?,
            })
        };
        self.ask(asked).await?.iter().map(row).collect()
    }

    /// A type's aggregates that had an event applied in that time, as far as the log still knows.
    pub async fn aggregates_between(
        &self,
        aggregate_type: &str,
        since: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> sqlx::Result<Vec<String>> {
        let sql = self.render(include_str!("../../sql/target/aggregates_between.sql"));
        let rows =
            self.ask(query(&sql, false).bind(self.source_id).bind(aggregate_type).bind(since).bind(until)).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }
}

impl TargetLane {
    /// Keeps what was changed, in the transaction of the change.
    pub async fn keep_repairs(
        &mut self,
        actor: &str,
        reason: &str,
        command: &str,
        kept: Vec<Repair>,
    ) -> sqlx::Result<()> {
        if kept.is_empty() {
            return Ok(());
        }
        let sql = self.target.render(include_str!("../../sql/target/repaired.sql"));
        let texts = |of: &dyn Fn(&Repair) -> Option<&str>| {
            kept.iter().map(|r| of(r).map(str::to_owned)).collect::<Vec<Option<String>>>()
        };
        query(&sql, false)
            .bind(self.target.source_id)
            .bind(actor)
            .bind(reason)
            .bind(command)
            .bind(texts(&|r| Some(&r.entity)))
            .bind(texts(&|r| Some(&r.key)))
            .bind(texts(&|r| Some(r.action)))
            .bind(texts(&|r| r.before.as_deref()))
            .bind(texts(&|r| r.after.as_deref()))
            .execute(self.session.connection())
            .await
            .map(drop)
    }
}
