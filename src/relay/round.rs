//! A round: the little that several lanes have to do, in one transaction on each side. While events trickle each lane has one or two
//! at a time, and a batch of ten round trips and two commits for each of them costs both databases far more than the events do.
//!
//! Guarantees what a [`batch`](super::batch) does: each lane is locked, read and settled by itself, and gets an entry of its own in both
//! logs, so that healing knows no rounds. While one server works, the other does, wherever what it does has no effect yet. Does only what is plain: a lane where anything is the matter
//! drops out, and where something goes wrong the whole round is undone, before it has taken effect. Both are then left to batches, but for a lane that is
//! only late: the next round has it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Shared;
use super::apply::together;
use super::batch::{refused_commit, timed};
use super::router::{Destination, Router};
use super::tally::{Tally, count};
use super::visit::{BatchError, Counts};
use crate::event::{Event, Identity, Lane};
use crate::failpoint::reach;
use crate::lease::LeaseError;
use crate::session::sqlstate;
use crate::source::{Disturbed, Known, Part, Settlement, SourceLanes, lanes_of};
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
    /// An event came, while others of the lane were claimed, that belongs before them, or is locked by somebody: they are for the next round.
    pub late: Vec<Lane>,
    /// How long the events' own statements took.
    pub applying: Duration,
}

/// One round over these lanes.
pub async fn run_once(shared: &Shared, lanes: &[Lane]) -> Result<Round, BatchError> {
    let deadline = shared.config.relay.deadline;
    // Both sessions are dropped then, and with them their connections.
    tokio::time::timeout(deadline, attempt(shared, lanes)).await.unwrap_or(Err(BatchError::Deadline(deadline)))
}

/// What was claimed.
struct Claimed {
    known: Known,
    /// Aggregate types that were left out.
    excluded: Vec<String>,
    /// Lanes where nothing was, because it is too large.
    large: HashSet<Lane>,
}

async fn attempt(shared: &Shared, lanes: &[Lane]) -> Result<Round, BatchError> {
    let started = Instant::now();
    let mut round = Round::default();
    let mut source = shared.source.lock_lanes(lanes).await.map_err(BatchError::Source)?;
    reach("source_locked");
    let locked = source.locked.clone();
    round.busy = lanes.iter().copied().filter(|lane| !locked.contains(lane)).collect();
    if locked.is_empty() {
        source.release_leases().await;
        return Ok(round);
    }
    let router = shared.router();
    // Side by side, unlike in a batch: the second look comes after both. But the target's connection is asked for when the source's is there:
    // who asks for both at once, and others one by one, wait in a circle behind a pooler that has few.
    let target = shared.target.lock_lanes(&locked, router.has_own_sql());
    let (target, claimed) = tokio::join!(target, claim(shared, &mut source));
    let (mut target, claimed) = (target.map_err(BatchError::Target)?, claimed.map_err(BatchError::Source)?);
    reach("target_locked");
    reach("claimed");
    let Claimed { known: Known { mut parts, identity, .. }, excluded, large } = claimed;
    round.alone = drop_unless(&mut parts, |part| agrees(part, &identity, &target) && !large.contains(&part.lane));
    round.idle = drop_unless(&mut parts, |part| !part.claim.events.is_empty());
    round.alone.extend(drop_unless(&mut parts, |part| is_plain(part, &router)));
    if !apply(&mut source, &mut target, &mut parts, &router, &excluded, &mut round).await? {
        round.alone.append(&mut lanes_of(&parts));
        parts.clear();
    }
    if parts.is_empty() {
        target.abandon().await;
        source.release_leases().await;
        return Ok(round);
    }
    reach("applied");
    round.settled = take_effect(shared, &router, (source, &identity), target, parts, started).await?;
    Ok(round)
}

