//! The protocol with one rule broken: each must be refuted, or the rule is of no use.

use crate::properties::{ONCE, TRUE};
use crate::rules::Rule;
use crate::world::World;
use crate::worlds::*;

/// A change of the model, and what the checker finds.
pub(crate) struct Mutant {
    pub(crate) name: &'static str,
    /// One rule; two where each is the other's second line.
    pub(crate) broken: &'static [Rule],
    pub(crate) world: World,
    /// One of the properties, with the reason if it is [`DRAINS`].
    pub(crate) violates: &'static str,
    /// The shortest way there, in steps.
    pub(crate) steps: usize,
}

pub(crate) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "tokens are not drawn on, nor refused",
        broken: &[Rule::TokensGrow],
        world: TARGET_BRANCHES,
        violates: "twice",
        steps: 31,
    },
    Mutant {
        name: "a batch has a token and no nonce",
        broken: &[Rule::Nonce],
        world: TARGET_BRANCHES,
        violates: "lost",
        steps: 19,
    },
    Mutant {
        name: "the target's lane is not locked",
        broken: &[Rule::TargetLock],
        world: GHOSTS,
        violates: ONCE,
        steps: 14,
    },
    Mutant {
        name: "a lane is read as of before its lock",
        broken: &[Rule::ReadAfterLock],
        world: OPERATORS_POSITIONS,
        violates: "out of order",
        steps: 34,
    },
    Mutant {
        name: "the same, and entries are appended onto any parent",
        broken: &[Rule::ReadAfterLock, Rule::ParentIsNewest],
        world: GHOSTS,
        violates: ONCE,
        steps: 16,
    },
    Mutant {
        name: "the source settles before the target commits",
        broken: &[Rule::SettleAfterCommit],
        world: GHOSTS,
        violates: TRUE,
        steps: 15,
    },
    Mutant {
        name: "the logs are not compared under the locks",
        broken: &[Rule::CompareUnderLocks],
        world: GHOSTS,
        violates: "twice",
        steps: 14,
    },
    Mutant {
        name: "the logs of idle lanes are not compared",
        broken: &[Rule::CompareIdle],
        world: FAILOVERS,
        violates: "lost",
        steps: 9,
    },
    Mutant {
        name: "healing settles before it puts back",
        broken: &[Rule::PutBackFirst],
        world: TARGET_BRANCHES,
        violates: "twice",
        steps: 17,
    },
    Mutant {
        name: "healing puts back the oldest entry first",
        broken: &[Rule::NewestFirst],
        world: TARGET_BRANCHES,
        violates: "twice",
        steps: 21,
    },
    Mutant {
        name: "healing settles the newest entry first",
        broken: &[Rule::OldestSettledFirst],
        world: FAILOVERS,
        violates: "the outbox does not know what it forgot",
        steps: 17,
    },
    Mutant {
        name: "healing carries its plan from step to step",
        broken: &[Rule::PlanAnew],
        world: TARGET_BRANCHES,
        violates: "twice",
        steps: 24,
    },
    Mutant {
        name: "healing settles by id alone",
        broken: &[Rule::EventIdAgrees],
        world: FAILOVERS,
        violates: "lost",
        steps: 10,
    },
    Mutant {
        name: "healing logs ids whose event_id differed",
        broken: &[Rule::LogOnlyAgreeing],
        world: FAILOVERS,
        violates: "does not drain",
        steps: 13,
    },
    Mutant {
        name: "healing settles only what is pending",
        broken: &[Rule::WhateverStatus],
        world: OPERATORS,
        violates: "twice",
        steps: 16,
    },
    Mutant {
        name: "healing does not note what the outbox does not have",
        broken: &[Rule::NoteDivergent],
        world: FAILOVERS,
        violates: "the outbox does not know what it forgot",
        steps: 9,
    },
    Mutant {
        name: "healing marks the overtaken in a later transaction",
        broken: &[Rule::Overtaken],
        world: OPERATORS,
        violates: "out of order",
        steps: 19,
    },
    Mutant {
        name: "healing releases nothing",
        broken: &[Rule::ReleaseInHealing],
        world: OPERATORS,
        violates: "held for ever",
        steps: 17,
    },
    Mutant {
        name: "the pending ids of the range are not read again",
        broken: &[Rule::Recheck],
        world: LOCKED_ROWS,
        violates: "out of order",
        steps: 13,
    },
    Mutant {
        name: "they are read again only as far as pending ones were claimed",
        broken: &[Rule::RecheckToDue],
        world: LOCKED_ROWS,
        violates: "out of order",
        steps: 27,
    },
    Mutant {
        name: "an event behind a lower one in retry, held or failed is not held",
        broken: &[Rule::HeldBehindLower],
        world: OPERATORS,
        violates: "out of order",
        steps: 16,
    },
    Mutant {
        name: "an event behind one that failed in its batch is not held",
        broken: &[Rule::HeldBehindFailed],
        world: OPERATORS,
        violates: "out of order",
        steps: 12,
    },
    Mutant {
        name: "settling releases nothing",
        broken: &[Rule::ReleaseWhenApplied],
        world: OPERATORS,
        violates: "held for ever",
        steps: 12,
    },
    Mutant {
        name: "the position does not wait for open writers",
        broken: &[Rule::WaitForWriters],
        world: POSITIONS,
        violates: "out of order",
        steps: 24,
    },
    Mutant {
        name: "the writers are read before the sequence",
        broken: &[Rule::SequenceFirst],
        world: POSITIONS,
        violates: "out of order",
        steps: 24,
    },
    Mutant {
        name: "the writers are read after the scan",
        broken: &[Rule::DecidedBeforeScan],
        world: POSITIONS_LONGER,
        violates: "out of order",
        steps: 22,
    },
    Mutant {
        name: "the position is kept in memory",
        broken: &[Rule::PositionInLog],
        world: POSITIONS_BACK,
        violates: "out of order",
        steps: 25,
    },
    Mutant {
        name: "what healing puts back is not announced",
        broken: &[Rule::AnnouncePutBack],
        world: LOCKED_ROWS,
        violates: "out of order",
        steps: 32,
    },
    Mutant {
        name: "a replay is not announced",
        broken: &[Rule::AnnounceReplay],
        world: OPERATORS_POSITIONS,
        violates: "out of order",
        steps: 23,
    },
    Mutant {
        name: "the position passes what was left",
        broken: &[Rule::StopAtLeft],
        world: OPERATORS_POSITIONS,
        violates: "out of order",
        steps: 24,
    },
    Mutant {
        name: "the position passes what was released",
        broken: &[Rule::StopAtReleased],
        world: OPERATORS_POSITIONS,
        violates: "out of order",
        steps: 12,
    },
    Mutant {
        name: "a replay does not ask for newer events",
        broken: &[Rule::ReplayLooks, Rule::ReplayLooksAgain],
        world: OPERATORS,
        violates: "out of order",
        steps: 19,
    },
    Mutant {
        name: "a replay does not ask again under the lock",
        broken: &[Rule::ReplayLooksAgain],
        world: OPERATORS,
        violates: "out of order",
        steps: 19,
    },
    Mutant {
        name: "an attempt is given back to an event that was overtaken",
        broken: &[Rule::GiveBackNotOvertaken],
        world: OPERATORS_BACK,
        violates: "out of order",
        steps: 23,
    },
    Mutant {
        name: "of what is old, none stays",
        broken: &[Rule::KeepAnAnchor],
        world: RETENTION,
        violates: "a lane stops",
        steps: 10,
    },
    Mutant {
        name: "the source retires what the target lost",
        broken: &[Rule::RetireWhatTheTargetHas],
        world: RETENTION,
        violates: "a lane stops",
        steps: 10,
    },
    Mutant {
        name: "the target forgets by when it applied",
        broken: &[Rule::ForgetWhatBothHadLong],
        world: RETENTION,
        violates: "a lane stops",
        steps: 12,
    },
];

/// Rules that another one stands in for in all of these states: each is the second line behind what could be wrong in the
/// first, or guards what is no part of the model. The page says by which test they are shown.
pub(crate) const SECOND_LINES: &[(&[Rule], World)] = &[
    (&[Rule::ParentIsNewest], GHOSTS),
    (&[Rule::ParentIsNewest], SOURCE_BRANCHES),
    (&[Rule::ClaimUnderBothLocks], GHOSTS),
    (&[Rule::StillProcessed], SOURCE_BRANCHES),
    (&[Rule::DueBound], LOCKED_ROWS),
    (&[Rule::ReleaseUnblocked], REFUSALS),
    (&[Rule::LeaveMark], RETENTION),
];
