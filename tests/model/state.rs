//! What the model remembers: both databases as committed, each with a replica that lags, the visits of workers that are under
//! way, and who else has something open. One lane: lanes share nothing but the sequence of tokens.
//!
//! States that differ in names only (tokens, nonces, which of two workers) are one state: see [`State::canonical`].

use std::collections::BTreeMap;

/// `id` in the outbox. 0 stands for the very start.
pub(crate) type Id = u8;
/// `event_id`: who the event is, whatever its id. Counted from 0 over all histories.
pub(crate) type Event = u8;
/// An aggregate of the lane.
pub(crate) type Aggregate = u8;
/// A set of small numbers.
pub(crate) type Set = u16;

/// Whether the set has it.
pub(crate) fn has(set: Set, n: u8) -> bool {
    set & (1 << n) != 0
}

/// A batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Key {
    pub(crate) token: u8,
    pub(crate) nonce: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Status {
    Pending,
    Retry,
    Held,
    Processed,
    Failed,
    Skipped,
}

/// A row of the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) id: Id,
    pub(crate) event: Event,
    pub(crate) aggregate: Aggregate,
    pub(crate) status: Status,
    /// Failed because a later one of its aggregate was applied.
    pub(crate) overtaken: bool,
}

/// What was seen of the writers: once these are gone, every id up to `sequence` is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Mark {
    pub(crate) sequence: Id,
    pub(crate) holders: Set,
}

/// Where the lane's next scan may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Scan {
    pub(crate) position: Id,
    pub(crate) mark: Option<Mark>,
}

/// An entry of the source's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Settled {
    pub(crate) key: Key,
    pub(crate) ids: Set,
    pub(crate) scan: Scan,
}

/// The source, as committed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Source {
    /// In order of their ids.
    pub(crate) rows: Vec<Row>,
    /// Oldest first.
    pub(crate) log: Vec<Settled>,
    /// Retention's mark: the newest token deleted on purpose.
    pub(crate) forgotten: u8,
    pub(crate) put_back: Option<Id>,
    pub(crate) divergent: Set,
    pub(crate) tokens: u8,
    pub(crate) ids: Id,
}

/// An event in the target's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Told {
    pub(crate) id: Id,
    pub(crate) event: Event,
    pub(crate) aggregate: Aggregate,
    pub(crate) given_up: bool,
}

/// An entry of the target's log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Applied {
    pub(crate) key: Key,
    pub(crate) events: Vec<Told>,
    /// Applied before the moment that the source's replica stands at.
    pub(crate) old: bool,
}

/// The target, as committed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Target {
    /// Oldest first.
    pub(crate) log: Vec<Applied>,
    /// What took effect, in order: a table without any unique constraint.
    pub(crate) effects: Vec<Event>,
    pub(crate) forgotten: u8,
}

/// Where a worker is in the loop: what it did last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum At {
    /// Only where a rule is broken: it has read the lane before it locks it.
    Peeked,
    SourceLocked,
    /// Only where a rule is broken: it claimed before it locked the target.
    ClaimedEarly,
    BothLocked,
    SequenceRead,
    HoldersRead,
    Claimed,
    DueClaimed,
    Rechecked,
    Appended,
    TargetCommitted,
    /// Only where a rule is broken: settled, and the target's transaction still open.
    SettledEarly,
    /// Only where a rule is broken: between two steps of a plan of healing.
    Planned,
}

/// A claimed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Claimed {
    pub(crate) id: Id,
    pub(crate) event: Event,
    pub(crate) aggregate: Aggregate,
    pub(crate) due: bool,
    pub(crate) verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// To be applied.
    Todo,
    Applied,
    Retry,
    Failed,
    Held,
    /// Stays as it was.
    Left,
}

