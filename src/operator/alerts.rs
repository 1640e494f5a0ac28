//! The rows that tell which alerts were told, on the source: of several processes one tells each, and restarts forget nothing.
//!
//! Guarantees: as long as the source answers, one process at a time holds the telling of an alert, for [`CLAIM`] at most. Does not
//! guarantee that a message is sent once: who dies between sending it and saying so leaves it to be sent again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row as _;
use sqlx::postgres::{PgArguments, Postgres};
use sqlx::query::Query;
use uuid::Uuid;

use super::Operator;
use crate::session::{Limits, ask};
use crate::sql::query;

/// Who took an alert and has not told it by then has died.
const CLAIM: Duration = Duration::from_secs(30);
const LIMITS: Limits = Limits { deadline: Duration::from_secs(3), lock: Duration::from_secs(1) };

/// An alert that was told, or is being told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Told {
    /// Whether it was told; else somebody is about to.
    pub(crate) firing: bool,
    pub(crate) since: DateTime<Utc>,
    /// How bad it was when it was told.
    pub(crate) value: f64,
    pub(crate) told_ago: Duration,
    /// Since any process saw that it goes on.
    pub(crate) seen_ago: Duration,
    /// By the clock of the source.
    pub(crate) told_at: DateTime<Utc>,
    pub(crate) seen_at: DateTime<Utc>,
}

impl Told {
    /// Told just now, by a process alone.
    pub(crate) fn now(since: DateTime<Utc>, value: f64, now: DateTime<Utc>) -> Told {
        let ago = Duration::ZERO;
        Told { firing: true, since, value, told_ago: ago, seen_ago: ago, told_at: now, seen_at: now }
    }
}

/// What is to be told of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Telling {
    Begin,
    Again,
    Over,
}

impl Operator {
    /// By what they are about.
    pub(crate) async fn alerts_told(&self) -> sqlx::Result<Vec<(String, Told)>> {
        let sql = self.names().render(include_str!("../../sql/operator/alerts.sql"));
        let rows = ask(self.pool(), LIMITS, "", query(&sql, false)).await?;
        let seconds = |row: &sqlx::postgres::PgRow, column: &str| {
            let seconds: f64 = row.try_get(column)?;
            Ok::<_, sqlx::Error>(Duration::try_from_secs_f64(seconds).unwrap_or_default())
        };
        let told = rows.iter().map(|row| {
            let told = Told {
                firing: row.try_get("firing")?,
                since: row.try_get("since")?,
                value: row.try_get("value")?,
                told_ago: seconds(row, "told_ago")?,
                seen_ago: seconds(row, "seen_ago")?,
                told_at: row.try_get("told_at")?,
                seen_at: row.try_get("seen_at")?,
            };
            Ok((row.try_get("what")?, told))
        });
        told.collect()
    }

    /// Takes the telling of an alert, as it was when it was looked at. Whether it was had.
    pub(crate) async fn claim_alert(&self, what: &str, by: Uuid, telling: Telling, told: &Told) -> sqlx::Result<bool> {
        let (begin, again) =
            (include_str!("../../sql/operator/alert_begin.sql"), include_str!("../../sql/operator/alert_again.sql"));
        let sql = self.names().render(if telling == Telling::Begin { begin } else { again });
        let question = query(&sql, false).bind(what).bind(by);
        let seconds = CLAIM.as_secs_f64();
        let question = match telling {
            Telling::Begin => question.bind(told.since).bind(told.value).bind(seconds),
            Telling::Again => question.bind(told.told_at).bind(seconds).bind(None::<DateTime<Utc>>),
            Telling::Over => question.bind(told.told_at).bind(seconds).bind(Some(told.seen_at)),
        };
        Ok(!ask(self.pool(), LIMITS, "", question).await?.is_empty())
    }

    /// What was taken was told, or could not be.
    pub(crate) async fn alert_done(
        &self,
        what: &str,
        by: Uuid,
        telling: Telling,
        sent: bool,
        value: f64,
    ) -> sqlx::Result<()> {
        let file = match telling {
            _ if !sent => include_str!("../../sql/operator/alert_release.sql"),
            Telling::Over => include_str!("../../sql/operator/alert_over.sql"),
            Telling::Begin | Telling::Again => include_str!("../../sql/operator/alert_told.sql"),
        };
        let sql = self.names().render(file);
        let mut question = query(&sql, false).bind(what).bind(by);
        if sent && telling != Telling::Over {
            question = question.bind(value);
        }
        self.note(question).await
    }

    /// These go on.
    pub(crate) async fn alerts_seen(&self, what: &[String]) -> sqlx::Result<()> {
        let sql = self.names().render(include_str!("../../sql/operator/alert_seen.sql"));
        self.note(query(&sql, false).bind(what)).await
    }

    /// Told by this process alone while the source did not answer.
    pub(crate) async fn adopt_alert(&self, what: &str, by: Uuid, told: &Told) -> sqlx::Result<()> {
        let sql = self.names().render(include_str!("../../sql/operator/alert_adopt.sql"));
        self.note(query(&sql, false).bind(what).bind(by).bind(told.since).bind(told.value)).await
    }

    /// Over, and nobody needs to be told.
    pub(crate) async fn forget_alert(&self, what: &str) -> sqlx::Result<()> {
        let sql = self.names().render(include_str!("../../sql/operator/alert_forget.sql"));
        self.note(query(&sql, false).bind(what)).await
    }

    async fn note(&self, question: Query<'_, Postgres, PgArguments>) -> sqlx::Result<()> {
        ask(self.pool(), LIMITS, "", question).await.map(drop)
    }
}
