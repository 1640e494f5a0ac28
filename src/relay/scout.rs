//! Looks for lanes with work, so that workers need not: one statement for all lanes, milliseconds apart when there is work and
//! ever more rarely when there is none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::visit::Errand;
use super::{Board, Shared};
use crate::event::Lane;
use crate::retry::Pause;

/// The shortest pause between looks.
const POLL_MIN: Duration = Duration::from_millis(2);
/// The longest pause while all workers are busy and lanes queue for them: a look takes its share of the processors from them.
const POLL_CROWDED: Duration = Duration::from_millis(50);
/// How often both logs' newest entries are compared, for a target that went back while nothing was pending.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// A look that takes longer walks over something at each turn: a crowd of stopped events, in lanes where nothing else moves the
/// start past it.
const SLOW_LOOK: Duration = Duration::from_millis(25);

/// Something that is done every so often, but costs about a hundredth of the time: it may become ten times rarer. Not more, or
/// one slow look (the first, which connects, or one during a hiccup) would delay retries that are due by many seconds.
struct Rarely {
    every: Duration,
    next: Instant,
}

impl Rarely {
    fn new(every: Duration) -> Rarely {
        Rarely { every, next: Instant::now() }
    }

    fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }

    fn took(&mut self, cost: Duration) {
        self.next = Instant::now() + (cost * 100).clamp(self.every, self.every * 10);
    }
}

/// Looks until the shutdown.
pub(super) async fn look_out(shared: Arc<Shared>, board: Arc<Board>, stop: CancellationToken) {
    let mut pause = POLL_MIN;
    let mut away = Pause::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut full = Rarely::new(Duration::from_secs(3));
    let mut due = Rarely::new(Duration::from_millis(100));
    let mut advance = Rarely::new(Duration::from_secs(2));
    while !stop.is_cancelled() {
        let stopped = shared.stops.excluded();
        let (look_full, look_due) = (full.is_due(), due.is_due());
        let started = Instant::now();
        match shared.source.look(&stopped, look_full, look_due).await {
            Ok(sightings) => {
                away.reset();
                shared.source_answers();
                if look_full {
                    full.took(started.elapsed());
                }
                if look_due {
                    due.took(started.elapsed());
                }
                for sighting in &sightings {
                    let errand = Errand { full: sighting.below, due: sighting.due, ..Errand::default() };
                    board.offer(sighting.lane, errand);
                }
                if !look_full && started.elapsed() > SLOW_LOOK && advance.is_due() {
                    advance.took(Duration::ZERO);
                    let lanes = 0..i32::from(shared.config.relay.lanes);
                    lanes.for_each(|lane| board.offer(Lane(lane), Errand { advance: true, ..Errand::default() }));
                }
                pause = if sightings.is_empty() {
                    (pause * 3 / 2).min(shared.config.relay.poll_max)
                } else if board.is_crowded(shared.config.relay.workers.into()) {
                    (started.elapsed() * 20).clamp(POLL_MIN, POLL_CROWDED)
                } else {
                    POLL_MIN
                };
            }
            Err(error) => {
                pause = away.next_pause();
                shared.source_away(&error);
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Compares both logs' newest entries. Read without locks, so a difference is only a prompt to look under them.
pub(super) async fn compare_logs(shared: Arc<Shared>, board: Arc<Board>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        match differing_lanes(&shared).await {
            Ok(lanes) => lanes.into_iter().for_each(|lane| board.offer(lane, Errand::default())),
            Err(error) => tracing::debug!(%error, "could not compare the logs"),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(COMPARE_EVERY) => {}
        }
    }
}

/// Lanes whose logs end differently, or are in flight just now.
pub(super) async fn differing_lanes(shared: &Shared) -> sqlx::Result<Vec<Lane>> {
    let (source, target) = tokio::try_join!(shared.source.heads(), shared.target.heads())?;
    let differs = |lane: &Lane| source.get(lane) != target.get(lane);
    let mut lanes: Vec<Lane> = source.keys().copied().filter(differs).collect();
    lanes.sort();
    Ok(lanes)
}
