//! Healing, as `relay::heal` decides it and `source::heal` does it: one step, in a source transaction of its own.

use std::collections::BTreeMap;

use crate::rules::Rule;
use crate::state::{Aggregate, Applied, At, Id, Key, Set, Settled, Source, State, Status, Step, Target, Visit, has};
use crate::visit::Next;
use crate::world::World;

/// What the two logs say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Step(Step),
    Impossible,
}

impl World {
    /// `heal::next_step`.
    pub(crate) fn next_step(&self, source: &Source, target: &Target) -> Found {
        let marked = source.forgotten.max(target.forgotten);
        let on_target = |key: Key| target.log.iter().any(|entry| entry.key == key);
        let common = source.log.iter().rev().find(|entry| on_target(entry.key)).map(|entry| entry.key);
        let Some(common) = common.filter(|key| key.token >= marked) else { return Found::Impossible };
        let to_put_back = match self.keeps(Rule::NewestFirst) {
            true => source.log.last().filter(|entry| entry.key != common),
            false => source.log.iter().find(|entry| entry.key.token > common.token),
        };
        let mut unknown = target.log.iter().filter(|entry| entry.key.token > common.token);
        let to_settle = if self.keeps(Rule::OldestSettledFirst) { unknown.next() } else { unknown.next_back() };
        let put_back = to_put_back.map(|entry| Step::PutBack(entry.key));
        // Where the rule is broken, only what stands above the source's newest can be appended.
        let settle = to_settle.map(|entry| Step::Settle(entry.clone()));
        let step = match self.keeps(Rule::PutBackFirst) {
            true => put_back.or(settle),
            false => settle.or(put_back),
        };
        step.map_or(Found::Nothing, Found::Step)
    }

    /// `heal::run_once`.
    pub(crate) fn heal(&self, state: &mut State, visit: &Visit) -> Next {
        let planned = visit.at == At::Planned;
        // A step of a plan locks the source's lane again; the target's lock is still there.
        if !visit.target || (!planned && !visit.source) || (planned && self.is_leased(state)) {
            return Next::Blocked;
        }
        let mut plan = visit.plan.clone();
        if !planned {
            match self.next_step(&state.source, &state.target) {
                Found::Step(_) if !self.keeps(Rule::PlanAnew) => plan = self.whole_plan(state),
                Found::Step(step) => plan = vec![step],
                Found::Nothing | Found::Impossible => return Next::Over,
            }
        }
        if plan.is_empty() {
            return Next::Over;
        }
        let step = plan.remove(0);
        let before = state.clone();
        let done = match &step {
            Step::PutBack(key) => self.put_back(state, *key),
            Step::Settle(entry) => self.settle_forgotten(state, entry),
        };
        if !done {
            *state = before;
            return Next::Over;
        }
        // A row that somebody else has locked: it gives up.
        if let Some(id) = state.dba
            && state.source.rows.iter().find(|row| row.id == id) != before.source.rows.iter().find(|row| row.id == id)
        {
            *state = before;
            return Next::Blocked;
        }
        if plan.is_empty() {
            return Next::Over;
        }
        let mut visit = Visit::new(At::Planned, false, false);
        (visit.source, visit.target, visit.plan) = (false, true, plan);
        Next::On(visit)
    }

    fn whole_plan(&self, state: &State) -> Vec<Step> {
        let mut imagined = state.clone();
        let mut plan = Vec::new();
        while let Found::Step(step) = self.next_step(&imagined.source, &imagined.target) {
            let done = match &step {
                Step::PutBack(key) => self.put_back(&mut imagined, *key),
                Step::Settle(entry) => self.settle_forgotten(&mut imagined, entry),
            };
            plan.push(step);
            if !done || plan.len() > 8 {
                break;
            }
        }
        plan
    }

    /// `SourceLane::put_back_newest`. False: an event of it is no longer in the outbox.
    fn put_back(&self, state: &mut State, key: Key) -> bool {
        let Some(at) = state.source.log.iter().position(|entry| entry.key == key) else { return false };
        let entry = state.source.log.remove(at);
        let mut back: Option<Id> = None;
        for id in (0..16).filter(|id| has(entry.ids, *id)) {
            let Some(row) = state.source.row(id) else { return false };
            if row.status == Status::Processed || !self.keeps(Rule::StillProcessed) {
                row.status = Status::Pending;
                back = Some(back.unwrap_or(id));
            }
        }
        if self.positions && self.keeps(Rule::AnnouncePutBack) {
            let ids = (0..16).find(|id| has(entry.ids, *id));
            let lowest = [Some(entry.scan.position), back, ids].into_iter().flatten().min().unwrap_or(0);
            state.source.announce(lowest);
        }
        true
    }

    /// `SourceLane::settle_forgotten`. False: the source's log has a newer entry.
    fn settle_forgotten(&self, state: &mut State, entry: &Applied) -> bool {
        let source = &mut state.source;
        let newest = source.newest();
        if source.log.iter().any(|known| known.key.token == entry.key.token) {
            return false;
        }
        if self.keeps(Rule::PutBackFirst) && entry.key.token <= newest.key.token {
            return false;
        }
        let mut ids: Set = 0;
        let mut aggregates: Set = 0;
        let mut highest: BTreeMap<Aggregate, Id> = BTreeMap::new();
        for event in &entry.events {
            aggregates |= 1 << event.aggregate;
            let by_id = !self.keeps(Rule::EventIdAgrees);
            let row = source.rows.iter_mut().find(|row| row.id == event.id && (by_id || row.event == event.event));
            let Some(row) = row else {
                if self.keeps(Rule::NoteDivergent) {
                    source.divergent |= 1 << event.event;
                }
                if !self.keeps(Rule::LogOnlyAgreeing) && !event.given_up {
                    ids |= 1 << event.id;
                }
                continue;
            };
            if self.keeps(Rule::WhateverStatus) || row.status == Status::Pending {
                row.status = if event.given_up { Status::Failed } else { Status::Processed };
                row.overtaken = false;
            }
            if !event.given_up {
                ids |= 1 << event.id;
                highest.insert(event.aggregate, event.id.max(highest.get(&event.aggregate).copied().unwrap_or(0)));
            }
        }
        if self.keeps(Rule::Overtaken) {
            for row in &mut source.rows {
                let waits = row.status == Status::Pending || self.holds(row.status);
                if waits && highest.get(&row.aggregate).is_some_and(|highest| row.id < *highest) {
                    (row.status, row.overtaken) = (Status::Failed, true);
                }
            }
        }
        let released = match self.keeps(Rule::ReleaseInHealing) {
            true => self.release(source, aggregates),
            false => None,
        };
        let mut scan = newest.scan;
        scan.position = scan.position.min(released.filter(|_| self.keeps(Rule::StopAtReleased)).unwrap_or(u8::MAX));
        source.log.push(Settled { key: entry.key, ids, scan });
        source.log.sort_by_key(|entry| entry.key.token);
        true
    }
}
