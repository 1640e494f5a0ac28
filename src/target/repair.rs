//! What repair and resync write besides the rows: who changed what, from what, to what.

use chrono::{DateTime, Utc};
use sqlx::Row;

use super::{Target, TargetLane};
use crate::config::Entity;
use crate::mapping::{self, Mapping, MappingError};
use crate::session::Session;
use crate::source::RowKey;
use crate::sql::query;

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

fn json(key: &RowKey) -> String {
    serde_json::to_string(&key.0).unwrap_or_default()
}

impl Target {
    /// An entity's mapping, compiled.
    pub async fn mapping(&self, entity: &Entity) -> Result<Mapping, MappingError> {
        let away = |error| MappingError::database(entity, error);
        let (mut session, _) = Session::begin(&self.pool, &self.limits.sql()).await.map_err(away)?;
        let made = mapping::compile(entity, session.connection(), &self.search_path_sql(), &self.schema).await;
        session.rollback().await;
        made
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
