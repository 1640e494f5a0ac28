//! Claiming a lane's oldest events, and the second look at what the claim may have missed.
//!
//! Guarantees: no row lock is waited for; what is locked stays so until the lane's transaction ends. `SKIP LOCKED` alone breaks
//! the order of an aggregate: only a claim together with its [`Recheck`] says what may be applied.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::scan::Mark;
use super::{SourceLane, aggregate};
use crate::event::{Aggregate, Event, EventId, Status};

/// Fewer ids than this are walked over in no time.
const CROWD: i64 = 1000;

/// What was claimed.
#[derive(Debug, Default)]
pub struct Claim {
    /// In order of their ids.
    pub events: Vec<Event>,
    /// Whether the lane may have more pending events than these.
    pub more: bool,
    /// Where the scan began.
    pub(super) from: i64,
    /// Nothing was found, and nobody has locked what could have been: all below `decided` is settled or stopped.
    pub(super) nothing_left: bool,
    /// Where the previous entry would have had it begin.
    pub(super) position_before: i64,
    /// Aggregate types left out.
    pub(super) stopped: Vec<String>,
    /// Every id below was committed or rolled back before the scan began.
    pub(super) decided: i64,
    pub(super) mark: Option<Mark>,
}

/// What the second look found.
#[derive(Debug, Default)]
pub struct Recheck {
    /// Pending events of the scanned range that somebody else had locked.
    pub unlocked: Vec<(Aggregate, EventId)>,
    /// The lowest event of an aggregate that is in retry, held or failed.
    pub blocked: HashMap<Aggregate, (EventId, Status)>,
}

impl SourceLane {
    /// Locks the oldest pending events, and the retries whose time has come if `due`. At most `events`, and about `bytes`.
    pub async fn claim(
        &mut self,
        stopped: &[String],
        full: bool,
        due: bool,
        events: u32,
        bytes: u64,
    ) -> sqlx::Result<Claim> {
        let (decided, mark) = self.decided().await?;
        let from = self.start(stopped, full);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let query = self.source.query(&self.source.statements.claim);
        let query = query.bind(self.lane).bind(from).bind(stopped).bind(i64::from(events)).bind(bytes);
        // Row by row, for each lies in memory twice while it is read.
        let mut rows = query.fetch(self.session.connection());
        let (mut locked, mut claimed): (i64, Vec<Event>) = (0, Vec::new());
        while let Some(row) = rows.try_next().await? {
            locked = row.try_get("locked")?;
            claimed.push(event(&row, Status::Pending)?);
        }
        drop(rows);
        claimed.sort_by_key(|e| e.id);
        let all = locked < i64::from(events) && claimed.len() as i64 == locked;
        let bound = if all { i64::MAX } else { claimed.last().map_or(i64::MAX, |e| e.id.0) };
        if due {
            let used: u64 = claimed.iter().map(|e| e.payload.len() as u64).sum();
            let room = bytes.saturating_sub(i64::try_from(used).unwrap_or(i64::MAX)).max(1);
            let rows = self
                .source
                .query(&self.source.statements.claim_due)
                .bind(self.lane)
                .bind(stopped)
                .bind(i64::from(events))
                .bind(room)
                .bind(bound)
                .fetch_all(self.session.connection())
                .await?;
            for row in &rows {
                claimed.push(event(row, Status::Retry)?);
            }
            claimed.sort_by_key(|e| e.id);
        }
        let position_before = self.newest.as_ref().map_or(i64::MIN, |entry| entry.scan.position);
        Ok(Claim {
            events: claimed,
            more: !all,
            from,
            nothing_left: false,
            position_before,
            stopped: stopped.to_vec(),
            decided,
            mark,
        })
    }

