//! A worker's visit of the lane, statement by statement: what `relay::batch` does, and `source` and `target` for it.
//!
//! A step is as much as nobody else can come in between of: under the source's lane lock nobody else changes the log or what is
//! not pending; under the target's nobody else changes anything there.

use crate::rules::Rule;
use crate::state::{
    Aggregate, Applied, At, Claimed, Event, Id, Key, Mark, Scan, Set, Settled, Source, State, Status, Told, Verdict,
    Visit, has,
};
use crate::world::World;

/// What one statement did to the visit.
pub(crate) enum Next {
    /// It goes on.
    On(Visit),
    /// It is over: both sessions are closed.
    Over,
    /// It cannot be done now: somebody has a lock, or a session is gone.
    Blocked,
}

impl World {
    /// Whether somebody holds the lease.
    pub(crate) fn is_leased(&self, state: &State) -> bool {
        state.visits.iter().any(|visit| visit.source && !matches!(visit.at, At::Peeked | At::Planned))
    }

    /// `Source::lock_lane`: the lock, then, in a later statement, a token and the newest entry.
    pub(crate) fn lock_source(
        &self,
        state: &mut State,
        full: bool,
        due: bool,
        peeked: Option<&Visit>,
    ) -> Option<Visit> {
        if self.is_leased(state) {
            return None;
        }
        let mut visit = Visit::new(At::SourceLocked, full, due);
        state.source.tokens += 1;
        visit.token = state.source.tokens;
        visit.newest = state.source.newest();
        visit.put_back = state.source.put_back;
        if let Some(before) = peeked {
            visit.newest = before.newest;
            visit.put_back = before.put_back;
            visit.peeked = before.peeked;
        }
        if !self.positions {
            visit.newest.scan = Scan::default();
        }
        visit.newest.ids = 0;
        Some(visit)
    }

    /// What it sees in the statement that also takes the lock, where that rule is broken.
    pub(crate) fn peek(&self, state: &State, full: bool, due: bool) -> Visit {
        let mut visit = Visit::new(At::Peeked, full, due);
        visit.source = false;
        visit.newest = state.source.newest();
        visit.put_back = state.source.put_back;
        let pending = state.source.rows.iter().filter(|row| row.status == Status::Pending);
        visit.peeked = Some((state.target.newest(), pending.fold(0, |set, row| set | 1 << row.id)));
        visit
    }

    /// The next statement of a visit, but for [`World::append`], which has several outcomes.
    pub(crate) fn next(&self, state: &mut State, visit: &Visit) -> Next {
        match visit.at {
            At::Peeked => {
                let locked = self.lock_source(state, visit.full, visit.due, Some(visit));
                locked.map_or(Next::Blocked, Next::On)
            }
            At::SourceLocked if !self.keeps(Rule::ClaimUnderBothLocks) && visit.source => {
                self.claim_early(state, visit)
            }
            At::SourceLocked | At::ClaimedEarly => self.lock_target(state, visit),
            At::BothLocked => self.compared(state, visit),
            At::SequenceRead => self.look_at_writers(state, visit),
            At::HoldersRead => self.claim(state, visit),
            At::Claimed => self.claim_due(state, visit),
            At::DueClaimed => self.recheck(state, visit),
            At::Rechecked => Next::Blocked,
            At::Appended if !self.keeps(Rule::SettleAfterCommit) => self.settle(state, visit),
            At::Appended | At::SettledEarly => self.commit_target(state, visit),
            At::TargetCommitted => self.settle(state, visit),
            At::Planned => self.heal(state, visit),
        }
    }

    /// `Target::lock_lane`: waits for the lock, then, in a later statement, reads the newest entry.
    fn lock_target(&self, state: &State, visit: &Visit) -> Next {
        if self.keeps(Rule::TargetLock) && state.visits.iter().any(|other| other.target) {
            return Next::Blocked;
        }
        let mut visit = visit.clone();
        visit.target = true;
        visit.newest_there = visit.peeked.map_or(state.target.newest(), |(newest, _)| newest);
        visit.at = At::BothLocked;
        Next::On(visit)
    }

