//! How a batch is cut into statements, and which of its events may be applied at all. Pure.

use std::collections::{HashMap, HashSet};

use crate::config::OnFailure;
use crate::event::{Aggregate, Event, EventId, Status};
use crate::source::Recheck;

/// What a batch's events are to each other and to what waits.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sorted {
    /// To be applied, in order.
    pub(crate) apply: Vec<usize>,
    /// Behind an earlier event of their aggregate that waits.
    pub(crate) held: Vec<usize>,
    /// Left as they are: an earlier event of their aggregate could not be locked.
    pub(crate) left: Vec<usize>,
}

/// Sorts the claimed events. An aggregate with an event that could not be locked drops out from that id on; an event with a
/// lower id of its aggregate in retry, held or failed is held.
pub(crate) fn sort(events: &[Event], recheck: &Recheck) -> Sorted {
    let mut unlocked: HashMap<&Aggregate, EventId> = HashMap::new();
    for (aggregate, id) in &recheck.unlocked {
        let lowest = unlocked.entry(aggregate).or_insert(*id);
        *lowest = (*lowest).min(*id);
    }
    let mut sorted = Sorted::default();
    for (at, event) in events.iter().enumerate() {
        if unlocked.get(&event.aggregate).is_some_and(|lowest| *lowest < event.id) {
            sorted.left.push(at);
        } else if recheck.blocked.get(&event.aggregate).is_some_and(|(lowest, _)| *lowest < event.id) {
            sorted.held.push(at);
        } else {
            sorted.apply.push(at);
        }
    }
    sorted
}

/// What an event does, as far as cutting the batch is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Events of one shape go through the same statements.
    pub(crate) route: usize,
    /// Whether any number of an aggregate's events may share a statement (rows of a mapping: the last one for each key wins).
    /// Own SQL sees each aggregate once.
    pub(crate) in_runs: bool,
}

/// Statements of one wave: events that take the same route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) route: usize,
    /// Indices into the batch, in order.
    pub(crate) events: Vec<usize>,
}

/// Cuts events into waves: within an aggregate, a run of one shape goes together if it may, and everything else goes one by
/// one; the first run of every aggregate is the first wave, and so on. Groups of one wave concern different aggregates, so
/// their order does not matter.
pub(crate) fn waves<'a>(events: impl Iterator<Item = (usize, &'a Aggregate, Shape)>) -> Vec<Vec<Group>> {
    let events: Vec<_> = events.collect();
    // Most batches are of one shape: then nobody need know whose the events are.
    if let Some((.., first)) = events.first()
        && first.in_runs
        && events.iter().all(|(.., shape)| shape == first)
    {
        let all = Group { route: first.route, events: events.iter().map(|(at, ..)| *at).collect() };
        return vec![vec![all]];
    }
    let mut last: HashMap<&Aggregate, (usize, Shape)> = HashMap::new();
    let mut waves: Vec<Vec<Group>> = Vec::new();
    for (at, aggregate, shape) in events {
        let wave = match last.get(aggregate) {
            None => 0,
            Some((wave, before)) if *before == shape && shape.in_runs => *wave,
            Some((wave, _)) => wave + 1,
        };
        last.insert(aggregate, (wave, shape));
        if waves.len() <= wave {
            waves.resize_with(wave + 1, Vec::new);
        }
        let groups = &mut waves[wave];
        match groups.iter_mut().find(|group| group.route == shape.route) {
            Some(group) => group.events.push(at),
            None => groups.push(Group { route: shape.route, events: vec![at] }),
        }
    }
    waves
}

/// What becomes of an aggregate's later events when one of it failed.
pub(crate) fn holds_back(status: Status, on_failure: OnFailure) -> bool {
    match status {
        Status::Retry | Status::Held => true,
        Status::Failed => on_failure == OnFailure::Hold,
        Status::Pending | Status::Processed | Status::Skipped => false,
    }
}

