//! Several lanes, leased in one transaction, where each has little to do and nothing is the matter: the statements of a batch are
//! paid for once, not lane by lane.
//!
//! Guarantees for each of its lanes what [`SourceLane`](super::SourceLane) and its claim do, or drops the lane out. Does not
//! know retries, failures, holds and healing: a lane with anything of the kind is for a batch of its own.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::claim::{Claim, event};
use super::lane::{Entry, entry};
use super::scan::{Mark, Scan, last_scan, next_scan, seen};
use super::settle::SettleError;
use super::{PLANS, Source, json_list};
use crate::event::{BatchKey, Identity, Lane, Status, Token};
use crate::session::Session;
use crate::sql::spans;

/// Bytes of a round's payloads at most, as they are stored: small ones, and a compressed one may be fifty times as large.
const STORED: u64 = 1 << 20;
/// How old a round's look at the writers may be before the next one. One look serves all of its lanes; and what was settled since is walked
/// over once or twice in every round, row by row where an open transaction keeps it from being cleaned away.
const MARK_EVERY: Duration = Duration::from_millis(100);

/// One of the lanes.
pub struct Part {
    /// Which.
    pub lane: Lane,
    /// Of the batch: its token was drawn for it.
    pub key: BatchKey,
    /// The newest entry of the log, if there is one.
    pub newest: Option<Entry>,
    /// Somebody put events back below the lane's position.
    pub put_back: bool,
    /// What was claimed here.
    pub claim: Claim,
}

/// Several lanes, locked in one transaction.
pub struct SourceLanes {
    source: Source,
    session: Session,
    /// Those that no other worker has.
    pub locked: Vec<Lane>,
}

/// What is known of locked lanes.
pub struct Known {
    /// Lane by lane.
    pub parts: Vec<Part>,
    /// Who this server is.
    pub identity: Identity,
    /// Paused aggregate types; an empty string pauses all.
    pub paused: Vec<String>,
}

/// Why what was claimed of a lane may not just be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbed {
    /// An event below the last one claimed has come since, or is locked by somebody: mostly over in a moment.
    Late,
    /// An aggregate waits behind an event in retry, held or failed.
    Blocked,
}

impl Source {
    /// Takes the leases of these lanes, as far as no other worker has them. One round trip.
    pub async fn lock_lanes(&self, lanes: &[Lane]) -> sqlx::Result<SourceLanes> {
        let numbers = [("lane_numbers", Lane::list(lanes))];
        let lock = crate::sql::render(&self.statements.lock_lanes, &numbers);
        let (session, rows) = Session::begin(&self.pool, &format!("{} {PLANS} {lock}", self.limits.sql())).await?;
        Ok(SourceLanes { locked: Lane::locked(&rows)?, source: self.clone(), session })
    }
}

fn part(row: &PgRow) -> sqlx::Result<Part> {
    let put_back: Option<i64> = row.try_get("put_back")?;
    Ok(Part {
        lane: row.try_get("lane")?,
        key: BatchKey { token: Token(row.try_get("drawn")?), nonce: Uuid::new_v4() },
        newest: BatchKey::of_row(row)?.map(|key| entry(row, key)).transpose()?,
        put_back: put_back.is_some(),
        claim: Claim::default(),
    })
}

/// Which they are.
pub(crate) fn lanes_of(parts: &[Part]) -> Vec<Lane> {
    parts.iter().map(|part| part.lane).collect()
}

impl SourceLanes {
    /// What has to be known of the locked lanes. In a statement later than the lock: it is as of after that.
    pub async fn read(&mut self) -> sqlx::Result<Known> {
        let rows = self
            .source
            .query(&self.source.statements.read_lanes)
            .bind(&self.locked)
            .fetch_all(self.session.connection())
            .await?;
        let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        Ok(Known {
            parts: rows.iter().map(part).collect::<sqlx::Result<_>>()?,
            identity: Identity(first.try_get("identity")?),
            paused: json_list(first, "paused")?,
        })
    }

