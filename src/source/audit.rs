//! The audit of what is done to the migration, kept beside that of events: see [`crate::operator`].

use sqlx::Row;

use super::Source;
use crate::job::Who;

/// Names a row of the audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditId(i64);

impl Source {
    /// Notes who is about to do what, to what and why; before the first change, for that is the new database's.
    pub async fn audit(&self, who: &Who, action: &str, subject: &serde_json::Value) -> sqlx::Result<AuditId> {
        let sql = self.names.render(include_str!("../../sql/operator/audit_insert.sql"));
        let insert = self.query(&sql).bind(&who.actor).bind(action).bind(subject.to_string()).bind(&who.reason);
        let rows = self.ask("", insert.bind(0i64).bind(0i64)).await?;
        rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get("id").map(AuditId)
    }

    /// Notes what came of it: rows that were meant, and rows that were changed. What was done is done also where that is not possible.
    pub async fn audit_changed(&self, id: AuditId, matched: u64, changed: u64) {
        let sql = self.names.render(include_str!("../../sql/operator/audit_done.sql"));
        let done = self.query(&sql).bind(id.0).bind(matched.cast_signed()).bind(changed.cast_signed());
        if let Err(error) = self.ask("", done).await {
            tracing::debug!(%error, "could not note in the audit how many rows were changed");
        }
    }
}
