//! Retention: deletes what is old enough, in small steps that lock nobody out.
//!
//! Guarantees: no event is deleted unless it was processed longer ago than both `[retention] processed` and
//! `[relay] replica_lag` (healing may still need it before) and the target still has what it did, and none that failed. The
//! target's log forgets only what the source has had for longer than a replica lags. However far within that either side goes
//! back, both logs remember one batch. While the target is away, no processed event is deleted.

use std::collections::HashMap;
use std::time::Duration;

use crate::config::Config;
use crate::session::within;
use crate::source::{Retired, Source};
use crate::target::Target;

/// Log entries a step: a step is one transaction under the lane's lock, and workers wait for it.
const ENTRIES: i64 = 500;
/// Events of these.
const EVENTS: i64 = 4000;
/// Entries that one lane of the target forgets at once.
const FORGOTTEN: i64 = 1000;
/// Skipped events a step.
const SKIPPED: i64 = 1000;

/// What was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Processed events.
    pub processed: u64,
    /// Skipped events.
    pub skipped: u64,
    /// Entries of the source's log.
    pub entries: u64,
}

/// How long housekeeping waits for a lane: while events flow, it is free for a moment only between one batch and the next.
pub(crate) const A_MOMENT: Duration = Duration::from_millis(500);

/// What a run came to.
#[derive(Debug, Default)]
pub struct Done {
    /// What was deleted.
    pub counts: Counts,
    /// What the server refused, if anything: first a lane's events, whose turn comes again, while the others' were deleted all the same.
    pub refused: Option<sqlx::Error>,
}

impl Done {
    /// What was done; or what a server refused, unless it was refused before. Whoever does not answer ends it.
    fn heed<T: Default>(&mut self, result: sqlx::Result<T>) -> sqlx::Result<T> {
        match result {
            Err(error) if error.as_database_error().is_some() => {
                self.refused.get_or_insert(error);
                Ok(T::default())
            }
            other => other,
        }
    }
}

/// Deletes a bounded amount. More may be left when anything was deleted.
pub async fn run_once(config: &Config, source: &Source, target: &Target) -> sqlx::Result<Done> {
    let mut done = Done::default();
    let deadline = config.relay.deadline;
    let age = config.retention.processed.max(config.relay.replica_lag);
    let lanes = source.retirable(age).await?;
    // What the target has now, no failover within `replica_lag` takes from it. What it lost before now is still to be put back.
    let there = if lanes.is_empty() { HashMap::new() } else { target.heads().await? };
    for lane in lanes {
        let Some(Some(there)) = there.get(&lane) else { continue };
        let step = within(deadline, async {
            // Busy all the while: its turn comes.
            let Some(mut locked) = source.wait_for_lane(lane, A_MOMENT).await? else { return Ok(Retired::default()) };
            let retired = locked.retire(age, ENTRIES, EVENTS, *there).await?;
            locked.commit().await?;
            Ok(retired)
        });
        let retired = done.heed(step.await)?;
        done.counts.processed += retired.events;
        done.counts.entries += retired.entries;
    }
    done.counts.skipped = done.heed(source.retire_skipped(config.retention.skipped, SKIPPED).await)?;
    done.heed(forget_on_target(config, source, target).await)?;
    Ok(done)
}

/// The target keeps what the source has not had for `replica_lag`: it may yet go back to before it.
async fn forget_on_target(config: &Config, source: &Source, target: &Target) -> sqlx::Result<()> {
    let lag = config.relay.replica_lag;
    let old = target.old_entries(lag, FORGOTTEN).await?;
    if old.is_empty() {
        return Ok(());
    }
    target.forget_entries(&source.settled_long_ago(&old, lag).await?).await
}
