//! A worker takes a lane from the queue, does one batch, and says how it went.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc::UnboundedReceiver};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::batch;
use super::visit::{BatchError, Counts, Errand, Healed, NARROWEST, Outcome, narrower};
use super::{Board, Job, Place, Shared, round};
use crate::disposition::told;
use crate::event::{EventId, Lane};
use crate::retry::Pause;
use crate::session::within;

/// Works until the shutdown; a batch that has begun is ended.
pub(super) async fn work(
    shared: Arc<Shared>,
    board: Arc<Board>,
    jobs: Arc<Mutex<UnboundedReceiver<Job>>>,
    stop: CancellationToken,
) {
    let mut source_pause = Pause::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let next = async { jobs.lock().await.recv().await };
        let job = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            next = next => match next {
                Some(next) => next,
                None => return,
            },
        };
        let (lane, errand) = match job {
            Job::Batch(lane, errand) => (lane, errand),
            Job::Round(lanes) => {
                let started = Instant::now();
                let settled = make_round(&shared, &board, &lanes).await;
                board.round_done((settled > 0).then(|| started.elapsed()), settled * 2 >= lanes.len());
                tracing::debug!(lanes = lanes.len(), settled, took = ?started.elapsed(), rest = ?board.rounds.rest(), "a round");
                continue;
            }
        };
        if let Err(wait) = shared.breaker.admit() {
            board.done(lane, Some(errand), |place| place.not_before = Some(Instant::now() + wait));
            continue;
        }
        let span = tracing::debug_span!("batch", lane = lane.0);
        let result = watched(&shared, &[lane], batch::run_once(&shared, lane, errand).instrument(span)).await;
        let pause = report(&shared, &board, lane, errand, result, &mut source_pause).await;
        if let Some(pause) = pause {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// So long a lane is left to batches of its own, after something was the matter there.
const ALONE: Duration = Duration::from_secs(1);
/// The same for all lanes of a round that went wrong as a whole, or was held up by the target.
const NO_ROUNDS: Duration = Duration::from_secs(5);

/// A round over lanes that have a little to do each. Where it cannot be had, batches do the work, and meet and tell what is the matter.
/// How many lanes had something to do.
async fn make_round(shared: &Shared, board: &Board, lanes: &[Lane]) -> usize {
    let without = |pause: Duration| move |place: &mut Place| place.alone_until = Some(Instant::now() + pause);
    if shared.breaker.admit().is_err() {
        lanes.iter().for_each(|lane| board.done(*lane, None, without(NO_ROUNDS)));
        return 0;
    }
    let span = tracing::debug_span!("round", lanes = lanes.len());
    let round = match watched(shared, lanes, round::run_once(shared, lanes).instrument(span)).await {
        Ok(round) => round,
        Err(error) => {
            // Before the lanes are free: whoever comes next must know. What can be said of one lane, its batch says.
            match &error {
                BatchError::Target(error) => target_failed(shared, lanes, told(error)),
                BatchError::Deadline(_) => target_failed(shared, lanes, error.to_string()),
                BatchError::Stopped(why) => {
                    shared.breaker.learned_nothing();
                    tracing::warn!("a round could not be settled: {why}; each lane is healed by itself");
                }
                error => {
                    shared.breaker.learned_nothing();
                    tracing::debug!(code = error.code().as_deref(), "a round went wrong; each lane by itself");
                }
            }
            lanes.iter().for_each(|lane| board.done(*lane, None, without(NO_ROUNDS)));
            return 0;
        }
    };
    shared.source_answers();
    let found = round.settled.len();
    if round.settled.is_empty() {
        shared.breaker.learned_nothing();
    } else {
        shared.target_answers(shared.breaker.succeeded());
    }
    let held_up = round.applying > HELD_UP;
    for (lane, counts) in round.settled {
        lane_goes_on(shared, lane);
        settled(shared, board, lane, &counts);
        board.done(lane, counts.more.then(Errand::default), |place| {
            place.busy_since = None;
            place.in_vain = 0;
            place.late = false;
            place.alone_until = held_up.then(|| Instant::now() + NO_ROUNDS);
        });
    }
    // It may have been theirs that took so long.
    let leave = |lane: &Lane| board.is_late_again(*lane) || held_up;
    let (locked, late): (Vec<Lane>, Vec<Lane>) = round.late.into_iter().partition(leave);
    late.into_iter().for_each(|lane| board.done(lane, None, |place| place.busy_since = None));
    for lane in round.busy {
        busy(shared, board, lane, Errand::default()).await;
    }
    round.idle.into_iter().for_each(|lane| {
        board.done(lane, None, |place| {
            place.busy_since = None;
            place.late = false;
        });
    });
    let pause = if held_up { NO_ROUNDS } else { ALONE };
    let alone = round.alone.into_iter().chain(locked);
    alone.for_each(|lane| board.done(lane, Some(Errand::default()), without(pause)));
    found
}

/// The target hindered these lanes: one worker tries it from now on, instead of all.
fn target_failed(shared: &Shared, lanes: &[Lane], why: String) {
    if shared.breaker.failed(why.clone()) {
        shared.metrics.breaker("target", true);
        let lanes = lanes.iter().map(Lane::to_string).collect::<Vec<_>>().join(",");
        tracing::warn!(
            lane = lanes,
            error = why,
            "the target does not answer; no attempts are counted, trying again until it does"
        );
    }
}

/// Statements that take longer hold all lanes of a round up: those that cost much are for batches, which are made side by side.
const HELD_UP: Duration = Duration::from_millis(200);

/// A batch takes milliseconds. One that takes this long is told of: a server that hangs says nothing until the deadline.
const SLOW: Duration = Duration::from_secs(5);

async fn watched<T>(shared: &Shared, lanes: &[Lane], batch: impl Future<Output = T>) -> T {
    tokio::pin!(batch);
    tokio::select! {
        done = &mut batch => return done,
        () = tokio::time::sleep(SLOW) => {}
    }
    for lane in lanes {
        tracing::warn!(
            lane = lane.0,
            "a batch has been in flight for {SLOW:?}: a database is slow or hangs; given up, and tried again, after {:?}",
            shared.config.relay.deadline
        );
    }
    shared.change_state(|state| state.slow_lanes.extend(lanes));
    let done = batch.await;
    shared.change_state(|state| state.slow_lanes.retain(|lane| !lanes.contains(lane)));
    done
}

/// Draws the conclusions. Returns how long this worker had better wait.
async fn report(
    shared: &Shared,
    board: &Board,
    lane: Lane,
    errand: Errand,
    result: Result<(Outcome, Vec<(Lane, EventId)>), BatchError>,
    source_pause: &mut Pause,
) -> Option<Duration> {
    let (outcome, charged) = match result {
        Ok(done) => done,
        Err(error) => return failed(shared, board, lane, errand, error, source_pause).await,
    };
    source_pause.reset();
    shared.source_answers();
    lane_goes_on(shared, lane);
    if outcome == Outcome::Busy {
        shared.breaker.learned_nothing();
        busy(shared, board, lane, errand).await;
        return None;
    }
    shared.target_answers(shared.breaker.succeeded());
    if !charged.is_empty() {
        give_back(shared, charged).await;
    }
    let free = |place: &mut Place| {
        place.late = false;
        place.busy_since = None;
        place.isolate = false;
        place.not_before = None;
        place.in_vain = 0;
    };
    let again = Errand::default();
    match outcome {
        Outcome::Settled(counts) => {
            settled(shared, board, lane, &counts);
            let deadline = shared.config.relay.deadline;
            board.done(lane, counts.more.then_some(again), |place| {
                free(place);
                place.narrow = narrower(place.narrow, counts.took, counts.more, deadline);
            });
        }
        Outcome::Healed(healed) => {
            let kind = match healed {
                Healed::PutBack(_) => "put_back",
                Healed::Settled(_) => "settled",
            };
            shared.metrics.healed(kind);
            board.done(lane, Some(again), free);
        }
        // Once is a race with the look; again and again is something pending that cannot be had just now (a DBA's lock).
        Outcome::Paused | Outcome::Nothing | Outcome::Busy => board.done(lane, None, |place| {
            // Who came for something else than events did not come in vain.
            let times = place.in_vain.saturating_add(u32::from(!errand.advance));
            free(place);
            place.in_vain = times;
            if times > 1 && !errand.advance {
                let pause = Duration::from_millis(10) * 2u32.saturating_pow(times.min(6));
                place.not_before = Some(Instant::now() + pause.min(shared.config.relay.poll_max));
            }
        }),
    }
    None
}

/// The lane goes on.
fn lane_goes_on(shared: &Shared, lane: Lane) {
    let still =
        shared.change_state(|state| state.stopped_lanes.remove(&lane).is_some().then(|| state.stopped_lanes.clone()));
    if let Some(still) = still {
        shared.metrics.stopped_lanes(still.into_keys());
    }
}

fn settled(shared: &Shared, board: &Board, lane: Lane, counts: &Counts) {
    board.brought.store(true, Ordering::Relaxed);
    let metrics = &shared.metrics;
    metrics.batch_settled(lane, counts.took);
    for (kind, n) in &counts.processed {
        metrics.events("processed", kind, *n);
    }
    for ((kind, status), n) in &counts.unapplied {
        metrics.events(status.as_str(), kind, *n);
    }
    for lag in &counts.lags {
        metrics.lag(*lag);
    }
    let processed: u64 = counts.processed.values().sum();
    let unapplied: u64 = counts.unapplied.values().sum();
    tracing::debug!(
        lane = lane.0,
        processed,
        unapplied,
        left = counts.left,
        duration_seconds = counts.took.as_secs_f64(),
        "settled"
    );
}

/// Somebody else has the lane. For longer than any honest batch takes: that client is frozen or its host is dead; its session
/// is ended.
async fn busy(shared: &Shared, board: &Board, lane: Lane, errand: Errand) {
    let limit = ghost_after(shared);
    let mut since = None;
    board.done(lane, Some(errand), |place| {
        let first = *place.busy_since.get_or_insert_with(Instant::now);
        since = Some(first);
        place.not_before = Some(Instant::now() + Duration::from_millis(5));
    });
    if since.is_some_and(|since| since.elapsed() > limit) {
        ended_holder(shared, lane, "source", shared.source.end_holder(lane, limit).await);
    }
}

/// Tells who was ended for holding a lane beyond the deadline. Whether anybody was, or could not be.
fn ended_holder(shared: &Shared, lane: Lane, side: &str, pids: sqlx::Result<Vec<i32>>) -> bool {
    match pids {
        Ok(pids) if pids.is_empty() => return false,
        Ok(pids) => {
            tracing::warn!(
                lane = lane.0,
                ?pids,
                "ended a session that held the lane on the {side} beyond the deadline"
            );
            shared.metrics.ghost_ended(side);
        }
        Err(error) => {
            tracing::warn!(lane = lane.0, %error, "could not end the session that holds the lane on the {side}")
        }
    }
    true
}

fn ghost_after(shared: &Shared) -> Duration {
    shared.config.relay.deadline + Duration::from_secs(3)
}

async fn failed(
    shared: &Shared,
    board: &Board,
    lane: Lane,
    errand: Errand,
    error: BatchError,
    source_pause: &mut Pause,
) -> Option<Duration> {
    let soon = |place: &mut Place| place.not_before = Some(Instant::now() + Duration::from_millis(50));
    match error {
        BatchError::Source(error) => {
            shared.breaker.learned_nothing();
            let pause = source_pause.next_pause();
            shared.source_away(&error);
            board.done(lane, Some(errand), |place| place.not_before = Some(Instant::now() + pause));
            Some(pause)
        }
        BatchError::Target(error) => {
            target_failed(shared, &[lane], told(&error));
            board.done(lane, Some(errand), soon);
            None
        }
        BatchError::Contended(error) => {
            tracing::info!(lane = lane.0, %error, "contended on the target; isolating what meets it");
            shared.breaker.learned_nothing();
            board.done(lane, Some(errand), |place| {
                soon(place);
                place.isolate = true;
            });
            None
        }
        BatchError::TargetBusy => {
            shared.breaker.learned_nothing();
            let limit = ghost_after(shared);
            if !ended_holder(shared, lane, "target", shared.target.end_holder(lane, limit).await) {
                tracing::info!(lane = lane.0, "the lane is locked on the target");
            }
            board.done(lane, Some(errand), soon);
            None
        }
        BatchError::Deadline(deadline) => {
            let why = format!("a batch was not done within {deadline:?}");
            if shared.breaker.failed(why) {
                shared.metrics.breaker("target", true);
                tracing::warn!(lane = lane.0, "a batch was not done within {deadline:?}: given up, to be tried again");
            }
            // Ever fewer events: what takes too long must not be tried in the same way for ever.
            board.done(lane, Some(errand), |place| {
                soon(place);
                place.narrow = (place.narrow + 1).min(NARROWEST);
            });
            None
        }
        BatchError::Overtaken => {
            shared.breaker.learned_nothing();
            tracing::info!(lane = lane.0, "overtaken: another worker was in this lane");
            board.done(lane, Some(errand), soon);
            None
        }
        BatchError::Stopped(why) => {
            shared.breaker.learned_nothing();
            let news =
                shared.change_state(|state| state.stopped_lanes.insert(lane, why.clone()).as_ref() != Some(&why));
            if news {
                shared.metrics.stopped_lanes(shared.state().stopped_lanes.into_keys());
                tracing::error!(lane = lane.0, "lane stopped: {why}");
            }
            board.done(lane, None, |place| place.not_before = Some(Instant::now() + Duration::from_secs(5)));
            None
        }
    }
}

/// Attempts that were charged for the operator's error go back to the events.
async fn give_back(shared: &Shared, charged: Vec<(Lane, EventId)>) {
    let mut by_lane: std::collections::BTreeMap<Lane, Vec<EventId>> = std::collections::BTreeMap::new();
    for (lane, id) in charged {
        by_lane.entry(lane).or_default().push(id);
    }
    for (lane, ids) in by_lane {
        let result = async {
            // Busy lanes are tried a few times: this is a courtesy, not a promise.
            for _ in 0..20 {
                if let Some(mut locked) = shared.source.lock_lane(lane).await? {
                    locked.give_back(&ids, &shared.router().passing()).await?;
                    return locked.commit().await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        };
        if let Err(error) = within(shared.config.relay.deadline, result).await {
            tracing::warn!(lane = lane.0, %error, "could not give attempts back");
        }
    }
}
