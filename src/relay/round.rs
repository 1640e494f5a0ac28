//! A round: the little that several lanes have to do, in one transaction on each side. While events trickle each lane has one or two
//! at a time, and a batch of ten round trips and two commits for each of them costs both databases far more than the events do.
//!
//! Guarantees what a [`batch`](super::batch) does, in the same order of statements: each lane is locked, read and settled by itself, and
//! gets an entry of its own in both logs, so that healing knows no rounds. Does only what is plain: a lane where anything is the matter
//! drops out, and where something goes wrong the whole round is undone, before it has taken effect. Both are then left to batches.

use std::time::{Duration, Instant};

use super::Shared;
use super::apply::together;
use super::router::{Destination, Router};
use super::tally::{Tally, count};
use super::visit::{BatchError, Counts};
use crate::event::{Event, Identity, Lane};
use crate::failpoint::reach;
use crate::lease::LeaseError;
use crate::session::sqlstate;
use crate::source::{Part, Settlement, SourceLanes};
use crate::target::{LaneEntry, TargetLanes};

/// How many lanes share a round.
pub(super) const LANES: usize = 16;
/// How many events of a lane at most, and all together no more than a batch: a lane that has more gets batches.
const EVENTS: u32 = 64;

/// What came of a round, lane by lane.
#[derive(Debug, Default, PartialEq)]
pub struct Round {
    /// A batch was settled there.
    pub settled: Vec<(Lane, Counts)>,
    /// Another worker has it.
    pub busy: Vec<Lane>,
    /// Nothing to do.
    pub idle: Vec<Lane>,
    /// Something is the matter: to be looked at in a batch of its own.
    pub alone: Vec<Lane>,
    /// How long the events' own statements took.
    pub applying: Duration,
}

/// One round over these lanes.
pub async fn run_once(shared: &Shared, lanes: &[Lane]) -> Result<Round, BatchError> {
    let deadline = shared.config.relay.deadline;
    // Both sessions are dropped then, and with them their connections.
    tokio::time::timeout(deadline, attempt(shared, lanes)).await.unwrap_or(Err(BatchError::Deadline(deadline)))
}

async fn attempt(shared: &Shared, lanes: &[Lane]) -> Result<Round, BatchError> {
    let started = Instant::now();
    let mut round = Round::default();
    let mut source = shared.source.lock_lanes(lanes).await.map_err(BatchError::Source)?;
    reach("source_locked");
    let locked = source.lanes();
    round.busy = lanes.iter().copied().filter(|lane| !locked.contains(lane)).collect();
    if source.paused.iter().any(String::is_empty) {
        round.idle = source.drop_unless(|_| false);
    }
    if source.parts.is_empty() {
        source.release_leases().await;
        return Ok(round);
    }
    // One after the other, as in a batch: who asks for both connections at once, and others one by one, wait in a circle behind a
    // pooler that has few.
    let mut target =
        shared.target.lock_lanes(&source.lanes(), !shared.router().has_own_sql()).await.map_err(BatchError::Target)?;
    reach("target_locked");
    let here = source.identity.clone();
    round.alone = source.drop_unless(|part| agrees(part, &here, &target));
    if source.parts.is_empty() {
        target.abandon().await;
        source.release_leases().await;
        return Ok(round);
    }
    // Only now, as in a batch: that the source still answers is the proof that this worker is no ghost.
    let (mut excluded, relay) = (shared.stops.excluded(), &shared.config.relay);
    excluded.append(&mut source.paused);
    excluded.sort();
    excluded.dedup();
    let each = EVENTS.min(relay.batch / u32::try_from(source.parts.len()).unwrap_or(u32::MAX)).max(1);
    let large = source.claim(&excluded, each, relay.batch_bytes).await.map_err(BatchError::Source)?;
    reach("claimed");
    round.alone.extend(source.drop_unless(|part| !large.contains(&part.lane)));
    round.idle = source.drop_unless(|part| !part.claim.events.is_empty());
    let router = shared.router();
    let pass = router.passing();
    if !source.parts.is_empty() {
        let disturbed = source.disturbed(&excluded, &pass).await.map_err(BatchError::Source)?;
        round.alone.extend(source.drop_unless(|part| !disturbed.contains(&part.lane) && is_plain(part, &router)));
    }
    if source.parts.is_empty() {
        target.abandon().await;
        source.release_leases().await;
        return Ok(round);
    }
    // In the order in which they were written, for a parent's lane may be behind its child's.
    let mut events: Vec<&Event> = source.parts.iter().flat_map(|part| &part.claim.events).collect();
    events.sort_unstable_by_key(|event| event.id);
    let applying = Instant::now();
    let applied = together(&router, target.hand(), &events).await;
    round.applying = applying.elapsed();
    if let Err(refusal) = applied {
        let code = sqlstate(&refusal.error);
        tracing::debug!(code = code.as_deref(), "refused in a round; each lane by itself");
        round.alone.extend(source.lanes());
        target.abandon().await;
        source.release_leases().await;
        return Ok(round);
    }
    reach("applied");
    round.settled = take_effect(shared, source, target, started).await?;
    Ok(round)
}

/// Whether the logs end alike, and nothing else asks for more than a batch's plain course.
fn agrees(part: &Part, here: &Identity, target: &TargetLanes) -> bool {
    let Some(entry) = &part.newest else { return false };
    let Some((key, peer)) = target.newest.get(&part.lane) else { return false };
    entry.key == *key && entry.peer == target.identity && peer == here && part.key.token > key.token && !part.put_back
}

/// Whether every claimed event has a way through the mapping.
fn is_plain(part: &Part, router: &Router) -> bool {
    part.claim.events.iter().all(|event| matches!(router.destination(event), Destination::Shape(_)))
}

/// What was applied takes effect, and only then is settled; each lane's logs get its entry.
async fn take_effect(
    shared: &Shared,
    mut source: SourceLanes,
    mut target: TargetLanes,
    started: Instant,
) -> Result<Vec<(Lane, Counts)>, BatchError> {
    let entries: Vec<LaneEntry<'_>> = source
        .parts
        .iter()
        .map(|part| LaneEntry { lane: part.lane, key: part.key, applied: &part.claim.events })
        .collect();
    let appended = target.append(&entries, &source.identity).await.map_err(BatchError::Target)?;
    if !appended {
        return Err(BatchError::Overtaken);
    }
    reach("appended");
    let there = target.identity.clone();
    target.commit().await.map_err(BatchError::Target)?;
    // From here on it has taken effect.
    reach("target_committed");
    let settled_at = source.settle(&there).await.map_err(LeaseError::of_settling)?;
    reach("settled");
    let parts = std::mem::take(&mut source.parts);
    source.commit().await.map_err(BatchError::Source)?;
    reach("source_committed");
    let counted = parts.iter().map(|part| {
        let applied: Vec<&Event> = part.claim.events.iter().collect();
        let processed = applied.iter().map(|event| event.id).collect();
        let settlement = Settlement { processed, ..Settlement::default() };
        let tally = Tally { applied, settlement, ..Tally::default() };
        (part.lane, count(&part.claim, &tally, settled_at, started))
    });
    let counted: Vec<(Lane, Counts)> = counted.collect();
    for kind in counted.iter().flat_map(|(_, counts)| counts.processed.keys()) {
        if shared.stops.passed(kind) {
            tracing::info!(aggregate_type = kind, "flows again");
        }
    }
    Ok(counted)
}
