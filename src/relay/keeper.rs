//! What a relay does besides moving events: retention, sweeping, and watching the operator's mapping files.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::disposition;
use crate::event::Lane;
use crate::retention;
use crate::session::within;

/// Between two looks at the mapping files.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Between two tries of a mapping that was wrong: the tables may have been mended instead of the file.
const RECOMPILE_EVERY: Duration = Duration::from_secs(2);
/// Between two rounds of retention when nothing is left to delete.
const RETAIN_EVERY: Duration = Duration::from_secs(10);
/// Refusals in a row, in the same words, that are no lock that somebody holds for a moment.
const REFUSED: u32 = 3;
/// Between two sweeps of all lanes, at the least; and a sweep costs at most a hundredth of the time.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Before what a sweep missed (a busy lane, a source that was away for a moment) is tried again.
const SWEEP_AGAIN: Duration = Duration::from_millis(500);

/// Aggregates that a sweep looks at under one lock.
const AGGREGATES_A_STEP: u32 = 2000;
/// A step of a sweep that is done so quickly costs nobody anything.
const QUICK_STEP: Duration = Duration::from_millis(5);

/// Deletes what is old enough until the shutdown.
pub(super) async fn retain(shared: Arc<Shared>, stop: CancellationToken) {
    let mut refused: Option<(String, u32)> = None;
    loop {
        let pause = match retention::run_once(&shared.config, &shared.source, &shared.target).await {
            Ok(retention::Done { counts, refused: why }) => {
                refused = why.as_ref().map(disposition::logged).map(|why| {
                    let before = refused.take().filter(|(before, _)| *before == why);
                    let times = before.map_or(1, |(_, times)| times.saturating_add(1));
                    if times == REFUSED {
                        tracing::warn!("retention is refused, and what it should delete stays: {why}");
                    }
                    (why, times)
                });
                shared.metrics.retention_deleted(counts.processed + counts.skipped);
                let deleted = counts.entries + counts.skipped > 0;
                if deleted {
                    tracing::debug!(processed = counts.processed, skipped = counts.skipped, "retention");
                }
                if deleted { Duration::from_millis(200) } else { RETAIN_EVERY }
            }
            Err(error) => {
                tracing::debug!(%error, "retention waits");
                RETAIN_EVERY
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Releases, lane by lane, what a DBA's hand has unblocked, and what waited for an event type to be mapped.
pub(super) async fn sweep(shared: Arc<Shared>, stop: CancellationToken) {
    let mut pace = Pace::default();
    loop {
        let all = sweep_once(&shared, &stop, &mut pace).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "the sweep waits");
            false
        });
        // What was missed alone is swept again soon, at the same pace.
        let pause = if all { SWEEP_EVERY.max(pace.worked * 100) } else { SWEEP_AGAIN };
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.sweep_now.notified() => pace = Pace { hurry: true, ..Pace::default() },
            () = tokio::time::sleep(pause) => {
                if all {
                    pace = Pace::default();
                }
            }
        }
    }
}

/// How a sweep goes on.
#[derive(Default)]
struct Pace {
    /// It was asked for, because something is likely to be released: no rests.
    hurry: bool,
    /// How long its steps took.
    worked: Duration,
    /// Lanes that a worker had, and nobody else is swept this time; empty: all are.
    missed: Vec<Lane>,
}

impl Pace {
    /// After a step, which released so many.
    async fn rest(&mut self, shared: &Shared, stop: &CancellationToken, took: Duration, released: usize) {
        self.worked += took;
        if self.hurry {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = shared.sweep_now.notified() => {
                self.hurry = true;
                // Once more, for the lanes that were swept before.
                shared.sweep_now.notify_one();
            }
            () = tokio::time::sleep(rest_after_step(took, released)) => {}
        }
    }
}

/// A look at a hundred thousand aggregates that are rightly held takes seconds: a tenth of the time, lest events that flow wait for it.
/// What was rightly released is work done, and the next is due.
fn rest_after_step(took: Duration, released: usize) -> Duration {
    if released > 0 { Duration::ZERO } else { took.saturating_sub(QUICK_STEP) * 9 }
}

/// Sweeps every lane that holds something. Whether all of them were had.
async fn sweep_once(shared: &Shared, stop: &CancellationToken, pace: &mut Pace) -> sqlx::Result<bool> {
    // Where nothing is held no lane is locked, for locking burns a transaction id.
    let mut lanes = shared.source.holding().await?;
    if !pace.missed.is_empty() {
        lanes.retain(|lane| pace.missed.contains(lane));
    }
    let mut missed = Vec::new();
    for lane in lanes {
        if stop.is_cancelled() {
            return Ok(true);
        }
        match sweep_lane(shared, lane, stop, pace).await {
            Ok(swept) => {
                missed.extend((!swept.whole).then_some(lane));
                if swept.released > 0 {
                    tracing::info!(
                        lane = lane.0,
                        released = swept.released,
                        "released held events that nothing blocks"
                    );
                }
            }
            Err(error) => {
                missed.push(lane);
                tracing::debug!(lane = lane.0, %error, "the sweep waits");
            }
        }
    }
    pace.missed = missed;
    Ok(pace.missed.is_empty())
}

struct SweptLane {
    released: usize,
    /// Else a worker had the lane at some step.
    whole: bool,
}