    /// Heals, or draws on (`SourceLane::draw_above`) and goes on to the scan.
    fn compared(&self, state: &mut State, visit: &Visit) -> Next {
        if self.keeps(Rule::CompareUnderLocks) && visit.newest.key != visit.newest_there {
            return self.heal(state, visit);
        }
        let mut visit = visit.clone();
        if self.keeps(Rule::TokensGrow) && visit.token <= visit.newest_there.token {
            if !visit.source {
                return Next::Blocked;
            }
            // The whole gap in one statement.
            state.source.tokens += visit.newest_there.token - visit.token + 1;
            visit.token = state.source.tokens;
            while visit.token <= visit.newest_there.token {
                state.source.tokens += 1;
                visit.token = state.source.tokens;
            }
        }
        if !visit.claim.is_empty() {
            visit.at = At::Rechecked;
            return Next::On(visit);
        }
        if !visit.source {
            return Next::Blocked;
        }
        if !self.positions || !self.keeps(Rule::DecidedBeforeScan) {
            return self.claim(state, &visit);
        }
        // `SourceLane::decided`: the sequence, then, in a later statement, the writers.
        if self.keeps(Rule::SequenceFirst) {
            visit.sequence = state.source.ids;
        } else {
            visit.seen = open(state);
        }
        visit.at = At::SequenceRead;
        Next::On(visit)
    }

    fn look_at_writers(&self, state: &State, visit: &Visit) -> Next {
        if !visit.source {
            return Next::Blocked;
        }
        let mut visit = visit.clone();
        let (sequence, holders) = if self.keeps(Rule::SequenceFirst) {
            (visit.sequence, open(state))
        } else {
            (state.source.ids, visit.seen)
        };
        (visit.decided, visit.mark) = self.decide(visit.newest.scan, Mark { sequence, holders });
        (visit.sequence, visit.seen) = (0, 0);
        visit.at = At::HoldersRead;
        Next::On(visit)
    }

    /// `Scan::decide`: up to where every id is committed or rolled back.
    fn decide(&self, before: Scan, seen: Mark) -> (Id, Option<Mark>) {
        let Some(mark) = before.mark else { return (before.position, Some(seen)) };
        let holders = mark.holders & seen.holders;
        if holders == 0 || !self.keeps(Rule::WaitForWriters) {
            (before.position.max(mark.sequence + 1), Some(seen))
        } else {
            (before.position, Some(Mark { holders, ..mark }))
        }
    }

    /// The last look at the writers is young enough: `decided` asks nobody.
    pub(crate) fn claim_without_a_look(&self, state: &mut State, visit: &Visit) -> Next {
        if !visit.source || visit.newest.scan.mark.is_none() || visit.newest.key != visit.newest_there {
            return Next::Blocked;
        }
        let mut visit = visit.clone();
        (visit.decided, visit.mark) = (visit.newest.scan.position, visit.newest.scan.mark);
        self.claim(state, &visit)
    }

    /// `claim.sql`.
    fn claim(&self, state: &State, visit: &Visit) -> Next {
        if !visit.source {
            return Next::Blocked;
        }
        let mut visit = visit.clone();
        visit.from = match visit.full || !self.positions {
            true => 0,
            false if self.keeps(Rule::PositionInLog) => {
                visit.newest.scan.position.min(visit.put_back.unwrap_or(u8::MAX))
            }
            false => state.position.min(visit.put_back.unwrap_or(u8::MAX)),
        };
        let seen = |row: &Id| visit.peeked.is_none_or(|(_, pending)| has(pending, *row));
        let pending = state.source.rows.iter().filter(|row| {
            row.status == Status::Pending && row.id >= visit.from && state.dba != Some(row.id) && seen(&row.id)
        });
        visit.claim = pending.take(self.batch).map(|row| claimed(row, false)).collect();
        let all = visit.claim.len() < self.batch;
        visit.bound = if all { u8::MAX } else { visit.claim.last().map_or(u8::MAX, |last| last.id) };
        visit.peeked = None;
        visit.at = if visit.due { At::Claimed } else { At::DueClaimed };
        if visit.claim.is_empty() && !visit.due && !self.can_advance(state, &visit) {
            return Next::Over;
        }
        Next::On(visit)
    }

