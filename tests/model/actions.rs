//! What can happen next, in any state.

use stateright::{Model, Property};

use crate::properties;
use crate::rules::Rule;
use crate::state::{At, State, Status, Verdict, Visit};
use crate::visit::Next;
use crate::world::World;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A writer inserts an event of this aggregate, and commits at once if none stay open.
    Insert(u8),
    CommitWriter(u8),
    RollBackWriter(u8),
    /// An idle worker comes to the lane.
    Come {
        full: bool,
        due: bool,
    },
    /// The n-th visit's next statement.
    Next(usize),
    /// Its last look at the writers is young enough.
    ClaimWithoutALook(usize),
    /// It found nothing, and moves the start on.
    Advance(usize),
    /// It applies what it claimed, of which one is refused or none, and appends.
    Append(usize, Option<(usize, Verdict)>),
    /// It ends here: its process dies, or a session or a commit's answer is lost. Both transactions are rolled back.
    Crash(usize),
    EndSourceSession(usize),
    ReplicateSource,
    ReplicateTarget,
    FailSourceOver,
    FailTargetOver,
    LockRow(u8),
    UnlockRow,
    LookBeforeReplay(u8),
    Replay,
    Skip(u8),
    GiveBack(u8),
    Retire,
    Forget,
}

impl World {
    /// Whom a look (`look.sql`), a full look, or a comparison of the logs' ends sends here.
    fn offer_workers(&self, state: &State, actions: &mut Vec<Action>) {
        if state.visits.len() >= self.workers {
            return;
        }
        let newest = state.source.newest();
        let start = match self.keeps(Rule::PositionInLog) {
            true => newest.scan.position.min(state.source.put_back.unwrap_or(u8::MAX)),
            false => state.position,
        };
        let pending = |is: fn(u8, u8) -> bool| {
            state.source.rows.iter().any(|row| row.status == Status::Pending && is(row.id, start))
        };
        let (here, below) = (pending(|id, start| id >= start), pending(|id, start| id < start));
        let differs = newest.key != state.target.newest();
        // A slow look sends somebody to move the start past what is there in vain.
        let in_vain = newest.scan.mark.is_some() && newest.scan.position <= state.source.ids;
        let advance = state.left.advances > 0 && in_vain;
        if here || differs || advance {
            actions.push(Action::Come { full: false, due: false });
        }
        if below {
            actions.push(Action::Come { full: true, due: false });
        }
        if state.source.rows.iter().any(|row| row.status == Status::Retry) {
            actions.push(Action::Come { full: false, due: true });
        }
    }

    fn offer_steps(&self, state: &State, visit: &Visit, at: usize, actions: &mut Vec<Action>) {
        actions.push(Action::Crash(at));
        if visit.source && state.left.ends > 0 && visit.at != At::Peeked {
            actions.push(Action::EndSourceSession(at));
        }
        match visit.at {
            At::Rechecked => {
                actions.push(Action::Append(at, None));
                if state.left.refusals > 0 {
                    let todo = visit.claim.iter().enumerate().filter(|(_, c)| c.verdict == Verdict::Todo);
                    for (n, _) in todo {
                        actions.push(Action::Append(at, Some((n, Verdict::Retry))));
                        actions.push(Action::Append(at, Some((n, Verdict::Failed))));
                    }
                }
            }
            At::BothLocked if self.positions && self.late_writers => {
                actions.push(Action::Next(at));
                actions.push(Action::ClaimWithoutALook(at));
            }
            At::DueClaimed if visit.claim.is_empty() => actions.push(Action::Advance(at)),
            _ => actions.push(Action::Next(at)),
        }
    }