/// A worker's two transactions on one lane, and what it remembers meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Visit {
    pub(crate) at: At,
    /// Whether its sessions still stand. It does not know until it uses them.
    pub(crate) source: bool,
    pub(crate) target: bool,
    pub(crate) full: bool,
    pub(crate) due: bool,
    pub(crate) token: u8,
    /// The newest entries, as read under the locks.
    pub(crate) newest: Settled,
    pub(crate) put_back: Option<Id>,
    pub(crate) newest_there: Key,
    /// What it saw before the lock, where that rule is broken.
    pub(crate) peeked: Option<(Key, Set)>,
    pub(crate) sequence: Id,
    pub(crate) seen: Set,
    pub(crate) from: Id,
    pub(crate) decided: Id,
    pub(crate) mark: Option<Mark>,
    pub(crate) bound: Id,
    pub(crate) claim: Vec<Claimed>,
    pub(crate) nothing_left: bool,
    pub(crate) left_lowest: Option<Id>,
    /// Aggregates that had something waiting.
    pub(crate) blocked: Set,
    pub(crate) entry: Applied,
    pub(crate) plan: Vec<Step>,
}

/// A step of healing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Step {
    PutBack(Key),
    Settle(Applied),
}

/// An operator's replay, after its look without a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Replay {
    pub(crate) event: Event,
    pub(crate) head: Key,
}

/// How often each accident may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Budget {
    pub(crate) events: u8,
    /// Workers that end between the two commits. Elsewhere they end as often as they like: that leaves nothing behind.
    pub(crate) crashes: u8,
    /// Entries without events, that only move the start on.
    pub(crate) advances: u8,
    pub(crate) source_failovers: u8,
    pub(crate) target_failovers: u8,
    /// Sessions ended by others.
    pub(crate) ends: u8,
    pub(crate) refusals: u8,
    pub(crate) dba_locks: u8,
    pub(crate) replays: u8,
    pub(crate) skips: u8,
    pub(crate) give_backs: u8,
    pub(crate) retentions: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) source: Source,
    pub(crate) target: Target,
    /// As far as the replicas have come; after a failover, the branch that was left.
    pub(crate) source_replica: Option<Box<Source>>,
    pub(crate) target_replica: Option<Box<Target>>,
    pub(crate) visits: Vec<Visit>,
    /// An open transaction of a writer, by aggregate: it holds the aggregate's row, so there is one at a time.
    pub(crate) writers: Vec<Option<(Id, Event)>>,
    /// A row that somebody has locked who is no part of this.
    pub(crate) dba: Option<Id>,
    pub(crate) replay: Option<Replay>,
    /// The aggregate of every event there ever was.
    pub(crate) aggregates: Vec<Aggregate>,
    /// Events that a process still means to give an attempt back to.
    pub(crate) charged: Set,
    /// Only where a rule is broken: a position kept in memory.
    pub(crate) position: Id,
    /// Whether the target ever went back.
    pub(crate) target_went_back: bool,
    pub(crate) left: Budget,
}

impl Source {
    pub(crate) fn newest(&self) -> Settled {
        self.log.last().copied().unwrap_or_default()
    }

    pub(crate) fn row(&mut self, id: Id) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.id == id)
    }

    pub(crate) fn announce(&mut self, id: Id) {
        self.put_back = Some(self.put_back.map_or(id, |before| before.min(id)));
    }
}

impl Target {
    pub(crate) fn newest(&self) -> Key {
        self.log.last().map(|entry| entry.key).unwrap_or_default()
    }
}