    /// `claim_due.sql`.
    fn claim_due(&self, state: &State, visit: &Visit) -> Next {
        if !visit.source {
            return Next::Blocked;
        }
        let mut visit = visit.clone();
        let bound = if self.keeps(Rule::DueBound) { visit.bound } else { u8::MAX };
        let due = state.source.rows.iter().filter(|row| row.status == Status::Retry && state.dba != Some(row.id));
        let due: Vec<Claimed> =
            due.filter(|row| row.id <= bound).take(self.batch).map(|row| claimed(row, true)).collect();
        visit.claim.extend(due);
        visit.claim.sort();
        visit.at = At::DueClaimed;
        if visit.claim.is_empty() && !self.can_advance(state, &visit) { Next::Over } else { Next::On(visit) }
    }

    /// Whether an entry without events would move the start on.
    fn can_advance(&self, state: &State, visit: &Visit) -> bool {
        state.left.advances > 0 && visit.decided > visit.from.max(visit.newest.scan.position)
    }

    /// `SourceLane::is_worth_an_entry`: nothing was found, and nobody has locked what could have been. The relay does it from the very
    /// start too, and then for nothing.
    pub(crate) fn advance(&self, state: &mut State, visit: &Visit) -> Next {
        let left = |id: Id| id >= visit.from && id < visit.decided;
        let any = state.source.rows.iter().any(|row| row.status == Status::Pending && left(row.id));
        if !visit.source || any || !self.can_advance(state, visit) {
            return Next::Blocked;
        }
        let mut visit = visit.clone();
        visit.nothing_left = true;
        state.left.advances -= 1;
        visit.at = At::Rechecked;
        Next::On(visit)
    }

    /// `SourceLane::recheck` and `plan::sort`.
    fn recheck(&self, state: &State, visit: &Visit) -> Next {
        if visit.claim.is_empty() {
            return Next::Over;
        }
        if !visit.source {
            return Next::Blocked;
        }
        let mut visit = visit.clone();
        let rows = &state.source.rows;
        let pending = visit.claim.iter().filter(|c| !c.due);
        let mut highest = match self.keeps(Rule::RecheckToDue) {
            true => visit.claim.last().map_or(0, |last| last.id),
            false => pending.clone().next_back().map_or(0, |last| last.id),
        };
        if pending.count() == 0 && self.keeps(Rule::RecheckToDue) {
            highest = highest.max(visit.newest.scan.position.saturating_sub(1));
        }
        let is_claimed = |id: Id| visit.claim.iter().any(|c| c.id == id);
        let unlocked = rows.iter().filter(|row| {
            row.status == Status::Pending && row.id >= visit.from && row.id <= highest && !is_claimed(row.id)
        });
        let unlocked: Vec<(Aggregate, Id)> = match self.keeps(Rule::Recheck) {
            true => unlocked.map(|row| (row.aggregate, row.id)).collect(),
            false => Vec::new(),
        };
        let is_due = |id: Id| visit.claim.iter().any(|c| c.due && c.id == id);
        let blocks = |row: &&crate::state::Row| self.holds(row.status) && !is_due(row.id);
        let lowest =
            |aggregate: Aggregate| rows.iter().filter(blocks).find(|row| row.aggregate == aggregate).map(|row| row.id);
        let mut blocked: Set = 0;
        let mut claim = visit.claim.clone();
        for c in &mut claim {
            let blocker = lowest(c.aggregate);
            if blocker.is_some() {
                blocked |= 1 << c.aggregate;
            }
            c.verdict = if unlocked.iter().any(|(aggregate, id)| *aggregate == c.aggregate && *id < c.id) {
                Verdict::Left
            } else if self.keeps(Rule::HeldBehindLower) && blocker.is_some_and(|id| id < c.id) {
                Verdict::Held
            } else {
                Verdict::Todo
            };
        }
        let left = claim.iter().filter(|c| c.verdict == Verdict::Left && !c.due).map(|c| c.id);
        visit.left_lowest = left.chain(unlocked.iter().map(|(_, id)| *id)).min();
        visit.blocked = blocked;
        visit.claim = claim;
        visit.at = At::Rechecked;
        if visit.claim.iter().all(|c| c.verdict == Verdict::Left) { Next::Over } else { Next::On(visit) }
    }

