//! The models that are checked whole, and that mutants are refuted in.

use crate::state::Budget;
use crate::world::World;

/// One worker ends between the two commits, and nothing else happens.
const QUIET: Budget = Budget {
    events: 0,
    crashes: 1,
    advances: 0,
    source_failovers: 0,
    target_failovers: 0,
    ends: 0,
    refusals: 0,
    dba_locks: 0,
    replays: 0,
    skips: 0,
    give_backs: 0,
    retentions: 0,
};

const ONE_WORKER: World = World {
    name: "",
    workers: 1,
    aggregates: 1,
    batch: 2,
    budget: QUIET,
    late_writers: false,
    positions: false,
    pass: false,
    broken: &[],
    reaches: &[],
};

/// Two workers, of whom one loses its lease without knowing, and the other too.
pub(crate) const GHOSTS: World = World {
    name: "ghosts",
    workers: 2,
    budget: Budget { events: 3, crashes: 2, ends: 2, ..QUIET },
    reaches: &["a worker without its lease commits on the target", "such a worker, and another in the same lane"],
    ..ONE_WORKER
};

/// Two workers, and both databases fail over to replicas that lag.
pub(crate) const FAILOVERS: World = World {
    name: "failovers",
    workers: 2,
    budget: Budget { events: 2, ends: 1, source_failovers: 1, target_failovers: 1, ..QUIET },
    reaches: &[
        "a worker without its lease commits on the target",
        "such a worker, and another in the same lane",
        "both databases went back",
        "each log has a batch that the other has not",
        "an id is another event's now",
        "the target knows what the outbox forgot",
    ],
    ..ONE_WORKER
};

/// Both go back, one of them once more: also onto the branch that was left.
pub(crate) const TARGET_BRANCHES: World = World {
    name: "target_branches",
    batch: 1,
    budget: Budget { events: 2, source_failovers: 1, target_failovers: 2, ..QUIET },
    reaches: &["each log has a batch that the other has not", "a token is another batch's on the other side"],
    ..ONE_WORKER
};
pub(crate) const SOURCE_BRANCHES: World = World {
    name: "source_branches",
    batch: 1,
    budget: Budget { events: 2, source_failovers: 2, target_failovers: 1, ..QUIET },
    reaches: &["each log has a batch that the other has not", "a token is another batch's on the other side"],
    ..ONE_WORKER
};

/// Writers' transactions stay open, and scans start from a position.
pub(crate) const POSITIONS: World = World {
    name: "positions",
    aggregates: 2,
    late_writers: true,
    positions: true,
    budget: Budget { events: 3, advances: 2, ..QUIET },
    reaches: &["a writer is open below the mark", "the position passed an event"],
    ..ONE_WORKER
};
/// A fourth event.
pub(crate) const POSITIONS_LONGER: World =
    World { name: "positions_longer", budget: Budget { events: 4, crashes: 0, ..POSITIONS.budget }, ..POSITIONS };
/// Each commits at once, and the source goes back.
pub(crate) const POSITIONS_BACK: World = World {
    name: "positions_back",
    aggregates: 2,
    positions: true,
    budget: Budget { events: 3, advances: 1, source_failovers: 1, ..QUIET },
    reaches: &["the position passed an event", "an id is another event's now"],
    ..ONE_WORKER
};
/// Somebody else has a row locked, and the target goes back.
pub(crate) const LOCKED_ROWS: World = World {
    name: "locked_rows",
    positions: true,
    budget: Budget { events: 2, refusals: 1, dba_locks: 1, target_failovers: 1, ..QUIET },
    reaches: &["an event that was put back waits before a retry"],
    ..ONE_WORKER
};