    fn offer_others(&self, state: &State, actions: &mut Vec<Action>) {
        let left = &state.left;
        for aggregate in 0..self.aggregates {
            if left.events > 0 {
                actions.push(Action::Insert(aggregate));
            }
            if state.writers[usize::from(aggregate)].is_some() {
                actions.push(Action::CommitWriter(aggregate));
                actions.push(Action::RollBackWriter(aggregate));
            }
        }
        if left.source_failovers > 0 {
            actions.extend([Action::ReplicateSource, Action::FailSourceOver]);
        }
        if left.target_failovers > 0 {
            actions.extend([Action::ReplicateTarget, Action::FailTargetOver]);
        }
        if state.dba.is_some() {
            actions.push(Action::UnlockRow);
        }
        if state.replay.is_some() {
            actions.push(Action::Replay);
        }
        if left.retentions > 0 {
            actions.extend([Action::Retire, Action::Forget]);
        }
        for (at, row) in (0u8..).zip(&state.source.rows) {
            let failing = matches!(row.status, Status::Failed | Status::Retry);
            if left.dba_locks > 0 && state.dba.is_none() && matches!(row.status, Status::Pending | Status::Retry) {
                actions.push(Action::LockRow(at));
            }
            if left.replays > 0 && state.replay.is_none() && (failing || row.status == Status::Skipped) {
                actions.push(Action::LookBeforeReplay(at));
            }
            if left.skips > 0 && failing {
                actions.push(Action::Skip(at));
            }
            if left.give_backs > 0 && failing {
                actions.push(Action::GiveBack(at));
            }
        }
    }

    fn step(&self, state: &mut State, at: usize, of: impl FnOnce(&mut State, &Visit) -> Next) -> Option<()> {
        let visit = state.visits.remove(at);
        match of(state, &visit) {
            Next::On(next) => state.visits.push(next),
            Next::Over => {}
            Next::Blocked => return None,
        }
        Some(())
    }

    fn act(&self, state: &mut State, action: Action) -> Option<()> {
        let row = |state: &State, at: u8| state.source.rows.get(usize::from(at)).copied();
        match action {
            Action::Insert(aggregate) => {
                self.insert(state, aggregate)?;
                if self.late_writers { Some(()) } else { self.commit_writer(state, aggregate) }
            }
            Action::CommitWriter(aggregate) => self.commit_writer(state, aggregate),
            Action::RollBackWriter(aggregate) => state.writers[usize::from(aggregate)].take().map(drop),
            Action::Come { full, due } => {
                let visit = match self.keeps(Rule::ReadAfterLock) {
                    true => self.lock_source(state, full, due, None)?,
                    false => self.peek(state, full, due),
                };
                state.visits.push(visit);
                Some(())
            }
            Action::Next(at) => self.step(state, at, |state, visit| self.next(state, visit)),
            Action::ClaimWithoutALook(at) => {
                self.step(state, at, |state, visit| self.claim_without_a_look(state, visit))
            }
            Action::Advance(at) => self.step(state, at, |state, visit| self.advance(state, visit)),
            Action::Append(at, refused) => self.step(state, at, |state, visit| self.append(state, visit, refused)),
            Action::Crash(at) => {
                let visit = state.visits.remove(at);
                if visit.at == At::TargetCommitted && visit.source {
                    state.left.crashes = state.left.crashes.checked_sub(1)?;
                }
                Some(())
            }
            Action::EndSourceSession(at) => self.end_source_session(state, at),
            Action::ReplicateSource => self.replicate_source(state),
            Action::ReplicateTarget => self.replicate_target(state),
            Action::FailSourceOver => self.fail_source_over(state),
            Action::FailTargetOver => self.fail_target_over(state),
            Action::LockRow(at) => self.lock_row(state, row(state, at)?.id),
            Action::UnlockRow => state.dba.take().map(drop),
            Action::LookBeforeReplay(at) => self.look_before_replay(state, row(state, at)?),
            Action::Replay => self.replay(state),
            Action::Skip(at) => self.skip(state, row(state, at)?),
            Action::GiveBack(at) => self.give_back(state, row(state, at)?),
            Action::Retire => self.retire(state),
            Action::Forget => self.forget(state),
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.initial()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (at, visit) in state.visits.iter().enumerate() {
            self.offer_steps(state, visit, at, actions);
        }
        self.offer_workers(state, actions);
        self.offer_others(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.act(&mut next, action)?;
        Some(next.canonical())
    }

    fn properties(&self) -> Vec<Property<World>> {
        properties::of(self)
    }
}
