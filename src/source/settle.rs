//! Settling a batch: what became of its events, what is released by that, and the entry in the source's log.
//!
//! Guarantees: all of it in the lane's transaction, and only as the child of the entry that the batch was built on. That the transaction
//! commits only what the target has committed is the caller's order.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::SourceLane;
use super::claim::Claim;
use super::scan::{Mark, Scan, next_scan};
use crate::event::{Aggregate, BatchKey, EventId, Identity, Status};

/// What becomes of a claimed event that was not applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Unapplied {
    /// Which.
    pub id: EventId,
    /// `Retry`, `Held` or `Failed`.
    pub status: Status,
    /// Attempts counted against it, this one included where it counts.
    pub attempts: i32,
    /// Until the next attempt, for `Retry`.
    pub delay: Option<Duration>,
    /// One line for `last_error`.
    pub error: Option<String>,
    /// What to remember of the failure; `None` for `Held`.
    pub failure: Option<FailureRecord>,
}

/// A row of `failure` and of the history of attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureRecord {
    /// The entity that refused it.
    pub entity: String,
    /// Its aggregate type.
    pub aggregate_type: String,
    /// Stable across restarts: a hash of entity, code, constraint, column and message pattern.
    pub cause: String,
    /// The disposition's name.
    pub disposition: &'static str,
    /// SQLSTATE, or our own code.
    pub code: String,
    /// Postgres' primary message.
    pub message: String,
    /// Constraint, if the error names one.
    pub constraint: Option<String>,
    /// Column, if the error names one.
    pub column: Option<String>,
    /// Postgres' DETAIL: personal data, for the API under redaction only.
    pub detail: Option<String>,
    /// The place in the user's file, `mappings/user.sql:4:3`.
    pub place: Option<String>,
}

/// All that a batch settles.
#[derive(Debug, Default)]
pub struct Settlement {
    /// Applied.
    pub processed: Vec<EventId>,
    /// Retry, held, failed.
    pub unapplied: Vec<Unapplied>,
    /// Aggregates whose held events may be free now.
    pub freed: Vec<Aggregate>,
    /// The lowest id of the scanned range that stays pending.
    pub left_lowest: Option<EventId>,
}

/// Why a batch could not be settled.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The server said no.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// Another worker appended: this one was overtaken.
    #[error("the lane's log has a newer entry than the one this batch was built on")]
    NotTheNewest,
    /// Somebody deleted events that the relay had locked.
    #[error("{found} of {expected} applied events are still in the outbox: something else deletes from it")]
    Vanished {
        /// Applied events.
        expected: u64,
        /// Of these, in the outbox.
        found: u64,
    },
}

impl SourceLane {
    /// Marks what became of the batch, releases what was held behind it, and appends the entry; `COMMIT` is the caller's.
    /// Returns the source's clock.
    pub async fn settle(
        &mut self,
        key: BatchKey,
        peer: &Identity,
        claim: &Claim,
        settlement: &Settlement,
        pass: &[String],
        release_at_most: u32,
    ) -> Result<DateTime<Utc>, SettleError> {
        self.settle_events(claim, settlement).await?;
        let released = self.release(&settlement.freed, pass, release_at_most).await?;
        let lowest = settlement.left_lowest.map(|id| id.0).into_iter().chain(released).min();
        let scan = next_scan(claim, lowest);
        let at = self.append(key, peer, &settlement.processed, &scan).await?;
        if self.put_back.is_some() {
            let sql = self.source.names.render(include_str!("../../sql/source/forget_put_back.sql"));
            self.source.query(&sql).bind(self.lane).execute(self.session.connection()).await?;
        }
        Ok(at)
    }

    async fn settle_events(&mut self, claim: &Claim, settlement: &Settlement) -> Result<(), SettleError> {
        let created = || claim.events.iter().map(|event| event.created_at);
        let (first, last) = (created().min(), created().max());
        if !settlement.processed.is_empty() {
            let done = self
                .source
                .query(&self.source.statements.settle_processed)
                .bind(&settlement.processed)
                .bind(first)
                .bind(last)
                .execute(self.session.connection())
                .await?;
            if done.rows_affected() != settlement.processed.len() as u64 {
                return Err(SettleError::Vanished {
                    expected: settlement.processed.len() as u64,
                    found: done.rows_affected(),
                });
            }
        }
        if !settlement.unapplied.is_empty() {
            self.settle_unapplied(&settlement.unapplied, first, last).await?;
        }
        Ok(())
    }

