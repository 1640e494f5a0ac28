//! Why events fail, by cause.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;
use utoipa::ToSchema;

use super::{Operator, Result, count};
use crate::event::EventId;
use crate::sql::query;

/// All events that fail for one cause.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Cause {
    /// Names it; the same after a restart.
    pub cause: String,
    /// The entity that refuses them.
    pub entity: String,
    /// Theirs.
    pub aggregate_type: String,
    /// SQLSTATE, or the relay's own code.
    pub code: String,
    /// Whose the error is.
    pub disposition: String,
    /// The latest.
    pub message: String,
    /// In the operator's file, where known.
    pub place: Option<String>,
    /// Events in retry or failed.
    pub count: u64,
    /// Of these, given up.
    pub failed: u64,
    /// Of these, waiting for their next attempt.
    pub retry: u64,
    /// First failure of the one that has failed longest.
    pub first_at: DateTime<Utc>,
    /// Latest failure.
    pub last_at: DateTime<Utc>,
    /// The lowest ids, at most five.
    pub sample_ids: Vec<EventId>,
}

impl Operator {
    /// The causes of what is in retry or failed now, the most frequent first.
    pub async fn failures(&self) -> Result<Vec<Cause>> {
        let mut session = self.reading(Duration::from_secs(25)).await?;
        let sql = self.names().render(include_str!("../../sql/operator/failures.sql"));
        let rows = query(&sql, false).fetch_all(session.connection()).await?;
        session.commit().await?;
        let mut causes = Vec::with_capacity(rows.len());
        for row in &rows {
            let (aggregate_type, code): (String, String) = (row.try_get("aggregate_type")?, row.try_get("code")?);
            causes.push(Cause {
                cause: row.try_get("cause")?,
                entity: row.try_get("entity")?,
                message: self.sight.message(&aggregate_type, &code, row.try_get("message")?),
                aggregate_type,
                code,
                disposition: row.try_get("disposition")?,
                place: row.try_get("place")?,
                count: count(row, "count")?,
                failed: count(row, "failed")?,
                retry: count(row, "retry")?,
                first_at: row.try_get("first_at")?,
                last_at: row.try_get("last_at")?,
                sample_ids: row.try_get::<Vec<i64>, _>("sample_ids")?.into_iter().map(EventId).collect(),
            });
        }
        Ok(causes)
    }
}