/// Events are refused, retried, held, given up, replayed, skipped.
pub(crate) const OPERATORS: World = World {
    name: "operators",
    workers: 2,
    budget: Budget { events: 2, ends: 1, refusals: 1, replays: 1, skips: 1, ..QUIET },
    reaches: &["an event was overtaken", "an event is held", "an event is given up", "a replay is over"],
    ..ONE_WORKER
};
/// The same with positions, and a third event.
pub(crate) const OPERATORS_POSITIONS: World = World {
    name: "operators_positions",
    positions: true,
    budget: Budget { events: 3, refusals: 1, replays: 1, skips: 1, dba_locks: 1, ..QUIET },
    reaches: &[
        "an event is held",
        "a replay is over",
        "the position passed an event",
        "an event is left behind a locked one",
    ],
    ..ONE_WORKER
};
/// Three events, of which two are refused.
pub(crate) const REFUSALS: World = World {
    name: "refusals",
    budget: Budget { events: 3, refusals: 2, replays: 1, skips: 1, ..QUIET },
    reaches: &["an event is held", "an event is given up", "a replay is over"],
    ..ONE_WORKER
};
/// The source goes back, and a process gives attempts back that it charged long ago.
pub(crate) const OPERATORS_BACK: World = World {
    name: "operators_back",
    budget: Budget { events: 2, refusals: 1, replays: 1, skips: 1, give_backs: 1, source_failovers: 1, ..QUIET },
    reaches: &["an event was overtaken", "an event is given up"],
    ..ONE_WORKER
};
/// A failed event is passed over.
pub(crate) const OPERATORS_PASS: World = World {
    name: "operators_pass",
    pass: true,
    budget: Budget { events: 2, refusals: 1, replays: 1, target_failovers: 1, ..QUIET },
    reaches: &["an event is given up", "a replay is over"],
    ..ONE_WORKER
};

/// Both sides delete what is old.
pub(crate) const RETENTION: World = World {
    name: "retention",
    batch: 1,
    budget: Budget { events: 2, retentions: 2, source_failovers: 1, target_failovers: 1, ..QUIET },
    reaches: &["both sides have forgotten a batch", "both databases went back"],
    ..ONE_WORKER
};

/// What is checked whole.
pub(crate) const ALL: &[World] = &[
    GHOSTS,
    FAILOVERS,
    TARGET_BRANCHES,
    SOURCE_BRANCHES,
    POSITIONS,
    POSITIONS_BACK,
    LOCKED_ROWS,
    OPERATORS,
    OPERATORS_POSITIONS,
    REFUSALS,
    OPERATORS_BACK,
    OPERATORS_PASS,
    RETENTION,
];

/// Larger, for hours.
pub(crate) const LARGE: &[World] = &[
    World { budget: Budget { events: 3, ends: 2, ..FAILOVERS.budget }, ..FAILOVERS },
    World { workers: 2, budget: Budget { ends: 1, ..TARGET_BRANCHES.budget }, ..TARGET_BRANCHES },
    World { workers: 2, budget: Budget { ends: 1, ..SOURCE_BRANCHES.budget }, ..SOURCE_BRANCHES },
    World { workers: 2, budget: Budget { events: 4, dba_locks: 1, ..POSITIONS.budget }, ..POSITIONS },
    World { workers: 2, budget: Budget { target_failovers: 1, ..POSITIONS_BACK.budget }, ..POSITIONS_BACK },
    World { workers: 2, budget: Budget { events: 3, ..LOCKED_ROWS.budget }, ..LOCKED_ROWS },
    World { budget: Budget { events: 3, dba_locks: 1, ..OPERATORS.budget }, ..OPERATORS },
    World { budget: Budget { target_failovers: 1, ..OPERATORS_POSITIONS.budget }, ..OPERATORS_POSITIONS },
    World { budget: Budget { events: 3, target_failovers: 1, ..OPERATORS_BACK.budget }, ..OPERATORS_BACK },
    World { workers: 2, budget: Budget { events: 3, ends: 1, ..OPERATORS_PASS.budget }, ..OPERATORS_PASS },
    World { budget: Budget { events: 3, retentions: 3, ..RETENTION.budget }, ..RETENTION },
];