    /// All of them were created between these times.
    async fn settle_unapplied(
        &mut self,
        unapplied: &[Unapplied],
        first: Option<DateTime<Utc>>,
        last: Option<DateTime<Utc>>,
    ) -> sqlx::Result<()> {
        self.source
            .query(&self.source.statements.settle_other)
            .bind(unapplied.iter().map(|u| u.id).collect::<Vec<_>>())
            .bind(first)
            .bind(last)
            .bind(unapplied.iter().map(|u| u.status.as_str()).collect::<Vec<_>>())
            .bind(unapplied.iter().map(|u| u.attempts).collect::<Vec<_>>())
            .bind(unapplied.iter().map(|u| u.delay.map(|d| d.as_secs_f64())).collect::<Vec<_>>())
            .bind(unapplied.iter().map(|u| u.error.as_deref()).collect::<Vec<_>>())
            .execute(self.session.connection())
            .await?;
        let failing: Vec<(EventId, i32, &FailureRecord)> =
            unapplied.iter().filter_map(|u| u.failure.as_ref().map(|f| (u.id, u.attempts, f))).collect();
        self.record_failures(&failing).await
    }

    /// Remembers why events fail, now and in their history: id, attempts counted so far, and the failure.
    pub(super) async fn record_failures(&mut self, failing: &[(EventId, i32, &FailureRecord)]) -> sqlx::Result<()> {
        if failing.is_empty() {
            return Ok(());
        }
        fn all<'f, T>(failing: &[(EventId, i32, &'f FailureRecord)], of: impl Fn(&'f FailureRecord) -> T) -> Vec<T> {
            failing.iter().map(|(_, _, failure)| of(failure)).collect()
        }
        self.source
            .query(&self.source.statements.record_failures)
            .bind(self.lane)
            .bind(failing.iter().map(|(id, _, _)| *id).collect::<Vec<_>>())
            .bind(all(failing, |f| f.entity.as_str()))
            .bind(all(failing, |f| f.aggregate_type.as_str()))
            .bind(all(failing, |f| f.cause.as_str()))
            .bind(all(failing, |f| f.disposition))
            .bind(all(failing, |f| f.code.as_str()))
            .bind(all(failing, |f| f.message.as_str()))
            .bind(all(failing, |f| f.constraint.as_deref()))
            .bind(all(failing, |f| f.column.as_deref()))
            .bind(all(failing, |f| f.detail.as_deref()))
            .bind(all(failing, |f| f.place.as_deref()))
            .bind(failing.iter().map(|(_, attempts, _)| *attempts).collect::<Vec<_>>())
            .execute(self.session.connection())
            .await
            .map(drop)
    }

    /// Puts held events that nothing blocks any more back to pending, lowest first; returns the ids.
    pub(super) async fn release(
        &mut self,
        aggregates: &[Aggregate],
        pass: &[String],
        at_most: u32,
    ) -> sqlx::Result<Vec<i64>> {
        if aggregates.is_empty() {
            return Ok(Vec::new());
        }
        let each = i64::from(at_most) / aggregates.len() as i64;
        self.source
            .query_scalar(&self.source.statements.release)
            .bind(self.lane)
            .bind(aggregates.iter().map(|a| a.kind.as_str()).collect::<Vec<_>>())
            .bind(aggregates.iter().map(|a| a.id.as_str()).collect::<Vec<_>>())
            .bind(each.max(1))
            .bind(pass)
            .fetch_all(self.session.connection())
            .await
    }

    pub(super) async fn append(
        &mut self,
        key: BatchKey,
        peer: &Identity,
        ids: &[EventId],
        scan: &Scan,
    ) -> Result<DateTime<Utc>, SettleError> {
        let parent = self.newest.as_ref().map(|entry| entry.key);
        self.source
            .query_scalar(&self.source.statements.append)
            .bind(self.lane)
            .bind(key.token)
            .bind(key.nonce)
            .bind(parent.map(|p| p.token))
            .bind(parent.map(|p| p.nonce))
            .bind(&peer.0)
            .bind(ids)
            .bind(scan.position)
            .bind(&scan.passed)
            .bind(scan.mark.as_ref().map(|m| m.sequence))
            .bind(scan.mark.as_ref().map(|m| m.holders.clone()).unwrap_or_default())
            .bind(scan.mark.as_ref().map(Mark::age))
            .fetch_optional(self.session.connection())
            .await?
            .ok_or(SettleError::NotTheNewest)
    }

    /// Gives back the attempts that these events were charged for somebody else's error. One that failed and is passed over
    /// (`pass`) stays failed: a later event of its aggregate may have been applied since.
    pub async fn give_back(&mut self, ids: &[EventId], pass: &[String]) -> sqlx::Result<()> {
        let sql = self.source.names.render(include_str!("../../sql/source/give_back.sql"));
        self.source.query(&sql).bind(ids).bind(pass).execute(self.session.connection()).await.map(drop)
    }
}
