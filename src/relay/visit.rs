//! A worker's visit to a lane: what it is sent for, and what comes of it.

use std::collections::HashMap;
use std::time::Duration;

use crate::event::Status;
pub use crate::heal::Healed;
use crate::lease::LeaseError;
use crate::session::{is_lock_timeout, sqlstate};

/// Why a worker goes to a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Errand {
    /// Scan from the very start instead of from the lane's position.
    pub full: bool,
    /// Claim retries whose time has come.
    pub due: bool,
    /// The last batch met a lock or a timeout: isolate the events that do.
    pub isolate: bool,
    /// If there is nothing to do, move the lane's start past what is stopped there.
    pub advance: bool,
    /// How often a batch is halved: see `narrower`.
    pub narrow: u32,
}

impl Errand {
    pub(super) fn at_most(&self, batch: u32) -> u32 {
        batch.checked_shr(self.narrow).unwrap_or(0).max(1)
    }
}

/// A batch that takes more of the deadline than one part in so many is too large: its lane is locked, and a transaction is open on both
/// sides, for all of that time.
const SHARE: u32 = 10;
/// A sixteenth: what is slow even so is slow for another reason than its size (far servers, a slow trigger), and more halving would only
/// make more batches of it.
const NARROW: u32 = 4;
/// A million events have become one: for batches that miss the deadline altogether.
pub(super) const NARROWEST: u32 = 20;

/// How often the next batch of a lane is to be halved, after one that was halved `narrow` times took so long. `full`: more events were
/// waiting than it took. A small batch that was slow tells nothing: it was not its size.
pub(super) fn narrower(narrow: u32, took: Duration, full: bool, deadline: Duration) -> u32 {
    let limit = deadline / SHARE;
    if took > limit {
        if full && narrow < NARROW { narrow + 1 } else { narrow }
    } else if took * 2 > limit {
        // Twice as many would be too many again.
        narrow
    } else {
        narrow.saturating_sub(1)
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Another worker has the lane.
    Busy,
    /// Everything is paused.
    Paused,
    /// Nothing to do.
    Nothing,
    /// A batch was settled.
    Settled(Counts),
    /// A step of healing was taken; there may be more.
    Healed(Healed),
}

/// A batch in numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// Applied, by aggregate type.
    pub processed: HashMap<String, u64>,
    /// Others, by aggregate type and status.
    pub unapplied: HashMap<(String, Status), u64>,
    /// Left pending: locked by somebody, or stopped.
    pub left: u64,
    /// Seconds from created to settled, each on the source's clock.
    pub lags: Vec<f64>,
    /// Whether the lane may have more.
    pub more: bool,
    /// The batch's duration.
    pub took: Duration,
}

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The source was away, or said no.
    #[error("source: {0}")]
    Source(#[source] sqlx::Error),
    /// The target was away. No attempt was counted.
    #[error("target: {0}")]
    Target(#[source] sqlx::Error),
    /// The target's lane is locked by somebody else.
    #[error("the lane is locked on the target")]
    TargetBusy,
    /// A lock or a timeout on the target: the next try isolates it.
    #[error("target: {0}")]
    Contended(#[source] sqlx::Error),
    /// Somebody else was faster. What the logs say next time counts.
    #[error("another worker has appended to the lane's log")]
    Overtaken,
    /// The deadline passed.
    #[error("not done within {0:?}")]
    Deadline(Duration),
    /// The lane cannot go on by itself.
    #[error("{0}")]
    Stopped(String),
}

impl BatchError {
    /// The server's SQLSTATE, if it said one.
    pub(super) fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
        match self {
            BatchError::Source(error) | BatchError::Target(error) | BatchError::Contended(error) => sqlstate(error),
            _ => None,
        }
    }

    /// A row of the outbox that is to be settled or healed is locked by somebody else.
    pub(super) fn is_row_locked(&self) -> bool {
        let BatchError::Source(error) = self else { return false };
        is_lock_timeout(error)
    }
}

impl From<LeaseError> for BatchError {
    fn from(error: LeaseError) -> BatchError {
        match error {
            LeaseError::Source(error) => BatchError::Source(error),
            LeaseError::Target(error) => BatchError::Target(error),
            LeaseError::TargetBusy => BatchError::TargetBusy,
            LeaseError::Overtaken => BatchError::Overtaken,
            LeaseError::Stopped(why) => BatchError::Stopped(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_shrinks_when_it_takes_too_much_of_the_deadline_and_grows_again() {
        let deadline = Duration::from_secs(30);
        for (narrow, milliseconds, full, next) in [
            // As nearly always.
            (0, 50, true, 0),
            (0, 50, false, 0),
            // Too long: half as many, and half of that.
            (0, 3_100, true, 1),
            (1, 3_100, true, 2),
            // That it was slow was not its size.
            (0, 3_100, false, 0),
            (3, 3_100, false, 3),
            // Just right.
            (2, 2_000, true, 2),
            // Twice as many fit.
            (2, 1_400, true, 1),
            (2, 1_400, false, 1),
            (1, 5, true, 0),
            // It was never its size: it is not halved any more.
            (NARROW, 20_000, true, NARROW),
            // That had missed the deadline as a larger one.
            (9, 20_000, true, 9),
        ] {
            let took = Duration::from_millis(milliseconds);
            assert_eq!(narrower(narrow, took, full, deadline), next, "{narrow} {took:?} {full}");
        }
    }

    #[test]
    fn a_batch_has_at_least_one_event() {
        for (narrow, events) in [(0, 2_000), (1, 1_000), (NARROW, 125), (NARROWEST, 1), (40, 1)] {
            assert_eq!(Errand { narrow, ..Errand::default() }.at_most(2_000), events);
        }
    }
}