/// The aggregates of these events, each once.
pub(crate) fn aggregates<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<Aggregate> {
    let mut seen = HashSet::new();
    events.filter(|e| seen.insert(&e.aggregate)).map(|e| e.aggregate.clone()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn aggregate(id: &str) -> Aggregate {
        Aggregate { kind: "User".into(), id: id.into() }
    }

    const UPSERT: Shape = Shape { route: 0, in_runs: true };
    const DELETE: Shape = Shape { route: 1, in_runs: true };
    const OWN_SQL: Shape = Shape { route: 2, in_runs: false };

    fn cut(events: &[(&str, Shape)]) -> Vec<Vec<(usize, Vec<usize>)>> {
        let aggregates: Vec<Aggregate> = events.iter().map(|(id, _)| aggregate(id)).collect();
        waves(events.iter().enumerate().map(|(at, (_, shape))| (at, &aggregates[at], *shape)))
            .into_iter()
            .map(|wave| wave.into_iter().map(|g| (g.route, g.events)).collect())
            .collect()
    }

    #[test]
    fn a_run_of_upserts_needs_one_statement() {
        assert_eq!(cut(&[("a", UPSERT), ("b", UPSERT), ("a", UPSERT)]), vec![vec![(0, vec![0, 1, 2])]]);
        assert_eq!(
            cut(&[("a", UPSERT), ("a", DELETE), ("b", UPSERT), ("a", UPSERT)]),
            vec![vec![(0, vec![0, 2])], vec![(1, vec![1])], vec![(0, vec![3])]]
        );
        assert_eq!(
            cut(&[("a", OWN_SQL), ("a", OWN_SQL), ("b", OWN_SQL)]),
            vec![vec![(2, vec![0, 2])], vec![(2, vec![1])]]
        );
    }

    fn event(id: i64, aggregate_id: &str) -> Event {
        Event { id: EventId(id), ..Event::made_up(aggregate(aggregate_id), "", String::new()) }
    }

    #[test]
    fn what_waits_holds_back_later_events_of_its_aggregate_and_no_others() {
        let events = [event(1, "a"), event(2, "b"), event(3, "a"), event(4, "c"), event(5, "b"), event(6, "d")];
        let recheck = Recheck {
            unlocked: vec![(aggregate("b"), EventId(3)), (aggregate("d"), EventId(9))],
            blocked: [(aggregate("a"), (EventId(2), Status::Failed)), (aggregate("c"), (EventId(7), Status::Held))]
                .into(),
        };
        assert_eq!(sort(&events, &recheck), Sorted { apply: vec![0, 1, 3, 5], held: vec![2], left: vec![4] });
    }

    proptest! {
        #[test]
        fn every_event_is_applied_once_and_in_order_of_its_aggregate(
            events in proptest::collection::vec((0u8..4, 0usize..4), 0..60)
        ) {
            let shapes = [UPSERT, DELETE, OWN_SQL, Shape { route: 3, in_runs: false }];
            let named: Vec<(String, Shape)> = events.iter().map(|(a, k)| (a.to_string(), shapes[*k])).collect();
            let waves = cut(&named.iter().map(|(a, k)| (a.as_str(), *k)).collect::<Vec<_>>());
            let mut position = vec![None; events.len()];
            for (wave_at, wave) in waves.iter().enumerate() {
                for (route, group) in wave {
                    prop_assert!(group.is_sorted());
                    for at in group {
                        prop_assert_eq!(position[*at].replace(wave_at), None);
                    }
                    if *route >= 2 {
                        let mut once = HashSet::new();
                        prop_assert!(group.iter().all(|at| once.insert(&named[*at].0)));
                    }
                }
            }
            for (a, (name_a, shape_a)) in named.iter().enumerate() {
                for (b, (name_b, shape_b)) in named.iter().enumerate().skip(a + 1) {
                    if name_a == name_b {
                        let (first, second) = (position[a].unwrap(), position[b].unwrap());
                        prop_assert!(first < second || (first == second && shape_a == shape_b));
                    }
                }
            }
        }
    }
}