    /// A failed event holds back only if it is not passed over.
    pub(crate) fn holds(&self, status: Status) -> bool {
        match status {
            Status::Retry | Status::Held => true,
            Status::Failed => !self.pass,
            Status::Pending | Status::Processed | Status::Skipped => false,
        }
    }

    /// `Applying::apply` and `TargetLane::append`: the n-th claimed event is refused, or none.
    pub(crate) fn append(&self, state: &mut State, visit: &Visit, refused: Option<(usize, Verdict)>) -> Next {
        if !visit.target || visit.at != At::Rechecked {
            return Next::Blocked;
        }
        let newest = state.target.newest();
        let parent_agrees = !self.keeps(Rule::ParentIsNewest) || visit.newest_there == newest;
        let grows = !self.keeps(Rule::TokensGrow) || visit.token > visit.newest_there.token;
        if !parent_agrees || !grows {
            return Next::Over;
        }
        let mut visit = visit.clone();
        let mut behind: Set = 0;
        for (n, c) in visit.claim.iter_mut().enumerate() {
            if c.verdict != Verdict::Todo {
                continue;
            }
            c.verdict = match refused {
                Some((at, verdict)) if at == n => verdict,
                _ if self.keeps(Rule::HeldBehindFailed) && has(behind, c.aggregate) => Verdict::Held,
                _ => Verdict::Applied,
            };
            let holds_back = c.verdict == Verdict::Retry || (c.verdict == Verdict::Failed && !self.pass);
            if holds_back {
                behind |= 1 << c.aggregate;
            }
        }
        if let Some((at, _)) = refused {
            state.left.refusals -= 1;
            if state.left.give_backs > 0 {
                state.charged |= 1 << visit.claim[at].event;
            }
        }
        let nonce = if self.keeps(Rule::Nonce) { state.fresh_nonce() } else { 0 };
        let told = visit.claim.iter().filter(|c| matches!(c.verdict, Verdict::Applied | Verdict::Failed));
        visit.entry =
            Applied { key: Key { token: visit.token, nonce }, events: told.map(told_of).collect(), old: false };
        visit.at = At::Appended;
        Next::On(visit)
    }

    /// From here on the batch has taken effect.
    fn commit_target(&self, state: &mut State, visit: &Visit) -> Next {
        if !visit.target {
            return Next::Blocked;
        }
        if state.target.log.iter().any(|entry| entry.key.token == visit.token) {
            return Next::Over;
        }
        state.target.log.push(visit.entry.clone());
        state.target.log.sort_by_key(|entry| entry.key.token);
        state.target.effects.extend(visit.entry.events.iter().filter(|e| !e.given_up).map(|e| e.event));
        if visit.at == At::SettledEarly {
            return Next::Over;
        }
        let mut visit = visit.clone();
        visit.target = false;
        visit.entry.events = Vec::new();
        visit.at = At::TargetCommitted;
        Next::On(visit)
    }

