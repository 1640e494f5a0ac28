//! What is promised, and that the model comes to where it is hard.

use stateright::Property;

use crate::heal::Found;
use crate::rules::Rule;
use crate::state::{At, Key, State, Status, has};
use crate::visit::Next;
use crate::world::World;

pub(crate) const ONCE: &str = "no event takes effect twice";
pub(crate) const ORDER: &str = "an aggregate's events take effect in order";
pub(crate) const TRUE: &str = "what is processed took effect, unless the target went back";
pub(crate) const DRAINS: &str = "a calm system drains, and nothing is lost";

/// The promises.
pub(crate) fn promises() -> Vec<Property<World>> {
    vec![
        Property::always(ONCE, |_, state: &State| once(state)),
        Property::always(ORDER, |_, state: &State| in_order(state)),
        Property::always(TRUE, |_, state: &State| state.target_went_back || processed_is_applied(state)),
        Property::always(DRAINS, |world, state: &State| !is_calm(state) || drained(world, state).is_ok()),
    ]
}

/// The promises, and what the world must come to.
pub(crate) fn of(world: &World) -> Vec<Property<World>> {
    let mut properties = promises();
    for (name, situation) in SITUATIONS.iter().filter(|(name, _)| world.reaches.contains(name)) {
        properties.push(Property::sometimes(name, *situation));
    }
    properties
}

type Situation = fn(&World, &State) -> bool;

/// Without these a model would prove little; each world names those that it comes to.
pub(crate) const SITUATIONS: &[(&str, Situation)] = &[
    ("a worker without its lease commits on the target", |_, state| {
        state.visits.iter().any(|v| v.at == At::TargetCommitted && !v.source)
    }),
    ("such a worker, and another in the same lane", |_, state| {
        state.visits.iter().any(|v| v.at == At::Appended && !v.source) && state.visits.iter().any(|v| v.source)
    }),
    ("both databases went back", |world, state| {
        world.budget.source_failovers > state.left.source_failovers && state.target_went_back
    }),
    ("each log has a batch that the other has not", |_, state| {
        let (source, target) = (&state.source.log, &state.target.log);
        source.iter().any(|s| target.iter().all(|t| s.key != t.key))
            && target.iter().any(|t| source.iter().all(|s| s.key != t.key))
    }),
    ("an id is another event's now", |_, state| {
        let mut told = state.target.log.iter().flat_map(|entry| &entry.events);
        told.any(|told| state.source.rows.iter().any(|row| row.id == told.id && row.event != told.event))
    }),
    ("a token is another batch's on the other side", |_, state| {
        let same = |one: Key, other: Key| one.token == other.token && one.nonce != other.nonce;
        state.source.log.iter().any(|s| state.target.log.iter().any(|t| same(s.key, t.key)))
    }),
    ("the target knows what the outbox forgot", |_, state| state.source.divergent != 0),
    ("an event was overtaken", |_, state| state.source.rows.iter().any(|row| row.overtaken)),
    ("a writer is open below the mark", |_, state| {
        let mark = state.source.newest().scan.mark;
        mark.is_some_and(|mark| state.writers.iter().flatten().any(|(id, _)| *id <= mark.sequence))
    }),
    ("the position passed an event", |_, state| state.source.newest().scan.position > 1),
    ("an event is left behind a locked one", |_, state| state.visits.iter().any(|v| v.left_lowest.is_some())),
    ("an event is held", |_, state| state.source.rows.iter().any(|row| row.status == Status::Held)),
    ("an event is given up", |_, state| {
        state.source.rows.iter().any(|row| row.status == Status::Failed && !row.overtaken)
    }),
    ("a replay is over", |world, state| world.budget.replays > state.left.replays && state.replay.is_none()),
    ("an event that was put back waits before a retry", |_, state| {
        let retry = state.source.rows.iter().find(|row| row.status == Status::Retry);
        retry.is_some_and(|retry| state.source.rows.iter().any(|r| r.status == Status::Pending && r.id < retry.id))
    }),
    ("both sides have forgotten a batch", |_, state| state.source.forgotten > 0 && state.target.forgotten > 0),
];

fn once(state: &State) -> bool {
    let effects = &state.target.effects;
    effects.iter().enumerate().all(|(at, event)| !effects[..at].contains(event))
}