    /// Locks the oldest pending events of each lane, at most `events` of each, and of all about `bytes`. The lanes where nothing was claimed,
    /// because an event is large, or all are too large together.
    pub async fn claim(
        &mut self,
        parts: &mut [Part],
        stopped: &[String],
        events: u32,
        bytes: u64,
    ) -> sqlx::Result<HashSet<Lane>> {
        let decided = self.decided(parts).await?;
        for (part, (decided, mark)) in parts.iter_mut().zip(decided) {
            let scan = last_scan(part.newest.as_ref());
            part.claim = Claim {
                from: scan.start(stopped, None),
                position_before: scan.position,
                stopped: stopped.to_vec(),
                decided,
                mark,
                ..Claim::default()
            };
        }
        let query = self.source.query(&self.source.statements.claim_lanes);
        let query = query
            .bind(lanes_of(parts))
            .bind(parts.iter().map(|part| part.claim.from).collect::<Vec<_>>())
            .bind(stopped)
            .bind(i64::from(events))
            .bind(i64::try_from(bytes.min(STORED)).unwrap_or(i64::MAX));
        let mut large = HashSet::new();
        let mut rows = query.fetch(self.session.connection());
        while let Some(row) = rows.try_next().await? {
            let at = usize::try_from(row.try_get::<i64, _>("at")? - 1).unwrap_or(usize::MAX);
            let part = parts.get_mut(at).ok_or_else(|| sqlx::Error::ColumnNotFound(format!("lane {at}")))?;
            if row.try_get::<Option<i64>, _>("id")?.is_none() {
                large.insert(part.lane);
            } else {
                part.claim.events.push(event(&row, Status::Pending)?);
            }
        }
        drop(rows);
        for part in parts {
            part.claim.events.sort_by_key(|event| event.id);
            part.claim.more = part.claim.events.len() >= events as usize;
        }
        Ok(large)
    }

    /// For each lane, up to where every id is committed or rolled back: see [`SourceLane::decided`](super::SourceLane::decided).
    /// One look at the writers serves all lanes whose last one is old enough.
    async fn decided(&mut self, parts: &[Part]) -> sqlx::Result<Vec<(i64, Option<Mark>)>> {
        let Some(sequence) = self.source.sequence.clone() else {
            return Ok(parts.iter().map(|_| (i64::MIN, None)).collect());
        };
        let scans: Vec<Scan> = parts.iter().map(|part| last_scan(part.newest.as_ref())).collect();
        let now = match scans.iter().any(|scan| scan.mark_is_older_than(MARK_EVERY)) {
            true => Some(seen(&self.source, &sequence, &mut self.session).await?),
            false => None,
        };
        let decided = scans.into_iter().map(|scan| match &now {
            // Also those that are soon to be renewed, so that one look serves most lanes the next time too.
            Some(now) if scan.mark_is_older_than(MARK_EVERY / 2) => {
                let (decided, mark) = scan.decide(now.clone());
                (decided, Some(mark))
            }
            _ => (scan.position, scan.mark),
        });
        Ok(decided.collect())
    }

