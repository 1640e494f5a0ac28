//! A worker's visit to a lane: what it is sent for, and what comes of it.

use std::collections::HashMap;
use std::time::Duration;

use crate::event::Status;
pub use crate::heal::Healed;
use crate::lease::LeaseError;
use crate::session::is_lock_timeout;

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
    /// So many batches in a row were not done by the deadline: each time half as many events.
    pub narrow: u32,
}

impl Errand {
    pub(super) fn at_most(&self, batch: u32) -> u32 {
        batch.checked_shr(self.narrow).unwrap_or(0).max(1)
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
