//! Reports of verifications, kept on the target.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;

use super::Target;
use crate::session::Session;
use crate::sql::query;
use crate::verify::{Difference, Outcome, Report};

/// Names a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportId(pub i64);

/// A report in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "as in the table verify_report")]
pub struct History {
    pub id: i64,
    pub started_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
    pub by: String,
    pub mode: String,
    pub outcome: Option<String>,
    pub differences: Option<i64>,
}

impl Target {
    /// Begins a report.
    pub async fn begin_report(&self, by: &str, mode: &str) -> sqlx::Result<(ReportId, DateTime<Utc>)> {
        let sql = self.render(include_str!("../../sql/target/report_begin.sql"));
        let rows = self.ask(query(&sql, false).bind(self.source_id).bind(by).bind(mode)).await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        Ok((ReportId(row.try_get("id")?), row.try_get("started_at")?))
    }

    /// Begins the report that goes on by itself, if it is due and nobody else has.
    pub async fn begin_due_report(&self, every: Duration) -> sqlx::Result<Option<(ReportId, DateTime<Utc>)>> {
        // One process asks at a time.
        let lock = self.render("SELECT FROM {relay}.source WHERE source_id = {source} FOR NO KEY UPDATE");
        let (mut session, _) = Session::begin(&self.pool, &format!("{} {lock};", self.limits.sql())).await?;
        let sql = self.render(include_str!("../../sql/target/report_due.sql"));
        let due =
            query(&sql, false).bind(self.source_id).bind(every.as_secs_f64()).fetch_one(session.connection()).await?;
        if !due.try_get::<bool, _>("due")? {
            session.rollback().await;
            return Ok(None);
        }
        let sql = self.render(include_str!("../../sql/target/report_begin.sql"));
        let begin = query(&sql, false).bind(self.source_id).bind("run").bind("full");
        let row = begin.fetch_one(session.connection()).await?;
        session.commit().await?;
        Ok(Some((ReportId(row.try_get("id")?), row.try_get("started_at")?)))
    }

    /// Keeps what was found.
    pub async fn keep_differences(&self, id: ReportId, found: &[Difference]) -> sqlx::Result<()> {
        if found.is_empty() {
            return Ok(());
        }
        let sql = self.render(include_str!("../../sql/target/report_differences.sql"));
        let entities: Vec<&str> = found.iter().map(|d| d.entity.as_str()).collect();
        let texts: Vec<String> = found.iter().map(|d| serde_json::to_string(d).unwrap_or_default()).collect();
        self.ask(query(&sql, false).bind(id.0).bind(entities).bind(texts)).await.map(drop)
    }

    /// Ends a report.
    pub async fn end_report(&self, id: ReportId, report: &Report) -> sqlx::Result<()> {
        let sql = self.render(include_str!("../../sql/target/report_end.sql"));
        let outcome = match report.outcome {
            Outcome::Equal => "equal",
            Outcome::Differs => "differs",
            Outcome::CouldNot => "could_not",
        };
        let text = serde_json::to_string(report).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        self.ask(query(&sql, false).bind(id.0).bind(outcome).bind(text)).await.map(drop)
    }

    /// The last report that was finished.
    pub async fn last_report(&self) -> sqlx::Result<Option<ReportId>> {
        let sql = self.render(include_str!("../../sql/target/report_last.sql"));
        let rows = self.ask(query(&sql, false).bind(self.source_id)).await?;
        rows.first().map(|row| row.try_get("id").map(ReportId)).transpose()
    }

    /// All that a report found.
    pub async fn report_differences(&self, id: ReportId) -> sqlx::Result<Vec<Difference>> {
        const PAGE: i64 = 5000;
        let sql = self.render(include_str!("../../sql/target/report_found.sql"));
        let (mut found, mut after) = (Vec::new(), 0i64);
        loop {
            let rows = self.ask(query(&sql, false).bind(id.0).bind(after).bind(PAGE)).await?;
            for row in &rows {
                after = row.try_get("n")?;
                let text: String = row.try_get("difference")?;
                found.push(serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(Box::new(error)))?);
            }
            if (rows.len() as i64) < PAGE {
                return Ok(found);
            }
        }
    }

    /// The last reports, newest first.
    pub async fn reports(&self, at_most: u32) -> sqlx::Result<Vec<History>> {
        let sql = self.render(include_str!("../../sql/target/report_history.sql"));
        let rows = self.ask(query(&sql, false).bind(self.source_id).bind(i64::from(at_most))).await?;
        rows.iter()
            .map(|row| {
                Ok(History {
                    id: row.try_get("id")?,
                    started_at: row.try_get("started_at")?,
                    finished_at: row.try_get("finished_at")?,
                    by: row.try_get("by")?,
                    mode: row.try_get("mode")?,
                    outcome: row.try_get("outcome")?,
                    differences: row.try_get("differences")?,
                })
            })
            .collect()
    }
}
