//! Healing's steps on the source. Each runs in the transaction that locked the lane; nothing of an earlier step is used.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::Row;

use super::{FailureRecord, Scan, SettleError, SourceLane};
use crate::event::{Aggregate, BatchKey, EventId, Identity, Token};

/// An entry of the target's log that the source forgot.
#[derive(Debug, Clone)]
pub struct ForgottenBatch {
    /// Token and nonce.
    pub key: BatchKey,
    /// What took effect on the target, or was given up there.
    pub events: Vec<ForgottenEvent>,
}

/// One event of it.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of the target's log")]
pub struct ForgottenEvent {
    pub id: EventId,
    pub event_id: uuid::Uuid,
    pub aggregate: Aggregate,
    pub given_up: bool,
}

/// What putting a batch back did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutBack {
    /// Events that are pending again.
    pub events: u64,
    /// Events of the batch that are no longer in the outbox.
    pub missing: u64,
}

/// What settling a forgotten batch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settled {
    /// Events that got the outcome that the target told.
    pub events: u64,
    /// Events that the outbox does not have.
    pub divergent: u64,
    /// Earlier events of their aggregates that are `failed` now.
    pub overtaken: u64,
}

impl SourceLane {
    /// The token of the newest entry but `n`, `None` if the log is not that long.
    pub async fn token_of(&mut self, n: i64) -> sqlx::Result<Option<Token>> {
        let sql = self.source.names.render(include_str!("../../sql/source/token_of.sql"));
        self.source.query_scalar(&sql).bind(self.lane).bind(n).fetch_optional(self.session.connection()).await
    }

    /// The lane's log from a token on, newest first.
    pub async fn log(&mut self, from: Token) -> sqlx::Result<Vec<(BatchKey, DateTime<Utc>)>> {
        let sql = self.source.names.render(include_str!("../../sql/source/log_entries.sql"));
        let rows = self.source.query(&sql).bind(self.lane).bind(from).fetch_all(self.session.connection()).await?;
        rows.iter()
            .map(|row| {
                let key = BatchKey { token: Token(row.try_get("token")?), nonce: row.try_get("nonce")? };
                Ok((key, row.try_get("settled_at")?))
            })
            .collect()
    }

    /// Retention's mark: the newest token deleted on purpose, and the time of its entry.
    pub async fn mark(&mut self) -> sqlx::Result<Option<(Token, DateTime<Utc>)>> {
        let sql = self.source.names.render(include_str!("../../sql/source/mark.sql"));
        let row = self.source.query(&sql).bind(self.lane).fetch_optional(self.session.connection()).await?;
        row.map(|row| Ok((Token(row.try_get("token")?), row.try_get("until")?))).transpose()
    }

    /// Puts the newest entry back: what it processed is pending again, and the entry leaves the log. Nothing is changed when
    /// events of it are no longer in the outbox (the caller rolls back).
    pub async fn put_back_newest(&mut self) -> sqlx::Result<PutBack> {
        let Some(newest) = self.newest.clone() else { return Ok(PutBack { events: 0, missing: 0 }) };
        let sql = self.source.names.render(include_str!("../../sql/source/entry_ids.sql"));
        let ids: Vec<i64> = self
            .source
            .query_scalar(&sql)
            .bind(self.lane)
            .bind(newest.key.token)
            .fetch_one(self.session.connection())
            .await?;
        let sql = self.source.names.render(include_str!("../../sql/source/heal_put_back.sql"));
        let row = self.source.query(&sql).bind(&ids).fetch_one(self.session.connection()).await?;
        let present: i64 = row.try_get("present")?;
        let events: i64 = row.try_get("put_back")?;
        let lowest: Option<i64> = row.try_get("lowest")?;
        let sql = self.source.names.render(include_str!("../../sql/source/heal_remove_entry.sql"));
        self.source
            .query(&sql)
            .bind(self.lane)
            .bind(newest.key.token)
            .bind(newest.key.nonce)
            .bind(lowest)
            .execute(self.session.connection())
            .await?;
        Ok(PutBack { events: events.unsigned_abs(), missing: (ids.len() as i64 - present).unsigned_abs() })
    }