impl State {
    /// The same with tokens and nonces counted anew, in order, and workers sorted. Of tokens only their order matters, and
    /// whether the next one drawn is already taken.
    pub(crate) fn canonical(mut self) -> State {
        self.trim();
        let mut tokens: BTreeMap<u8, u8> = BTreeMap::new();
        self.names(&mut |token, _| {
            tokens.insert(*token, 0);
        });
        let (mut before, mut name) = (0, 0);
        for (token, new) in &mut tokens {
            name += (token - before).min(2);
            (*new, before) = (name, *token);
        }
        self.names(&mut |token, _| *token = tokens[token]);
        self.visits.sort();
        let mut nonces = [0u8; 256];
        let mut next = 0;
        self.names(&mut |_, nonce| {
            let Some(nonce) = nonce else { return };
            if *nonce == 0 {
                return;
            }
            let name = &mut nonces[usize::from(*nonce)];
            if *name == 0 {
                next += 1;
                *name = next;
            }
            *nonce = *name;
        });
        // Two workers that differ by a nonce only may now be out of order; that costs a state or two, no more.
        self
    }

    /// What lies below an entry that both logs and both replicas have is never looked at again: no failover goes back so far.
    fn trim(&mut self) {
        if self.left.retentions > 0 || self.replay.is_some() {
            return;
        }
        let replicas = (self.source_replica.as_deref(), self.target_replica.as_deref());
        let everywhere = |key: &Key| {
            self.target.log.iter().any(|entry| entry.key == *key)
                && replicas.0.is_none_or(|replica| replica.log.iter().any(|entry| entry.key == *key))
                && replicas.1.is_none_or(|replica| replica.log.iter().any(|entry| entry.key == *key))
        };
        let Some(common) = self.source.log.iter().rev().map(|entry| entry.key).find(everywhere) else { return };
        let sources = [Some(&mut self.source), self.source_replica.as_deref_mut()];
        for source in sources.into_iter().flatten() {
            let below = source.log.iter().take_while(|entry| entry.key != common).count();
            source.log.drain(..below);
        }
        let targets = [Some(&mut self.target), self.target_replica.as_deref_mut()];
        for target in targets.into_iter().flatten() {
            let below = target.log.iter().take_while(|entry| entry.key != common).count();
            target.log.drain(..below);
        }
    }

    /// A nonce that nobody has.
    pub(crate) fn fresh_nonce(&mut self) -> u8 {
        let mut highest = 0;
        self.names(&mut |_, nonce| {
            if let Some(nonce) = nonce {
                highest = highest.max(*nonce);
            }
        });
        highest + 1
    }

    /// All tokens, each with its nonce if it has one. 0 is none.
    fn names(&mut self, of: &mut dyn FnMut(&mut u8, Option<&mut u8>)) {
        fn source(source: &mut Source, of: &mut dyn FnMut(&mut u8, Option<&mut u8>)) {
            source.log.iter_mut().for_each(|entry| of(&mut entry.key.token, Some(&mut entry.key.nonce)));
            of(&mut source.tokens, None);
            of(&mut source.forgotten, None);
        }
        fn target(target: &mut Target, of: &mut dyn FnMut(&mut u8, Option<&mut u8>)) {
            target.log.iter_mut().for_each(|entry| of(&mut entry.key.token, Some(&mut entry.key.nonce)));
            of(&mut target.forgotten, None);
        }
        source(&mut self.source, of);
        target(&mut self.target, of);
        self.source_replica.iter_mut().for_each(|replica| source(replica, of));
        self.target_replica.iter_mut().for_each(|replica| target(replica, of));
        for visit in &mut self.visits {
            of(&mut visit.token, None);
            of(&mut visit.newest.key.token, Some(&mut visit.newest.key.nonce));
            of(&mut visit.newest_there.token, Some(&mut visit.newest_there.nonce));
            of(&mut visit.entry.key.token, Some(&mut visit.entry.key.nonce));
            if let Some((key, _)) = &mut visit.peeked {
                of(&mut key.token, Some(&mut key.nonce));
            }
            for step in &mut visit.plan {
                let key = match step {
                    Step::PutBack(key) => key,
                    Step::Settle(entry) => &mut entry.key,
                };
                of(&mut key.token, Some(&mut key.nonce));
            }
        }
        if let Some(replay) = &mut self.replay {
            of(&mut replay.head.token, Some(&mut replay.head.nonce));
        }
    }
}