    /// Whether a claim that found nothing is worth an entry: if that can move the lane's start past what it walked over, a crowd of stopped
    /// events, which every look would walk over again while nothing else in the lane is settled. Only if nobody has locked a row there.
    /// In a lane where nothing was ever settled, an entry must first keep the mark by which the next one is decided.
    pub async fn is_worth_an_entry(&mut self, claim: &mut Claim) -> sqlx::Result<bool> {
        if !claim.events.is_empty() {
            return Ok(false);
        }
        if self.last_scan().mark.is_none() && claim.mark.is_some() {
            return Ok(true);
        }
        if claim.decided <= claim.from.saturating_add(CROWD) {
            return Ok(false);
        }
        let rows = self
            .source
            .query(&self.source.statements.pending_ids)
            .bind(self.lane)
            .bind(claim.from)
            .bind(claim.decided.saturating_sub(1))
            .bind(&claim.stopped)
            .fetch_all(self.session.connection())
            .await?;
        claim.nothing_left = rows.is_empty();
        Ok(claim.nothing_left)
    }

    /// Reads again what the claim may have missed. `pass`: aggregate types whose failed events hold nobody back.
    pub async fn recheck(&mut self, claim: &Claim, pass: &[String]) -> sqlx::Result<Recheck> {
        let mut kinds = Vec::new();
        let mut ids = Vec::new();
        let mut seen = HashSet::new();
        for event in &claim.events {
            if seen.insert(&event.aggregate) {
                kinds.push(event.aggregate.kind.as_str());
                ids.push(event.aggregate.id.as_str());
            }
        }
        let pending = claim.events.iter().filter(|e| e.was == Status::Pending).count() as i64;
        let due: Vec<EventId> = claim.events.iter().filter(|e| e.was == Status::Retry).map(|e| e.id).collect();
        let mut highest = claim.events.last().map_or(i64::MIN, |e| e.id.0);
        // Retries alone: the position stays where it was, above what this scan walked again because it was put back or is no
        // longer stopped. Is that there, but locked by somebody?
        if pending == 0 {
            highest = highest.max(claim.position_before.saturating_sub(1));
        }
        let rows = self
            .source
            .query(&self.source.statements.recheck)
            .bind(self.lane)
            .bind(claim.from)
            .bind(highest)
            .bind(&claim.stopped)
            .bind(&kinds)
            .bind(&ids)
            .bind(pass)
            .bind(&due)
            .fetch_all(self.session.connection())
            .await?;
        let mut found = Recheck::default();
        let mut counted = 0;
        for row in &rows {
            let Some(id) = row.try_get::<Option<i64>, _>("id")? else {
                counted = row.try_get("pending")?;
                continue;
            };
            let word: String = row.try_get("status")?;
            let status = self.source.names.status(&word).unwrap_or(Status::Failed);
            found.blocked.insert(aggregate(row)?, (EventId(id), status));
        }
        if counted != pending {
            let claimed: HashSet<EventId> = claim.events.iter().map(|e| e.id).collect();
            let rows = self
                .source
                .query(&self.source.statements.pending_ids)
                .bind(self.lane)
                .bind(claim.from)
                .bind(highest)
                .bind(&claim.stopped)
                .fetch_all(self.session.connection())
                .await?;
            for row in &rows {
                let id = EventId(row.try_get("id")?);
                if !claimed.contains(&id) {
                    found.unlocked.push((aggregate(row)?, id));
                }
            }
        }
        Ok(found)
    }
}

pub(super) fn event(row: &PgRow, was: Status) -> sqlx::Result<Event> {
    Ok(Event {
        id: EventId(row.try_get("id")?),
        event_id: row.try_get("event_id")?,
        aggregate: aggregate(row)?,
        event_type: row.try_get("event_type")?,
        payload: row.try_get("payload")?,
        headers: row.try_get("headers")?,
        created_at: row.try_get("created_at")?,
        attempts: row.try_get("attempts")?,
        failing_for: row
            .try_get::<Option<f64>, _>("failing_for")?
            .map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
        was,
    })
}