    /// `SourceLane::settle`, and the commit.
    fn settle(&self, state: &mut State, visit: &Visit) -> Next {
        if !visit.source {
            return Next::Blocked;
        }
        let newest = state.source.newest();
        let parent_agrees = !self.keeps(Rule::ParentIsNewest) || visit.newest.key == newest.key;
        let token = visit.entry.key.token;
        let grows = !self.keeps(Rule::TokensGrow) || token > visit.newest.key.token;
        if !parent_agrees || !grows || state.source.log.iter().any(|entry| entry.key.token == token) {
            return Next::Over;
        }
        let mut ids: Set = 0;
        let mut freed: Set = 0;
        for c in &visit.claim {
            let Some(row) = state.source.row(c.id) else { return Next::Over };
            match c.verdict {
                Verdict::Applied => {
                    row.status = Status::Processed;
                    ids |= 1 << c.id;
                }
                Verdict::Retry => row.status = Status::Retry,
                Verdict::Failed => row.status = Status::Failed,
                Verdict::Held => row.status = Status::Held,
                Verdict::Left | Verdict::Todo => {}
            }
            let frees = c.verdict == Verdict::Applied || (self.pass && c.verdict == Verdict::Failed);
            if frees && (c.due || has(visit.blocked, c.aggregate)) {
                freed |= 1 << c.aggregate;
            }
        }
        let released = match self.keeps(Rule::ReleaseWhenApplied) {
            true => self.release(&mut state.source, freed),
            false => None,
        };
        let lowest = [
            visit.left_lowest.filter(|_| self.keeps(Rule::StopAtLeft)),
            released.filter(|_| self.keeps(Rule::StopAtReleased)),
        ];
        let mut visit = visit.clone();
        if self.positions && !self.keeps(Rule::DecidedBeforeScan) {
            let seen = Mark { sequence: state.source.ids, holders: open(state) };
            (visit.decided, visit.mark) = self.decide(visit.newest.scan, seen);
        }
        let mut scan = self.next_scan(&visit, lowest.into_iter().flatten().min());
        if !self.keeps(Rule::PositionInLog) {
            state.position = scan.position;
        }
        if !self.positions {
            scan = Scan::default();
        }
        state.source.log.push(Settled { key: visit.entry.key, ids, scan });
        state.source.log.sort_by_key(|entry| entry.key.token);
        if visit.put_back.is_some() {
            state.source.put_back = None;
        }
        if visit.at == At::Appended {
            visit.source = false;
            visit.claim = Vec::new();
            visit.at = At::SettledEarly;
            return Next::On(visit);
        }
        Next::Over
    }

    /// `scan::next_scan`.
    fn next_scan(&self, visit: &Visit, lowest: Option<Id>) -> Scan {
        let nowhere = if visit.nothing_left { visit.decided } else { visit.from.max(visit.newest.scan.position) };
        let last = visit.claim.iter().rfind(|c| !c.due);
        let reached = last.map_or(nowhere, |c| c.id + 1);
        Scan { position: visit.decided.min(reached).min(lowest.unwrap_or(u8::MAX)), mark: visit.mark }
    }

    /// `release.sql`: held events that nothing blocks any more, lowest first. The lowest id released.
    pub(crate) fn release(&self, source: &mut Source, aggregates: Set) -> Option<Id> {
        let mut lowest = None;
        let many = usize::try_from(aggregates.count_ones()).map_or(1, |n| n.max(1));
        let each = (self.batch / many).max(1);
        for aggregate in (0..self.aggregates).filter(|aggregate| has(aggregates, *aggregate)) {
            let waiting = source.rows.iter_mut().filter(|row| row.aggregate == aggregate && self.holds(row.status));
            for row in waiting.take(each) {
                if row.status != Status::Held {
                    if self.keeps(Rule::ReleaseUnblocked) {
                        break;
                    }
                    continue;
                }
                row.status = Status::Pending;
                lowest = Some(lowest.map_or(row.id, |id: Id| id.min(row.id)));
            }
        }
        lowest
    }

    /// Where the rule is broken: all of the claim before the target is locked.
    fn claim_early(&self, state: &State, visit: &Visit) -> Next {
        let mut next = self.claim(state, visit);
        loop {
            next = match next {
                Next::On(visit) if visit.at == At::Claimed => self.claim_due(state, &visit),
                Next::On(visit) if visit.at == At::DueClaimed => self.recheck(state, &visit),
                Next::On(mut visit) => {
                    visit.at = At::ClaimedEarly;
                    return Next::On(visit);
                }
                // Without work it only heals.
                Next::Over if visit.newest.key != state.target.newest() => {
                    let mut visit = visit.clone();
                    visit.at = At::ClaimedEarly;
                    return Next::On(visit);
                }
                other => return other,
            };
        }
    }
}

/// Who has a transaction open that has written to the outbox.
fn open(state: &State) -> Set {
    state.writers.iter().flatten().fold(0, |set, (_, event): &(Id, Event)| set | 1 << event)
}

fn claimed(row: &crate::state::Row, due: bool) -> Claimed {
    Claimed { id: row.id, event: row.event, aggregate: row.aggregate, due, verdict: Verdict::Todo }
}

fn told_of(c: &Claimed) -> Told {
    Told { id: c.id, event: c.event, aggregate: c.aggregate, given_up: c.verdict == Verdict::Failed }
}
