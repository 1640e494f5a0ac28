//! Reports of verifications, kept on the target.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgRow;
use utoipa::ToSchema;

use super::Target;
use crate::sql::{from_json, query};
use crate::verify::{Difference, EntityReport, Outcome, Report, STOPPED};

/// Names a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportId(pub i64);

/// A report in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Reported)]
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

/// A report, as it is kept.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "as in the table verify_report")]
pub struct KeptReport {
    pub id: i64,
    pub started_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
    pub by: String,
    pub mode: String,
    pub outcome: Option<String>,
    /// Once it is finished.
    pub report: Option<Report>,
}

/// What a verification found of one entity.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Verified {
    /// The report that it is a part of.
    pub report: i64,
    /// `full`, or `sample` and how many rows.
    pub mode: String,
    /// When, by the target's clock.
    pub finished_at: DateTime<Utc>,
    /// What was found.
    pub found: EntityReport,
}

/// Which verifications are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Of all rows, also those that could not compare them.
    Full,
    /// Of all rows, and with an answer.
    Answered,
    /// Of some rows.
    Sample,
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
        let mut session = self.alone().await?;
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

    /// Forgets what was found of an entity: it is looked at anew.
    pub async fn forget_differences(&self, id: ReportId, entity: &str) -> sqlx::Result<()> {
        let sql = self.render(include_str!("../../sql/target/report_forget.sql"));
        self.ask(query(&sql, false).bind(id.0).bind(entity)).await.map(drop)
    }

    /// Ends a report. What it found equal, no first copy has left out any longer.
    pub async fn end_report(&self, id: ReportId, report: &Report) -> sqlx::Result<()> {
        let sql = self.render(include_str!("../../sql/target/report_end.sql"));
        let outcome = match report.outcome {
            Outcome::Equal => "equal",
            Outcome::Differs => "differs",
            Outcome::CouldNot => "could_not",
        };
        let text = serde_json::to_string(report).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        // Before it has ended, which is before anybody is told: it cannot both be equal and have failed.
        let agreed: Vec<&str> = report.entities.iter().filter(|of| of.agrees()).map(|of| of.entity.as_str()).collect();
        if !agreed.is_empty() {
            self.agreed(id, &agreed).await?;
        }
        self.ask(query(&sql, false).bind(id.0).bind(outcome).bind(text)).await?;
        let sql = self.render(include_str!("../../sql/target/report_entities.sql"));
        let entities: Vec<&str> = report.entities.iter().map(|e| e.entity.as_str()).collect();
        let texts: Vec<String> = report.entities.iter().map(|e| serde_json::to_string(e).unwrap_or_default()).collect();
        self.ask(query(&sql, false).bind(id.0).bind(entities).bind(texts)).await.map(drop)
    }

    /// All that a report found.
    pub async fn report_differences(&self, id: ReportId) -> sqlx::Result<Vec<Difference>> {
        const PAGE: u32 = 5000;
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = self.report_page(id, after, PAGE).await?;
            after = page.last().map(|(n, _)| *n);
            let ended = page.len() < PAGE as usize;
            found.extend(page.into_iter().map(|(_, difference)| difference));
            if ended {
                return Ok(found);
            }
        }
    }

    /// The last reports, newest first; `below`: only older ones than that.
    pub async fn reports(&self, below: Option<ReportId>, at_most: u32) -> sqlx::Result<Vec<History>> {
        let sql = self.render(include_str!("../../sql/target/report_history.sql"));
        let below = below.map_or(i64::MAX, |id| id.0);
        let rows = self.ask(query(&sql, false).bind(self.source_id).bind(below).bind(i64::from(at_most))).await?;
        let history = |row: &PgRow| {
            Ok(History {
                id: row.try_get("id")?,
                started_at: row.try_get("started_at")?,
                finished_at: row.try_get("finished_at")?,
                by: row.try_get("by")?,
                mode: row.try_get("mode")?,
                outcome: row.try_get("outcome")?,
                differences: row.try_get("differences")?,
            })
        };
        rows.iter().map(history).collect()
    }

    /// One report, finished or not.
    pub async fn report(&self, id: ReportId) -> sqlx::Result<Option<KeptReport>> {
        let sql = self.render(include_str!("../../sql/target/report.sql"));
        let rows = self.ask(self.query(&sql).bind(id.0)).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let report: Option<String> = row.try_get("report")?;
        Ok(Some(KeptReport {
            id: row.try_get("id")?,
            started_at: row.try_get("started_at")?,
            finished_at: row.try_get("finished_at")?,
            by: row.try_get("by")?,
            mode: row.try_get("mode")?,
            outcome: row.try_get("outcome")?,
            report: report.as_deref().map(from_json).transpose()?,
        }))
    }

    /// A page of what a report found, each with its number; `after`: only what comes behind that number.
    pub async fn report_page(
        &self,
        id: ReportId,
        after: Option<i64>,
        at_most: u32,
    ) -> sqlx::Result<Vec<(i64, Difference)>> {
        let sql = self.render(include_str!("../../sql/target/report_found.sql"));
        let after = after.unwrap_or(i64::MIN);
        let rows = self.ask(query(&sql, false).bind(id.0).bind(after).bind(i64::from(at_most))).await?;
        let found = |row: &PgRow| Ok((row.try_get("n")?, from_json(row.try_get("difference")?)?));
        rows.iter().map(found).collect()
    }

    /// What the last verification of each of these entities found. One that was told to end before its end is none.
    pub async fn verified_last(&self, entities: &[String], which: Which) -> sqlx::Result<Vec<Verified>> {
        let sql = self.render(include_str!("../../sql/target/verified_last.sql"));
        let (samples, answered) = (which == Which::Sample, which == Which::Answered);
        let rows = self.ask(self.query(&sql).bind(entities).bind(samples).bind(STOPPED).bind(answered)).await?;
        let verified = |row: &PgRow| {
            Ok(Verified {
                report: row.try_get("report_id")?,
                mode: row.try_get("mode")?,
                finished_at: row.try_get("finished_at")?,
                found: from_json(row.try_get("report")?)?,
            })
        };
        rows.iter().map(verified).collect()
    }
}
