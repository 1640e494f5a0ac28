//! Who changed what, and why. Written in the transaction of the change, so that it says neither more nor less than was done.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::Row;
use sqlx::postgres::PgConnection;
use utoipa::ToSchema;

use super::{Operator, OperatorError, Result, count};
use crate::source::Names;
use crate::sql::{query, query_scalar};

/// Who wants a change, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    /// A token's name, a shell's user.
    pub actor: String,
    /// In the actor's words.
    pub reason: String,
}

impl By {
    /// Refuses a blank reason.
    pub fn new(actor: impl Into<String>, reason: impl AsRef<str>) -> Result<By> {
        let reason = reason.as_ref().trim();
        if reason.is_empty() {
            let message = "say why: \"reason\" is kept in the audit table".to_owned();
            return Err(OperatorError::Invalid { code: "reason.missing", message });
        }
        Ok(By { actor: actor.into(), reason: reason.to_owned() })
    }
}

/// One thing that was done.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Audit {
    /// In order.
    pub id: i64,
    /// By the source's clock.
    pub at: DateTime<Utc>,
    /// Who.
    pub actor: String,
    /// `replay`, `skip`, `pause`, `resume`; `backfill`, `backfill.pause`, `backfill.resume`, `repair`, `resync`, `capture.install`,
    /// `capture.remove`, `stop`.
    pub action: String,
    /// To what.
    #[schema(value_type = serde_json::Map<String, serde_json::Value>)]
    pub subject: Box<RawValue>,
    /// Why.
    pub reason: String,
    /// Events, or rows of the new database, that were meant.
    pub matched: u64,
    /// Those that were changed.
    pub changed: u64,
}

/// A page of them.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Audits {
    /// Newest first.
    pub items: Vec<Audit>,
    /// For the next page.
    pub next_cursor: Option<String>,
}

impl Operator {
    /// What was done, newest first.
    pub async fn audits(&self, limit: u32, cursor: Option<i64>) -> Result<Audits> {
        let mut session = self.reading(std::time::Duration::from_secs(10)).await?;
        let sql = self.names().render(include_str!("../../sql/operator/audits.sql"));
        let rows = query(&sql, false)
            .bind(cursor.unwrap_or(i64::MAX))
            .bind(i64::from(limit) + 1)
            .fetch_all(session.connection())
            .await?;
        session.commit().await?;
        let mut items = Vec::with_capacity(rows.len());
        for row in rows.iter().take(limit as usize) {
            items.push(Audit {
                id: row.try_get("id")?,
                at: row.try_get("at")?,
                actor: row.try_get("actor")?,
                action: row.try_get("action")?,
                subject: super::events::raw(row.try_get("subject")?),
                reason: row.try_get("reason")?,
                matched: count(row, "matched")?,
                changed: count(row, "changed")?,
            });
        }
        let more = rows.len() > items.len();
        let next_cursor = items.last().filter(|_| more).map(|last| last.id.to_string());
        Ok(Audits { items, next_cursor })
    }
}

/// In the transaction of the change, or before the first of several.
pub(super) async fn insert(
    names: &Names,
    connection: &mut PgConnection,
    by: &By,
    action: &str,
    subject: &serde_json::Value,
    (matched, changed): (u64, u64),
) -> sqlx::Result<i64> {
    let sql = names.render(include_str!("../../sql/operator/audit_insert.sql"));
    query_scalar(&sql, false)
        .bind(&by.actor)
        .bind(action)
        .bind(subject.to_string())
        .bind(&by.reason)
        .bind(matched.cast_signed())
        .bind(changed.cast_signed())
        .fetch_one(connection)
        .await
}

/// In each of several transactions: so many more.
pub(super) async fn add(names: &Names, connection: &mut PgConnection, id: i64, changed: u64) -> sqlx::Result<()> {
    let sql = names.render(include_str!("../../sql/operator/audit_add.sql"));
    query(&sql, false).bind(id).bind(changed.cast_signed()).execute(connection).await.map(drop)
}
