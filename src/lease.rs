//! A lane, taken on both sides: the ground on which everybody stands who changes the new database besides an operator's hand. The
//! relay takes it for a batch; the copy, verification and repair for a look at rows that no event may change meanwhile.
//!
//! Guarantees: while both locks are held no batch of the lane takes effect, and all that took effect before is settled, for the
//! two logs end with the same batch. So what is read from the source *after* [`take`] has seen everything that was applied.
//! Does not guarantee that the lease still stands when the caller commits: from here on the lock on the target keeps others out.

use std::time::{Duration, Instant};

use crate::event::Lane;
use crate::failpoint::reach;
use crate::heal;
use crate::session::is_lock_timeout;
use crate::source::{SettleError, Source, SourceLane};
use crate::target::{Target, TargetLane};

/// What came of trying to take a lane.
pub enum Taken {
    /// Somebody else has it.
    Busy,
    /// Both locked, the logs agree.
    Both(SourceLane, TargetLane),
    /// Both locked, but the logs end differently: heal first.
    Differ(SourceLane, TargetLane),
}

/// Why a lane could not be taken, or healed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The source was away, or said no.
    #[error("source: {0}")]
    Source(#[source] sqlx::Error),
    /// The target was away, or said no.
    #[error("target: {0}")]
    Target(#[source] sqlx::Error),
    /// The target's lane is locked by somebody else.
    #[error("the lane is locked on the target")]
    TargetBusy,
    /// Somebody else was faster. What the logs say next time counts.
    #[error("another worker has appended to the lane's log")]
    Overtaken,
    /// The lane cannot go on by itself.
    #[error("{0}")]
    Stopped(String),
}

impl LeaseError {
    /// What could not be settled.
    pub(crate) fn of_settling(error: SettleError) -> LeaseError {
        match error {
            SettleError::Database(error) => LeaseError::Source(error),
            SettleError::NotTheNewest => LeaseError::Overtaken,
            SettleError::Vanished { .. } => LeaseError::Stopped(error.to_string()),
        }
    }
}

/// Locks the lane on the source, then on the target, and compares what the logs end with. With `patience`, waits for whoever holds
/// it on the source; without, a lane that is held is [`Taken::Busy`] at once.
pub async fn take(
    source: &Source,
    target: &Target,
    lane: Lane,
    patience: Option<Duration>,
) -> Result<Taken, LeaseError> {
    let locked = match patience {
        None => source.lock_lane(lane).await,
        Some(patience) => source.wait_for_lane(lane, patience).await,
    };
    let Some(source) = locked.map_err(LeaseError::Source)? else { return Ok(Taken::Busy) };
    reach("source_locked");
    let Some(target) = target.lock_lane(lane).await.map_err(of_target_lock)? else {
        return Err(LeaseError::Stopped(format!("the new database has no lane {lane} for this outbox: run init")));
    };
    reach("target_locked");
    check_peers(&source, &target)?;
    let (here, there) = (source.newest.as_ref().map(|entry| entry.key), target.newest.as_ref().map(|(key, _)| *key));
    if here.is_none() && there.is_none() {
        return Err(LeaseError::Stopped(format!(
            "lane {lane}: neither database has a log of it: run outbox-relay init"
        )));
    }
    Ok(if here == there { Taken::Both(source, target) } else { Taken::Differ(source, target) })
}

/// For whoever is not the relay: waits for the lane and heals it, until both locks are held and the logs agree, whether a relay
/// runs or not. `None`: not within `patience`. `pass` and `release_at_most` as for [`heal::run_once`].
pub async fn take_healed(
    source: &Source,
    target: &Target,
    lane: Lane,
    patience: Duration,
    pass: &[String],
    release_at_most: u32,
) -> Result<Option<(SourceLane, TargetLane)>, LeaseError> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match take(source, target, lane, Some(left)).await {
            Ok(Taken::Both(source, target)) => return Ok(Some((source, target))),
            Ok(Taken::Differ(source, target)) => {
                heal::run_once(source, target, pass, release_at_most).await?;
            }
            // A ghost on the target: the source's lock was given back, and is taken anew.
            Ok(Taken::Busy) | Err(LeaseError::TargetBusy | LeaseError::Overtaken) if !left.is_zero() => {}
            Ok(Taken::Busy) | Err(LeaseError::TargetBusy | LeaseError::Overtaken) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

fn of_target_lock(error: sqlx::Error) -> LeaseError {
    if is_lock_timeout(&error) { LeaseError::TargetBusy } else { LeaseError::Target(error) }
}

/// A clone or a restored dump has another identity than the one that the logs were written against.
fn check_peers(source: &SourceLane, target: &TargetLane) -> Result<(), LeaseError> {
    let lane = source.lane;
    let moved = |side: &str, known: &str, found: &str| {
        Err(LeaseError::Stopped(format!(
            "lane {lane}: the {side} database is {found}, but the log was written against {known}. If it was moved on purpose: \
             outbox-relay init --moved"
        )))
    };
    if let Some(entry) = &source.newest
        && entry.peer != target.identity
    {
        return moved("new", &entry.peer.0, &target.identity.0);
    }
    if let Some((_, peer)) = &target.newest
        && *peer != source.identity
    {
        return moved("legacy", &peer.0, &source.identity.0);
    }
    Ok(())
}
