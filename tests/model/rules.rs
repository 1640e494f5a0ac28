//! The protocol's rules, each of which can be broken on its own.

/// A clause of the protocol. What [`World::keeps`](crate::world::World::keeps) it does as the relay does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// A token that is not above the target's newest is drawn on, and refused.
    TokensGrow,
    /// A batch has a nonce besides its token.
    Nonce,
    /// An entry is appended onto the newest entry only, on both sides.
    ParentIsNewest,
    /// The target's lane is locked before its log is read, until the commit.
    TargetLock,
    /// What is read of a lane is read after its lock.
    ReadAfterLock,
    /// The claim, and the second look at it, come after the target's lock and the comparison. (A round's claim does not.)
    ClaimUnderBothLocks,
    /// The target commits before the source commits what it settled.
    SettleAfterCommit,
    /// Logs that end differently are healed before anything is claimed.
    CompareUnderLocks,
    /// The logs' ends are compared although nothing is pending.
    CompareIdle,
    /// Healing puts back before it settles.
    PutBackFirst,
    /// It puts the newest entry back first.
    NewestFirst,
    /// It settles the oldest entry first.
    OldestSettledFirst,
    /// It works out each step anew.
    PlanAnew,
    /// It settles by `id` and `event_id`.
    EventIdAgrees,
    /// It logs only ids whose `event_id` agreed.
    LogOnlyAgreeing,
    /// It settles whatever the status.
    WhateverStatus,
    /// It notes what the outbox does not have.
    NoteDivergent,
    /// It marks the overtaken, and in the same transaction.
    Overtaken,
    /// It puts back only what is still processed.
    StillProcessed,
    /// It releases what was held behind what it settles.
    ReleaseInHealing,
    /// A due retry is claimed only up to where pending events were looked for.
    DueBound,
    /// After the claim the pending ids of the range are read again.
    Recheck,
    /// That second look reaches up to the due retries.
    RecheckToDue,
    /// Behind a lower id in retry, held or failed an event is held.
    HeldBehindLower,
    /// What is behind a failed event of the same batch is held.
    HeldBehindFailed,
    /// Held events are released only if nothing before them waits.
    ReleaseUnblocked,
    /// What waits behind an event is released when that was applied.
    ReleaseWhenApplied,
    /// The position passes no id that an open transaction may commit.
    WaitForWriters,
    /// The sequence is read before the writers.
    SequenceFirst,
    /// Writers are looked at before the scan.
    DecidedBeforeScan,
    /// The position is kept in the log's entry, never in memory.
    PositionInLog,
    /// Who puts an event back, or replays it, says so.
    AnnouncePutBack,
    AnnounceReplay,
    /// The position does not pass what was left, or released.
    StopAtLeft,
    StopAtReleased,
    /// A replay is refused when a newer event was applied; looked at again under the lock; never by a log that was healed.
    ReplayLooks,
    ReplayLooksAgain,
    ReplayKnowsItsHead,
    /// An attempt is given back to no event that was overtaken.
    GiveBackNotOvertaken,
    /// What is forgotten on purpose leaves a mark.
    LeaveMark,
    /// The newest of what is old enough is kept, so that both sides remember one batch.
    KeepAnAnchor,
    /// The source retires only what the target is seen to have.
    RetireWhatTheTargetHas,
    /// The target forgets only what the source has had for longer than its replica lags.
    ForgetWhatBothHadLong,
}
