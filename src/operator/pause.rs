//! Pausing an aggregate type, or everything, for every instance and across restarts.
//!
//! Guarantees: once [`Operator::pause`] says that nothing is in flight, no batch of that kind is, and none will be until it is
//! resumed. A worker reads what is paused under its lane's lock, so whoever has held each lane after the pause was committed
//! knows that all who did not see it are done.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::Row;
use sqlx::postgres::PgRow;
use utoipa::ToSchema;

use super::{By, Operator, Result, audit, count};
use crate::event::Lane;
use crate::session;
use crate::sql::query;

/// What is paused or resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Everything.
    All,
    /// One aggregate type.
    AggregateType(String),
}

impl What {
    /// The pause table's word.
    fn key(&self) -> &str {
        match self {
            What::All => "",
            What::AggregateType(kind) => kind,
        }
    }

    fn subject(&self) -> serde_json::Value {
        match self {
            What::All => json!({"all": true}),
            What::AggregateType(kind) => json!({"aggregate_type": kind}),
        }
    }
}

/// Something that is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Paused {
    /// Which; `None` is all.
    pub aggregate_type: Option<String>,
    /// Why.
    pub reason: String,
    /// By whom.
    pub actor: String,
    /// Since when.
    pub at: DateTime<Utc>,
}

/// What a pause or a resumption did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Pause {
    /// False if it was so already.
    pub changed: bool,
    /// Lanes that may still have a batch of the kind in flight. Empty, but when a batch took longer than the time given.
    pub in_flight: Vec<Lane>,
    /// All that is paused now.
    pub paused: Vec<Paused>,
}

impl Operator {
    /// Pauses, and waits until no batch of the kind is in flight; at most `patience` (`None`: somewhat longer than a batch may
    /// take). It is paused also where that was not enough.
    pub async fn pause(&self, what: &What, by: &By, patience: Option<Duration>) -> Result<Pause> {
        let changed = self.change_pause("pause", what, by).await?;
        let until = Instant::now() + patience.unwrap_or(self.deadline + Duration::from_secs(5));
        let mut in_flight = Vec::new();
        for lane in self.lanes() {
            match self.source.wait_for_lane(lane, until.saturating_duration_since(Instant::now())).await? {
                Some(locked) => locked.release_lease().await,
                None => in_flight.push(lane),
            }
        }
        Ok(Pause { changed, in_flight, paused: self.paused().await? })
    }

    /// Lets it flow again.
    pub async fn resume(&self, what: &What, by: &By) -> Result<Pause> {
        let changed = self.change_pause("resume", what, by).await?;
        Ok(Pause { changed, in_flight: Vec::new(), paused: self.paused().await? })
    }

    /// What is paused.
    pub async fn paused(&self) -> Result<Vec<Paused>> {
        let rows = self.ask_at_once(&self.names().render(PAUSED)).await?;
        Ok(rows.iter().map(paused).collect::<sqlx::Result<_>>()?)
    }

    /// What is paused, and how many events the target knows and the outbox forgot (counted up to 100,000).
    pub async fn paused_and_divergent(&self) -> Result<(Vec<Paused>, u64)> {
        let both = format!("{PAUSED}\n; {}", include_str!("../../sql/operator/divergent.sql"));
        let rows = self.ask_at_once(&self.names().render(&both)).await?;
        let (divergent, rows) = rows.split_last().ok_or(sqlx::Error::RowNotFound)?;
        Ok((rows.iter().map(paused).collect::<sqlx::Result<_>>()?, count(divergent, "n")?))
    }

    async fn ask_at_once(&self, question: &str) -> sqlx::Result<Vec<PgRow>> {
        let limits = Operator::limits(Duration::from_secs(5));
        session::ask_at_once(self.pool(), limits, "SET TRANSACTION READ ONLY;", question).await
    }

    async fn change_pause(&self, action: &'static str, what: &What, by: &By) -> Result<bool> {
        let mut transaction = self.pool().begin().await?;
        let changed = if action == "pause" {
            let sql = self.names().render(include_str!("../../sql/operator/pause.sql"));
            let query = query(&sql, false).bind(what.key()).bind(&by.reason).bind(&by.actor);
            query.fetch_optional(&mut *transaction).await?.is_some()
        } else {
            let sql = self.names().render(include_str!("../../sql/operator/resume.sql"));
            query(&sql, false).bind(what.key()).fetch_optional(&mut *transaction).await?.is_some()
        };
        if changed {
            audit::insert(self.names(), &mut transaction, by, action, &what.subject(), (0, 0)).await?;
            tracing::info!(actor = %by.actor, what = %what.subject(), "{action}");
        }
        transaction.commit().await?;
        Ok(changed)
    }
}

const PAUSED: &str = include_str!("../../sql/operator/paused.sql");

fn paused(row: &PgRow) -> sqlx::Result<Paused> {
    let kind: String = row.try_get("aggregate_type")?;
    Ok(Paused {
        aggregate_type: (!kind.is_empty()).then_some(kind),
        reason: row.try_get("reason")?,
        actor: row.try_get("actor")?,
        at: row.try_get("at")?,
    })
}