/// Of aggregates that the source lost nothing of: of the others no order is promised until they are resynced.
fn in_order(state: &State) -> bool {
    let known = |event: u8| state.source.rows.iter().any(|row| row.event == event);
    let told = state.target.log.iter().flat_map(|entry| &entry.events);
    let lost = |aggregate: u8| {
        let aggregate_of = |event: u8| state.aggregates.get(usize::from(event)) == Some(&aggregate);
        told.clone().any(|e| e.aggregate == aggregate && !e.given_up && !known(e.event))
            || (0..16).any(|event| has(state.source.divergent, event) && aggregate_of(event))
    };
    let aggregates = state.writers.iter().zip(0u8..).map(|(_, aggregate)| aggregate);
    aggregates.filter(|aggregate| !lost(*aggregate)).all(|aggregate| {
        let events = state.target.effects.iter().filter(|event| state.aggregates[usize::from(**event)] == aggregate);
        events.is_sorted()
    })
}

fn processed_is_applied(state: &State) -> bool {
    let mut processed = state.source.rows.iter().filter(|row| row.status == Status::Processed);
    processed.all(|row| state.target.effects.contains(&row.event))
}

/// Nobody has anything open. A worker may end, or go on to its end, so such a state can be reached from every other.
fn is_calm(state: &State) -> bool {
    let open = state.writers.iter().any(Option::is_some);
    state.visits.is_empty() && !open && state.dba.is_none() && state.replay.is_none()
}

/// One worker goes on, as looks, full looks and comparisons send it, and meets no more accidents.
pub(crate) fn drained(world: &World, state: &State) -> Result<(), &'static str> {
    let mut state = state.clone();
    for turn in 0..60 {
        let differs = state.source.newest().key != state.target.newest();
        let waits = |status| state.source.rows.iter().any(|row| row.status == status);
        let (pending, retry) = (waits(Status::Pending), waits(Status::Retry));
        let is_found = differs && world.keeps(Rule::CompareIdle);
        if !(pending || retry || is_found) {
            return settled(world, &state);
        }
        let impossible = world.next_step(&state.source, &state.target) == Found::Impossible;
        if differs && impossible {
            return Err("a lane stops");
        }
        // Every few seconds a look starts at the very start.
        visit(world, &mut state, turn % 3 == 2, retry)?;
    }
    Err("does not drain")
}

fn visit(world: &World, state: &mut State, full: bool, due: bool) -> Result<(), &'static str> {
    let mut at = match world.keeps(Rule::ReadAfterLock) {
        true => world.lock_source(state, full, due, None).ok_or("a lane stays locked")?,
        false => world.peek(state, full, due),
    };
    for _ in 0..40 {
        let next = match at.at {
            At::Rechecked => world.append(state, &at, None),
            At::DueClaimed if at.claim.is_empty() => world.advance(state, &at),
            _ => world.next(state, &at),
        };
        match next {
            Next::On(next) => at = next,
            Next::Over | Next::Blocked => return Ok(()),
        }
    }
    Err("a visit does not end")
}

/// Everything that survived is where it should be.
fn settled(world: &World, state: &State) -> Result<(), &'static str> {
    if !once(state) {
        return Err("twice");
    }
    if !in_order(state) {
        return Err("out of order");
    }
    let applied = |event: u8| state.target.effects.contains(&event);
    for row in &state.source.rows {
        let blocked = |before: &&crate::state::Row| {
            before.aggregate == row.aggregate && before.id < row.id && before.status == Status::Failed
        };
        match row.status {
            Status::Processed if !applied(row.event) => return Err("lost"),
            Status::Failed | Status::Skipped if applied(row.event) => return Err("applied, and says that it is not"),
            Status::Held if !state.source.rows.iter().any(|before| blocked(&before)) => return Err("held for ever"),
            Status::Pending | Status::Retry => return Err("does not drain"),
            _ => {}
        }
    }
    let known =
        |event: u8| state.source.rows.iter().any(|row| row.event == event) || has(state.source.divergent, event);
    if world.budget.retentions == 0 && !state.target.effects.iter().all(|event| known(*event)) {
        return Err("the outbox does not know what it forgot");
    }
    Ok(())
}
