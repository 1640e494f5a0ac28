//! What waits.
//!
//! Counting ten million rows takes seconds, so nobody who asks waits for it: a [`Sampler`] counts now and then, the more rarely
//! the longer it takes, and an answer tells as of when it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::{Operator, OperatorError, Result, count};
use crate::event::Status;
use crate::sql::query;

/// The shortest pause between two counts.
const EVERY: Duration = Duration::from_secs(5);
/// Counting may take this share of the time at most.
const SHARE: u32 = 20;
/// A count that takes longer is given up; the last one stands.
const COUNT_WITHIN: Duration = Duration::from_secs(300);
/// How long a first answer is waited for.
const FIRST_WITHIN: Duration = Duration::from_secs(3);

/// How many events wait, and for what.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Backlog {
    /// Waiting to be claimed.
    pub pending: u64,
    /// Waiting for their next attempt.
    pub retry: u64,
    /// Waiting behind an earlier event of their aggregate.
    pub held: u64,
    /// Given up until somebody replays or skips them.
    pub failed: u64,
    /// Not flowing although nothing is wrong with them: of paused, stopped and unmapped aggregate types, or of an event type that
    /// nobody maps. Counted here and not as pending or held.
    pub stopped: u64,
    /// Age of the oldest of `pending`.
    pub oldest_pending_seconds: Option<f64>,
    /// The same by aggregate type and status.
    #[schema(value_type = BTreeMap<String, BTreeMap<String, u64>>)]
    pub by_aggregate_type: BTreeMap<String, BTreeMap<&'static str, u64>>,
    /// When it was counted, by the source's clock.
    pub as_of: DateTime<Utc>,
    /// Held events of event types that nobody maps, by aggregate type.
    #[serde(skip)]
    pub unmapped: BTreeMap<String, u64>,
}

impl Backlog {
    /// Nothing waits.
    pub fn empty(as_of: DateTime<Utc>) -> Backlog {
        Backlog {
            pending: 0,
            retry: 0,
            held: 0,
            failed: 0,
            stopped: 0,
            oldest_pending_seconds: None,
            by_aggregate_type: BTreeMap::new(),
            as_of,
            unmapped: BTreeMap::new(),
        }
    }
}

impl Operator {
    /// Counts. Reads all that is pending: see [`Sampler`].
    pub async fn count_backlog(&self) -> Result<Backlog> {
        let paused = self.paused().await?;
        let all = paused.iter().any(|p| p.aggregate_type.is_none());
        let mapped: BTreeSet<String> = self.entities().iter().map(|e| e.aggregate_type.clone()).collect();
        let mut stopped: BTreeSet<String> = paused.into_iter().filter_map(|p| p.aggregate_type).collect();
        if let Some(relay) = self.relay() {
            stopped.extend(relay.stops.report().into_iter().map(|stop| stop.aggregate_type));
        }
        let is_stopped = |kind: &str| all || stopped.contains(kind) || !mapped.contains(kind);
        let mut session = self.reading(COUNT_WITHIN).await?;
        let sql = self.names().render(include_str!("../../sql/operator/backlog.sql"));
        let rows = query(&sql, false).fetch_all(session.connection()).await?;
        session.commit().await?;
        let mut backlog = Backlog::empty(rows.first().map_or_else(|| Ok(Utc::now()), |row| row.try_get("as_of"))?);
        for row in &rows {
            let Some(kind) = row.try_get::<Option<String>, _>("aggregate_type")? else { continue };
            let word: String = row.try_get("status")?;
            let Some(status) = self.names().status(&word) else { continue };
            let n = count(row, "n")?;
            let unmapped: bool = row.try_get("unmapped")?;
            if unmapped {
                *backlog.unmapped.entry(kind.clone()).or_default() += n;
            }
            let stands =
                if unmapped || (status == Status::Pending && is_stopped(&kind)) { "stopped" } else { status.as_str() };
            match stands {
                "stopped" => backlog.stopped += n,
                "pending" => {
                    backlog.pending += n;
                    let age = row.try_get::<Option<f64>, _>("oldest_seconds")?.map(|age| age.max(0.0));
                    backlog.oldest_pending_seconds =
                        age.into_iter().chain(backlog.oldest_pending_seconds).reduce(f64::max);
                }
                "retry" => backlog.retry += n,
                "held" => backlog.held += n,
                _ => backlog.failed += n,
            }
            *backlog.by_aggregate_type.entry(kind).or_default().entry(stands).or_default() += n;
        }
        Ok(backlog)
    }
}

/// The task that counts. Whoever starts it owns and joins it.
pub struct Sampler {
    operator: Operator,
    latest: watch::Sender<Option<Arc<Backlog>>>,
}

/// Where its latest sample is.
#[derive(Clone)]
pub struct Latest(watch::Receiver<Option<Arc<Backlog>>>);

impl Sampler {
    /// Nothing is counted before it runs.
    pub fn new(operator: Operator) -> (Sampler, Latest) {
        let (latest, receiver) = watch::channel(None);
        (Sampler { operator, latest }, Latest(receiver))
    }

    /// One count. How long it took.
    pub async fn run_once(&self) -> Result<Duration> {
        let started = Instant::now();
        let backlog = self.operator.count_backlog().await?;
        self.latest.send_replace(Some(Arc::new(backlog)));
        Ok(started.elapsed())
    }

    /// Counts until the shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        loop {
            let counted = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                // A server that died without a word is not waited for for ever.
                counted = tokio::time::timeout(COUNT_WITHIN * 2, self.run_once()) => {
                    counted.unwrap_or(Err(OperatorError::NotCounted))
                }
            };
            let pause = match counted {
                Ok(took) => EVERY.max(took * SHARE),
                Err(error) => {
                    tracing::debug!(%error, "could not count the backlog");
                    EVERY
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

impl Latest {
    /// The latest sample; right after the start, waits a moment for the first.
    pub async fn get(&self) -> Result<Arc<Backlog>> {
        let mut latest = self.0.clone();
        let first = tokio::time::timeout(FIRST_WITHIN, latest.wait_for(Option::is_some)).await;
        match first {
            Ok(Ok(sample)) => sample.clone().ok_or(OperatorError::NotCounted),
            _ => Err(OperatorError::NotCounted),
        }
    }

    /// The next sample that was not seen yet; `None`: there will be no more.
    pub async fn next(&mut self) -> Option<Arc<Backlog>> {
        self.0.changed().await.ok()?;
        self.0.borrow_and_update().clone()
    }

    /// The latest sample, if there is one.
    pub fn peek(&self) -> Option<Arc<Backlog>> {
        self.0.borrow().clone()
    }
}
