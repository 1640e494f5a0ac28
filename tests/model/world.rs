//! How large a model is, and which rule is broken in it.

use crate::rules::Rule;
use crate::state::{At, Budget, Scan, Settled, Source, State, Target, Visit};

/// A model: what there is, what may go wrong how often, and what is broken.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) name: &'static str,
    pub(crate) workers: usize,
    pub(crate) aggregates: u8,
    /// Events a batch at the most.
    pub(crate) batch: usize,
    pub(crate) budget: Budget,
    /// Writers' transactions stay open; else each commits at once.
    pub(crate) late_writers: bool,
    /// Scans start from a position.
    pub(crate) positions: bool,
    /// A failed event holds nobody back.
    pub(crate) pass: bool,
    pub(crate) broken: &'static [Rule],
    /// Situations that it must come to, of [`crate::properties::SITUATIONS`].
    pub(crate) reaches: &'static [&'static str],
}

impl World {
    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        !self.broken.contains(&rule)
    }

    /// As `init` leaves it: both logs with one entry.
    pub(crate) fn initial(&self) -> State {
        let first = Settled { key: crate::state::Key { token: 1, nonce: 0 }, ids: 0, scan: Scan::default() };
        let source = Source { log: vec![first], tokens: 1, ..Source::default() };
        let entry = crate::state::Applied { key: first.key, events: Vec::new(), old: false };
        let target = Target { log: vec![entry], ..Target::default() };
        State {
            source_replica: (self.budget.source_failovers > 0).then(|| Box::new(source.clone())),
            target_replica: (self.budget.target_failovers > 0).then(|| Box::new(target.clone())),
            source,
            target,
            visits: Vec::new(),
            writers: vec![None; usize::from(self.aggregates)],
            dba: None,
            replay: None,
            aggregates: Vec::new(),
            charged: 0,
            position: 0,
            target_went_back: false,
            left: self.budget,
        }
        .canonical()
    }
}

impl Visit {
    pub(crate) fn new(at: At, full: bool, due: bool) -> Visit {
        Visit {
            at,
            source: true,
            target: false,
            full,
            due,
            token: 0,
            newest: Settled::default(),
            put_back: None,
            newest_there: crate::state::Key::default(),
            peeked: None,
            sequence: 0,
            seen: 0,
            from: 0,
            decided: 0,
            mark: None,
            bound: u8::MAX,
            claim: Vec::new(),
            nothing_left: false,
            left_lowest: None,
            blocked: 0,
            entry: crate::state::Applied::default(),
            plan: Vec::new(),
        }
    }
}
