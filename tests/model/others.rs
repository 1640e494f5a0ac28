//! What is not a worker: writers, failovers, somebody who ends sessions or locks rows, operators, retention.

use crate::rules::Rule;
use crate::state::{At, Event, Id, Replay, Row, State, Status, has};
use crate::world::World;

impl World {
    /// A writer's insert: it takes the table's lock, then draws the id.
    pub(crate) fn insert(&self, state: &mut State, aggregate: u8) -> Option<()> {
        if state.left.events == 0 || state.writers[usize::from(aggregate)].is_some() {
            return None;
        }
        state.left.events -= 1;
        let event = Event::try_from(state.aggregates.len()).unwrap_or(Event::MAX);
        state.aggregates.push(aggregate);
        state.source.ids += 1;
        state.writers[usize::from(aggregate)] = Some((state.source.ids, event));
        Some(())
    }

    pub(crate) fn commit_writer(&self, state: &mut State, aggregate: u8) -> Option<()> {
        let (id, event) = state.writers[usize::from(aggregate)].take()?;
        state.source.rows.push(Row { id, event, aggregate, status: Status::Pending, overtaken: false });
        state.source.rows.sort_by_key(|row| row.id);
        Some(())
    }

    /// The source's replica, which lags, takes over: or the branch that was left before comes back.
    pub(crate) fn fail_source_over(&self, state: &mut State) -> Option<()> {
        state.left.source_failovers = state.left.source_failovers.checked_sub(1)?;
        let replica = state.source_replica.take()?;
        let left = std::mem::replace(&mut state.source, *replica);
        state.source_replica = (state.left.source_failovers > 0).then(|| Box::new(left));
        if state.source_replica.is_none() {
            state.target.log.iter_mut().for_each(|entry| entry.old = false);
        }
        state.visits.iter_mut().for_each(|visit| visit.source = false);
        state.visits.retain(|visit| visit.at != At::Peeked);
        state.writers.iter_mut().for_each(|writer| *writer = None);
        state.dba = None;
        Some(())
    }

    pub(crate) fn fail_target_over(&self, state: &mut State) -> Option<()> {
        state.left.target_failovers = state.left.target_failovers.checked_sub(1)?;
        let replica = state.target_replica.take()?;
        let left = std::mem::replace(&mut state.target, *replica);
        state.target_replica = (state.left.target_failovers > 0).then(|| Box::new(left));
        state.visits.iter_mut().for_each(|visit| visit.target = false);
        state.target_went_back = true;
        Some(())
    }

    pub(crate) fn replicate_source(&self, state: &mut State) -> Option<()> {
        state.source_replica = Some(Box::new(state.source_replica.take().map(|_| state.source.clone())?));
        if state.left.retentions > 0 {
            state.target.log.iter_mut().for_each(|entry| entry.old = true);
        }
        Some(())
    }

    pub(crate) fn replicate_target(&self, state: &mut State) -> Option<()> {
        state.target_replica = Some(Box::new(state.target_replica.take().map(|_| state.target.clone())?));
        Some(())
    }

    /// Its session on the source is ended by somebody else: it does not know.
    pub(crate) fn end_source_session(&self, state: &mut State, visit: usize) -> Option<()> {
        state.left.ends = state.left.ends.checked_sub(1)?;
        state.visits[visit].source.then(|| state.visits[visit].source = false)
    }

    /// A row that a relay has locked cannot be.
    pub(crate) fn lock_row(&self, state: &mut State, id: Id) -> Option<()> {
        let claimed = state.visits.iter().any(|visit| visit.source && visit.claim.iter().any(|c| c.id == id));
        if claimed {
            return None;
        }
        state.left.dba_locks = state.left.dba_locks.checked_sub(1)?;
        state.dba = Some(id);
        Some(())
    }

    /// An operator's look, without a lock: the lane's newest entry, then whether a newer event was applied.
    pub(crate) fn look_before_replay(&self, state: &mut State, row: Row) -> Option<()> {
        state.left.replays = state.left.replays.checked_sub(1)?;
        let head = state.source.newest().key;
        if self.keeps(Rule::ReplayLooks) && newer_applied(state, row, None) {
            return None;
        }
        state.replay = Some(Replay { event: row.event, head });
        Some(())
    }