    /// Settles a batch that the source forgot, with all that settling means, and appends its entry with the same key.
    pub async fn settle_forgotten(
        &mut self,
        batch: &ForgottenBatch,
        peer: &Identity,
        pass: &[String],
        release_at_most: u32,
    ) -> Result<Settled, SettleError> {
        let settled = self.settle_known(batch).await?;
        let divergent: Vec<&ForgottenEvent> = batch.events.iter().filter(|e| !settled.contains(&e.id)).collect();
        if !divergent.is_empty() {
            self.note_divergent(batch.key.token, &divergent).await?;
        }
        let given_up: Vec<(EventId, String)> = batch
            .events
            .iter()
            .filter(|e| e.given_up && settled.contains(&e.id))
            .map(|e| (e.id, e.aggregate.kind.clone()))
            .collect();
        let message = "given up after its last attempt, before the source went back in time";
        self.note_failures(&given_up, "given_up", message).await?;
        let overtaken = self.fail_overtaken(batch, &settled, pass).await?;
        let mut aggregates: Vec<Aggregate> = batch.events.iter().map(|e| e.aggregate.clone()).collect();
        aggregates.sort();
        aggregates.dedup();
        let released = self.release(&aggregates, pass, release_at_most).await?;
        let before = self.last_scan();
        let scan = Scan { position: before.position.min(released.into_iter().min().unwrap_or(i64::MAX)), ..before };
        // Only those of the target's events that are this outbox's: a later put-back must not touch others by their ids.
        let ids: Vec<EventId> =
            batch.events.iter().filter(|e| settled.contains(&e.id) && !e.given_up).map(|e| e.id).collect();
        self.append(batch.key, peer, &ids, &scan).await?;
        Ok(Settled { events: settled.len() as u64, divergent: divergent.len() as u64, overtaken })
    }

    async fn settle_known(&mut self, batch: &ForgottenBatch) -> sqlx::Result<HashSet<EventId>> {
        let sql = self.source.names.render(include_str!("../../sql/source/heal_settle.sql"));
        let settled: Vec<EventId> = self
            .source
            .query_scalar(&sql)
            .bind(batch.events.iter().map(|e| e.id).collect::<Vec<_>>())
            .bind(batch.events.iter().map(|e| e.event_id).collect::<Vec<_>>())
            .bind(batch.events.iter().map(|e| e.given_up).collect::<Vec<_>>())
            .fetch_all(self.session.connection())
            .await?;
        let settled: HashSet<EventId> = settled.into_iter().collect();
        let applied: Vec<EventId> =
            batch.events.iter().filter(|e| !e.given_up && settled.contains(&e.id)).map(|e| e.id).collect();
        self.forget_failures(&applied).await?;
        if self.source.delete_on_settle {
            let sql = self.source.names.render(include_str!("../../sql/source/heal_delete.sql"));
            self.source.query(&sql).bind(&applied).execute(self.session.connection()).await?;
        }
        Ok(settled)
    }

    async fn note_divergent(&mut self, token: Token, events: &[&ForgottenEvent]) -> sqlx::Result<()> {
        let sql = self.source.names.render(include_str!("../../sql/source/heal_divergent.sql"));
        self.source
            .query(&sql)
            .bind(self.lane)
            .bind(token)
            .bind(events.iter().map(|e| e.id).collect::<Vec<_>>())
            .bind(events.iter().map(|e| e.event_id).collect::<Vec<_>>())
            .bind(events.iter().map(|e| e.aggregate.kind.as_str()).collect::<Vec<_>>())
            .bind(events.iter().map(|e| e.aggregate.id.as_str()).collect::<Vec<_>>())
            .execute(self.session.connection())
            .await?;
        Ok(())
    }

    async fn fail_overtaken(
        &mut self,
        batch: &ForgottenBatch,
        settled: &HashSet<EventId>,
        pass: &[String],
    ) -> sqlx::Result<u64> {
        let mut highest: HashMap<&Aggregate, i64> = HashMap::new();
        for event in batch.events.iter().filter(|e| !e.given_up && settled.contains(&e.id)) {
            let entry = highest.entry(&event.aggregate).or_insert(i64::MIN);
            *entry = (*entry).max(event.id.0);
        }
        let sql = self.source.names.render(include_str!("../../sql/source/heal_overtaken.sql"));
        let rows = self
            .source
            .query(&sql)
            .bind(self.lane)
            .bind(highest.keys().map(|a| a.kind.as_str()).collect::<Vec<_>>())
            .bind(highest.keys().map(|a| a.id.as_str()).collect::<Vec<_>>())
            .bind(highest.values().copied().collect::<Vec<_>>())
            .bind(pass)
            .fetch_all(self.session.connection())
            .await?;
        let failed = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        let failures = failed.collect::<sqlx::Result<Vec<(EventId, String)>>>()?;
        let message = "a later event of its aggregate was applied before the source went back in time";
        self.note_failures(&failures, "overtaken", message).await?;
        Ok(rows.len() as u64)
    }

    /// Failures that no error of the target tells of, by id and aggregate type.
    async fn note_failures(
        &mut self,
        events: &[(EventId, String)],
        code: &'static str,
        message: &str,
    ) -> sqlx::Result<()> {
        let failure = |kind: &String| FailureRecord {
            entity: String::new(),
            aggregate_type: kind.clone(),
            cause: code.to_owned(),
            disposition: code,
            code: code.to_owned(),
            message: message.to_owned(),
            constraint: None,
            column: None,
            detail: None,
            place: None,
        };
        let failures: Vec<FailureRecord> = events.iter().map(|(_, kind)| failure(kind)).collect();
        let failing: Vec<_> = events.iter().zip(&failures).map(|((id, _), failure)| (*id, 0, failure)).collect();
        self.record_failures(&failing).await
    }
}
