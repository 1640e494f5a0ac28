//! Several lanes of the target, locked in one transaction: what is applied takes effect for all of them, or for none.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::Row;

use super::{Hand, Target};
use crate::event::{BatchKey, Event, Identity, Lane};
use crate::session::Session;
use crate::sql::spans;

/// How long a statement may take while several lanes wait with it; a tenth of it for a lock: less than `deadlock_timeout`.
const PATIENCE: Duration = Duration::from_secs(1);

/// Several locked lanes.
pub struct TargetLanes {
    target: Target,
    session: Session,
    /// The newest entry of each locked lane's log, and the source that it names. A lane that has none is not in it.
    pub newest: HashMap<Lane, (BatchKey, Identity)>,
    /// Who this server is.
    pub identity: Identity,
}

/// One lane's part of what takes effect.
pub struct LaneEntry<'a> {
    /// Which.
    pub lane: Lane,
    /// The batch.
    pub key: BatchKey,
    /// Applied, all of them.
    pub applied: &'a [Event],
}

impl Target {
    /// Locks the lanes' rows, as far as nobody else has, then, in a later statement, reads the newest entries. One round trip: the read is
    /// planned anew each time, which costs no more than another one, and goes by how large the log is by now. What follows has little
    /// patience, for many lanes wait with it. `own_sql`: the operator wrote what will be applied; else, for few events, a plan costs more than
    /// it is good for, and is made once.
    pub async fn lock_lanes(&self, lanes: &[Lane], own_sql: bool) -> sqlx::Result<TargetLanes> {
        let plans = if own_sql { "" } else { "SET LOCAL plan_cache_mode = force_generic_plan;" };
        let patience = (self.limits.deadline / 3).min(PATIENCE).as_millis().max(1);
        let limits = format!(
            "SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {patience}; {plans}",
            (patience / 10).max(1)
        );
        let numbers = [("lane_numbers", Lane::list(lanes))];
        let script = self.opening(&self.statements.lock_lanes, &self.statements.read_lanes, &numbers, &limits);
        let (session, rows) = Session::begin(&self.pool, &script).await?;
        // Rows of two statements: of those that could be locked, and of all.
        let (locked, read) = rows.split_at(rows.len().saturating_sub(lanes.len()));
        let locked = Lane::locked(locked)?;
        let first = read.first().ok_or(sqlx::Error::RowNotFound)?;
        let identity = Identity(first.try_get("identity")?);
        let mut newest = HashMap::new();
        for row in read {
            let lane = row.try_get("lane")?;
            if let Some(key) = BatchKey::of_row(row)?.filter(|_| locked.contains(&lane)) {
                newest.insert(lane, (key, Identity(row.try_get("peer")?)));
            }
        }
        Ok(TargetLanes { target: self.clone(), session, newest, identity })
    }
}

impl TargetLanes {
    /// For statements that apply events here.
    pub fn hand(&mut self) -> Hand<'_> {
        Hand { session: &mut self.session, prepared: self.target.prepared }
    }

    /// Appends each lane's entry. False: one of the parents is not the newest any more, or a token is too old.
    pub async fn append(&mut self, entries: &[LaneEntry<'_>], peer: &Identity) -> sqlx::Result<bool> {
        let parents: Vec<_> = entries.iter().map(|entry| self.newest.get(&entry.lane).map(|(key, _)| *key)).collect();
        let events = || entries.iter().flat_map(|entry| entry.applied);
        let (skipped, counts) = spans(entries.iter().map(|entry| entry.applied.len()));
        let done = self
            .target
            .query(&self.target.statements.append_lanes)
            .bind(self.target.source_id)
            .bind(entries.iter().map(|entry| entry.lane).collect::<Vec<_>>())
            .bind(entries.iter().map(|entry| entry.key.token).collect::<Vec<_>>())
            .bind(entries.iter().map(|entry| entry.key.nonce).collect::<Vec<_>>())
            .bind(parents.iter().map(|parent| parent.map(|key| key.token)).collect::<Vec<_>>())
            .bind(parents.iter().map(|parent| parent.map(|key| key.nonce)).collect::<Vec<_>>())
            .bind(&peer.0)
            .bind(events().map(|event| event.id).collect::<Vec<_>>())
            .bind(events().map(|event| event.event_id).collect::<Vec<_>>())
            .bind(events().map(|event| event.aggregate.kind.as_str()).collect::<Vec<_>>())
            .bind(events().map(|event| event.aggregate.id.as_str()).collect::<Vec<_>>())
            .bind(skipped)
            .bind(counts)
            .execute(self.session.connection())
            .await?;
        Ok(done.rows_affected() == entries.len() as u64)
    }

    /// `COMMIT`: from here on all of it has taken effect. An error tells nothing about whether it has.
    pub async fn commit(self) -> sqlx::Result<()> {
        self.session.commit().await
    }

    /// `ROLLBACK`.
    pub async fn abandon(self) {
        self.session.rollback().await;
    }
}