    /// Reads again what the claim may have missed: the lanes where what was claimed may not just be applied. `stopped`: the types that
    /// it left out; `pass`: aggregate types whose failed events hold nobody back.
    pub async fn disturbed(
        &mut self,
        parts: &[Part],
        stopped: &[String],
        pass: &[String],
    ) -> sqlx::Result<HashMap<Lane, Disturbed>> {
        let mut aggregates = HashSet::new();
        for part in parts {
            aggregates.extend(part.claim.events.iter().map(|event| (part.lane, &event.aggregate)));
        }
        let rows = self
            .source
            .query(&self.source.statements.disturbed_lanes)
            .bind(lanes_of(parts))
            .bind(parts.iter().map(|part| part.claim.from).collect::<Vec<_>>())
            .bind(parts.iter().map(|part| part.claim.events.last().map_or(i64::MIN, |e| e.id.0)).collect::<Vec<_>>())
            .bind(parts.iter().map(|part| part.claim.events.len() as i64).collect::<Vec<_>>())
            .bind(stopped)
            .bind(aggregates.iter().map(|(lane, _)| *lane).collect::<Vec<_>>())
            .bind(aggregates.iter().map(|(_, aggregate)| aggregate.kind.as_str()).collect::<Vec<_>>())
            .bind(aggregates.iter().map(|(_, aggregate)| aggregate.id.as_str()).collect::<Vec<_>>())
            .bind(pass)
            .fetch_all(self.session.connection())
            .await?;
        let disturbed = |blocked| if blocked { Disturbed::Blocked } else { Disturbed::Late };
        rows.iter().map(|row| Ok((row.try_get("lane")?, disturbed(row.try_get("blocked")?)))).collect()
    }

    /// Marks every claimed event as processed, and appends each lane's entry; `COMMIT` is the caller's. Returns the source's clock.
    pub async fn settle(&mut self, parts: &[Part], peer: &Identity) -> Result<DateTime<Utc>, SettleError> {
        let events = || parts.iter().flat_map(|part| &part.claim.events);
        let ids: Vec<_> = events().map(|event| event.id).collect();
        let done = self
            .source
            .query(&self.source.statements.settle_processed)
            .bind(&ids)
            .bind(events().map(|event| event.created_at).min())
            .bind(events().map(|event| event.created_at).max())
            .execute(self.session.connection())
            .await?;
        if done.rows_affected() != ids.len() as u64 {
            return Err(SettleError::Vanished { expected: ids.len() as u64, found: done.rows_affected() });
        }
        let scans: Vec<_> = parts.iter().map(|part| next_scan(&part.claim, None)).collect();
        let parents: Vec<_> = parts.iter().map(|part| part.newest.as_ref().map(|entry| entry.key)).collect();
        let (skipped, counts) = spans(parts.iter().map(|part| part.claim.events.len()));
        let holders = scans.iter().map(|scan| {
            let holders = scan.mark.as_ref().map(|mark| mark.holders.as_slice()).unwrap_or_default();
            serde_json::Value::from(holders).to_string()
        });
        let rows: Vec<DateTime<Utc>> = self
            .source
            .query_scalar(&self.source.statements.append_lanes)
            .bind(lanes_of(parts))
            .bind(parts.iter().map(|part| part.key.token).collect::<Vec<_>>())
            .bind(parts.iter().map(|part| part.key.nonce).collect::<Vec<_>>())
            .bind(parents.iter().map(|parent| parent.map(|key| key.token)).collect::<Vec<_>>())
            .bind(parents.iter().map(|parent| parent.map(|key| key.nonce)).collect::<Vec<_>>())
            .bind(&peer.0)
            .bind(&ids)
            .bind(skipped)
            .bind(counts)
            .bind(scans.iter().map(|scan| scan.position).collect::<Vec<_>>())
            .bind(scans.first().map(|scan| scan.passed.clone()).unwrap_or_default())
            .bind(scans.iter().map(|scan| scan.mark.as_ref().map(|mark| mark.sequence)).collect::<Vec<_>>())
            .bind(holders.collect::<Vec<_>>())
            .bind(scans.iter().map(|scan| scan.mark.as_ref().map(Mark::age)).collect::<Vec<_>>())
            .fetch_all(self.session.connection())
            .await?;
        match rows.first() {
            Some(at) if rows.len() == parts.len() => Ok(*at),
            _ => Err(SettleError::NotTheNewest),
        }
    }

    /// `COMMIT`; gives the leases back.
    pub async fn commit(self) -> sqlx::Result<()> {
        self.session.commit().await
    }

    /// `ROLLBACK`; gives the leases back.
    pub async fn release_leases(self) {
        self.session.rollback().await;
    }
}