async fn sweep_lane(shared: &Shared, lane: Lane, stop: &CancellationToken, pace: &mut Pace) -> sqlx::Result<SweptLane> {
    let router = shared.router();
    let (mapped, pass) = (router.mapped(), router.passing());
    let mut released = 0;
    let mut from = Some(i64::MIN);
    // Step by step, so that the lane's workers go on in between.
    while let Some(hash) = from.filter(|_| !stop.is_cancelled()) {
        let step = within(shared.config.relay.deadline, async {
            let Some(mut locked) = shared.source.wait_for_lane(lane, retention::A_MOMENT).await? else {
                return Ok(None);
            };
            let started = Instant::now();
            let swept = locked.sweep(hash, AGGREGATES_A_STEP, &mapped, &pass, shared.config.relay.batch).await?;
            locked.commit().await?;
            Ok(Some((swept, started.elapsed())))
        });
        let Some((swept, took)) = step.await? else { return Ok(SweptLane { released, whole: false }) };
        released += swept.released.len();
        from = swept.next;
        pace.rest(shared, stop, took, swept.released.len()).await;
    }
    Ok(SweptLane { released, whole: true })
}

/// Passes on how far first copies have come, where an entity has one to make: to the metrics, and to whoever judges whether all is well.
pub(super) async fn tell_copies(shared: Arc<Shared>, stop: CancellationToken) {
    const EVERY: Duration = Duration::from_secs(5);
    loop {
        // A database that is away, or has no such tables yet, is told by others.
        let names: HashSet<String> =
            shared.entities().iter().filter(|of| of.legacy.is_some()).map(|of| of.name.clone()).collect();
        if names.is_empty() {
            shared.change_state(|state| state.rows_left = Some(BTreeMap::new()));
        } else if let Ok(copies) = shared.target.copies().await {
            let ended = copies.iter().filter(|copy| copy.ended_at.is_some() && names.contains(&copy.entity));
            let left =
                ended.map(|copy| (copy.entity.clone(), copy.left().unsigned_abs())).filter(|(_, rows)| *rows > 0);
            let left = left.collect();
            shared.change_state(|state| state.rows_left = Some(left));
            for copy in copies {
                let left = [("refused", copy.refused), ("pending", copy.pending), ("waiting", copy.waiting)];
                shared.metrics.copied(&copy.entity, copy.rows, left);
                if let Some(all) = copy.estimate {
                    let remain = if copy.ended_at.is_some() { 0 } else { (all - copy.rows).max(0) };
                    shared.metrics.copy_remains(&copy.entity, remain);
                }
            }
            if let Err(error) = tell_compared(&shared).await {
                tracing::debug!(%error, "could not read what verifications found");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// The same of verifications and repairs.
async fn tell_compared(shared: &Shared) -> sqlx::Result<()> {
    let names: Vec<String> =
        shared.entities().iter().filter(|e| e.legacy.is_some()).map(|entity| entity.name.clone()).collect();
    for last in shared.target.verified_last(&names, crate::target::Which::Full).await? {
        let found = &last.found;
        let kinds = [
            ("missing_in_new", found.missing_in_new),
            ("missing_in_legacy", found.missing_in_legacy),
            ("differs", found.differing),
            ("refused", found.refused),
            ("could_not", u64::from(found.outcome == crate::verify::Outcome::CouldNot)),
        ];
        let at = last.finished_at.timestamp_millis() as f64 / 1e3;
        shared.metrics.verified(&found.entity, at, found.seconds, found.legacy_rows, kinds);
    }
    for last in shared.target.repaired_last(&names).await? {
        shared.metrics.repaired(&last.entity, last.rows_written, last.rows_deleted);
    }
    Ok(())
}

/// Uses the operator's files anew when they change, and tries wrong mappings again.
pub(super) async fn watch(shared: Arc<Shared>, stop: CancellationToken) {
    let mut last_try = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(WATCH_EVERY) => {}
        }
        let current = shared.entities();
        let changed = match shared.config.entities_changed() {
            // Without a file there is nothing to watch: the entities are what they were made to be.
            Ok(_) if shared.config.file.is_none() => None,
            Ok(differing) => {
                shared.change_state(|state| state.reload_error = None);
                let latest = differing.unwrap_or_else(|| shared.config.entities.clone());
                (latest != **current).then_some(latest)
            }
            Err(error) => {
                let text = error.to_string();
                let news =
                    shared.change_state(|state| state.reload_error.replace(text.clone()).as_ref() != Some(&text));
                if news {
                    tracing::error!("the changed configuration cannot be used, the last good one goes on:\n{text}");
                }
                None
            }
        };
        let retry = shared.stops.any_by_mapping() && last_try.elapsed() >= RECOMPILE_EVERY;
        if changed.is_none() && !retry {
            continue;
        }
        last_try = Instant::now();
        if changed.is_some() {
            tracing::info!("the entities or their SQL files have changed: using them from the next batch on");
        }
        let anew = changed.is_some();
        let entities = changed.unwrap_or_else(|| current.to_vec());
        let deadline = shared.config.relay.deadline * u32::try_from(entities.len() + 1).unwrap_or(u32::MAX);
        if let Err(error) = within(deadline, shared.use_entities(entities, anew)).await {
            tracing::debug!(%error, "could not prepare the mappings, trying again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_that_finds_nothing_leaves_most_of_the_time_to_others() {
        let ms = Duration::from_millis;
        for (took, released, rest) in [(3, 0, 0), (45, 0, 360), (45, 1, 0)] {
            assert_eq!(rest_after_step(ms(took), released), ms(rest), "{took} {released}");
        }
    }
}