/// Reads what has to be known of the locked lanes, and claims a little of each.
async fn claim(shared: &Shared, source: &mut SourceLanes) -> sqlx::Result<Claimed> {
    let mut known = source.read().await?;
    if known.paused.iter().any(String::is_empty) {
        return Ok(Claimed { known, excluded: Vec::new(), large: HashSet::new() });
    }
    let (mut excluded, relay) = (shared.stops.excluded(), &shared.config.relay);
    excluded.append(&mut known.paused);
    excluded.sort();
    excluded.dedup();
    let each = EVENTS.min(relay.batch / u32::try_from(known.parts.len()).unwrap_or(u32::MAX)).max(1);
    let large = source.claim(&mut known.parts, &excluded, each, relay.batch_bytes).await?;
    Ok(Claimed { known, excluded, large })
}

/// Drops out the lanes that are not `kept`; they stay locked until the end. Which.
fn drop_unless(parts: &mut Vec<Part>, mut kept: impl FnMut(&Part) -> bool) -> Vec<Lane> {
    parts.extract_if(.., |part| !kept(part)).map(|part| part.lane).collect()
}

/// Applies what was claimed, and meanwhile asks the source once more: for the lanes where that may not just be applied, and because only
/// that it still answers is the proof that this worker is no ghost, which must be there before the commit. It rarely names a lane; then the
/// others' events are applied without its. False: the target refused something.
async fn apply(
    source: &mut SourceLanes,
    target: &mut TargetLanes,
    parts: &mut Vec<Part>,
    router: &Router,
    excluded: &[String],
    round: &mut Round,
) -> Result<bool, BatchError> {
    if parts.is_empty() {
        return Ok(true);
    }
    let pass = router.passing();
    let events = in_order(parts);
    let applying = async {
        let began = Instant::now();
        let applied = together(router, target.hand(), &events).await;
        (applied.map_err(|refusal| refusal.error), began.elapsed())
    };
    let (disturbed, (mut applied, took)) = tokio::join!(source.disturbed(parts, excluded, &pass), applying);
    let disturbed = disturbed.map_err(BatchError::Source)?;
    round.applying = took;
    if !disturbed.is_empty() {
        let why = |part: &Part| disturbed.get(&part.lane);
        round.late = drop_unless(parts, |part| why(part) != Some(&Disturbed::Late));
        round.alone.append(&mut drop_unless(parts, |part| why(part).is_none()));
        if parts.is_empty() {
            return Ok(true);
        }
        // What the target refused may have been of these.
        target.hand().undo().await.map_err(BatchError::Target)?;
        let began = Instant::now();
        applied = together(router, target.hand(), &in_order(parts)).await.map_err(|refusal| refusal.error);
        round.applying += began.elapsed();
    }
    if let Err(error) = &applied {
        tracing::debug!(code = sqlstate(error).as_deref(), "refused in a round; each lane by itself");
    }
    Ok(applied.is_ok())
}

/// The events of all lanes in the order in which they were written, for a parent's lane may be behind its child's.
fn in_order(parts: &[Part]) -> Vec<&Event> {
    let mut events: Vec<&Event> = parts.iter().flat_map(|part| &part.claim.events).collect();
    events.sort_unstable_by_key(|event| event.id);
    events
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

/// What was applied takes effect, and only then what settles it is committed; each lane's logs get its entry. The statements that settle are
/// made while the target commits.
async fn take_effect(
    shared: &Shared,
    router: &Router,
    (mut source, here): (SourceLanes, &Identity),
    mut target: TargetLanes,
    parts: Vec<Part>,
    started: Instant,
) -> Result<Vec<(Lane, Counts)>, BatchError> {
    let entries: Vec<LaneEntry<'_>> =
        parts.iter().map(|part| LaneEntry { lane: part.lane, key: part.key, applied: &part.claim.events }).collect();
    let there = target.identity.clone();
    let effect = async {
        let appended = target.append(&entries, here).await.map_err(BatchError::Target)?;
        if !appended {
            return Err(BatchError::Overtaken);
        }
        reach("appended");
        target.commit().await.map_err(|error| refused_commit(router, error))
    };
    let (effect, settled) = tokio::join!(effect, timed(source.settle(&parts, &there)));
    effect?;
    // It has taken effect.
    reach("target_committed");
    let settled_at = settled.map_err(LeaseError::of_settling)?.now();
    reach("settled");
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
