//! Retention: deletes what is old enough, in small steps that lock nobody out.
//!
//! Guarantees: no event is deleted unless it was processed longer ago than both `[retention] processed` and
//! `[relay] replica_lag` (healing may still need it before), and none that failed. Either log forgets only what the other is known
//! to have: while one database is away, nothing goes on the other.

use std::collections::HashMap;

use crate::config::Config;
use crate::event::{Lane, Token};
use crate::source::Source;
use crate::target::Target;

/// Log entries a step: a step is one transaction under the lane's lock, and workers wait for it.
const ENTRIES: i64 = 4;
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

/// Deletes a bounded amount. More may be left when anything was deleted.
pub async fn run_once(config: &Config, source: &Source, target: &Target) -> sqlx::Result<Counts> {
    let mut counts = Counts::default();
    let age = config.retention.processed.max(config.relay.replica_lag);
    counts.skipped = source.retire_skipped(config.retention.skipped, SKIPPED).await?;
    let lanes = source.retirable(age).await?;
    let on_target = if lanes.is_empty() { HashMap::new() } else { target.heads().await? };
    for lane in lanes {
        let Some(Some(newest)) = on_target.get(&lane) else { continue };
        // Busy: its turn comes.
        let Some(mut locked) = source.lock_lane(lane).await? else { continue };
        let retired = locked.retire(age, ENTRIES, *newest).await?;
        locked.commit().await?;
        counts.processed += retired.events;
        counts.entries += retired.entries;
    }
    forget_on_target(config, source, target).await?;
    Ok(counts)
}

/// The target keeps for `replica_lag` what the source has too: the source may yet go back to before it.
async fn forget_on_target(config: &Config, source: &Source, target: &Target) -> sqlx::Result<()> {
    let (on_source, on_target) = tokio::try_join!(source.heads(), target.heads())?;
    let both_have: Vec<(Lane, Token)> = on_target
        .into_iter()
        .filter_map(|(lane, head)| {
            head.filter(|here| on_source.get(&lane) == Some(&Some(*here))).map(|key| (lane, key.token))
        })
        .collect();
    target.forget_entries(&both_have, config.relay.replica_lag).await
}