    /// `Operator::replay` under the lane's lock.
    pub(crate) fn replay(&self, state: &mut State) -> Option<()> {
        let Replay { event, head } = state.replay.take()?;
        let Some(row) = state.source.rows.iter().find(|row| row.event == event).copied() else { return Some(()) };
        if self.is_leased(state) || state.dba == Some(row.id) {
            return None;
        }
        let known = state.source.log.iter().any(|entry| entry.key == head);
        if !known && self.keeps(Rule::ReplayKnowsItsHead) {
            return Some(());
        }
        if self.keeps(Rule::ReplayLooksAgain) && newer_applied(state, row, Some(head.token)) {
            return Some(());
        }
        if !matches!(row.status, Status::Failed | Status::Retry | Status::Skipped) {
            return Some(());
        }
        let row = state.source.row(row.id)?;
        (row.status, row.overtaken) = (Status::Pending, false);
        let id = row.id;
        if self.positions && self.keeps(Rule::AnnounceReplay) {
            state.source.announce(id);
        }
        Some(())
    }

    /// `Operator::skip`.
    pub(crate) fn skip(&self, state: &mut State, row: Row) -> Option<()> {
        if self.is_leased(state) || state.dba == Some(row.id) {
            return None;
        }
        state.left.skips = state.left.skips.checked_sub(1)?;
        let status = state.source.row(row.id)?;
        (status.status, status.overtaken) = (Status::Skipped, false);
        let released = self.release(&mut state.source, 1 << row.aggregate);
        if let Some(lowest) = released.filter(|_| self.positions) {
            state.source.announce(lowest);
        }
        Some(())
    }

    /// `SourceLane::give_back`: what some process was told to do a while ago.
    pub(crate) fn give_back(&self, state: &mut State, row: Row) -> Option<()> {
        let guarded = self.keeps(Rule::GiveBackNotOvertaken) && row.overtaken;
        let failed = row.status == Status::Failed && !self.pass && !guarded;
        if self.is_leased(state) || state.dba == Some(row.id) || !has(state.charged, row.event) || !failed {
            return None;
        }
        state.left.give_backs = state.left.give_backs.checked_sub(1)?;
        if state.left.give_backs == 0 {
            state.charged = 0;
        }
        let row = state.source.row(row.id)?;
        (row.status, row.overtaken) = (Status::Retry, false);
        Some(())
    }

    /// `SourceLane::retire`: the oldest entry with its processed events, once the target's replica cannot be older than it.
    pub(crate) fn retire(&self, state: &mut State) -> Option<()> {
        if self.is_leased(state) || state.source.log.len() < 2 {
            return None;
        }
        let oldest = state.source.log[0];
        // The next one must be as old: what is newer may be put back, and needs one that both remember.
        let anchor = state.source.log[usize::from(self.keeps(Rule::KeepAnAnchor))].key;
        let is_safe = |log: &[crate::state::Applied]| log.iter().any(|entry| entry.key == anchor);
        let there = !self.keeps(Rule::RetireWhatTheTargetHas) || is_safe(&state.target.log);
        if !there || !state.target_replica.as_ref().is_none_or(|replica| is_safe(&replica.log)) {
            return None;
        }
        state.left.retentions = state.left.retentions.checked_sub(1)?;
        let gone = |row: &Row| has(oldest.ids, row.id) && row.status == Status::Processed;
        state.source.rows.retain(|row| !gone(row));
        state.source.log.remove(0);
        if self.keeps(Rule::LeaveMark) {
            state.source.forgotten = oldest.key.token;
        }
        Some(())
    }

    /// `retention::forget_on_target`: what both sides have had for longer than the source's replica lags.
    pub(crate) fn forget(&self, state: &mut State) -> Option<()> {
        if state.target.log.len() < 2 {
            return None;
        }
        let oldest = state.target.log[0].key;
        let anchor = &state.target.log[usize::from(self.keeps(Rule::KeepAnAnchor))];
        let both = |replica: &crate::state::Source| replica.log.iter().any(|entry| entry.key == anchor.key);
        let is_old = match self.keeps(Rule::ForgetWhatBothHadLong) {
            true => both(&state.source) && state.source_replica.as_ref().is_none_or(|replica| both(replica)),
            false if state.source.newest().key != state.target.newest() => false,
            false => state.source_replica.is_none() || anchor.old,
        };
        if !is_old {
            return None;
        }
        state.left.retentions = state.left.retentions.checked_sub(1)?;
        state.target.log.remove(0);
        if self.keeps(Rule::LeaveMark) {
            state.target.forgotten = oldest.token;
        }
        Some(())
    }
}

/// Whether a newer event of its aggregate was applied; `since`: by the batches after this token.
fn newer_applied(state: &State, row: Row, since: Option<u8>) -> bool {
    let settled = |id: Id| {
        since.is_none_or(|token| state.source.log.iter().any(|entry| entry.key.token > token && has(entry.ids, id)))
    };
    let newer =
        |other: &&Row| other.aggregate == row.aggregate && other.id > row.id && other.status == Status::Processed;
    state.source.rows.iter().filter(newer).any(|other| settled(other.id))
}
