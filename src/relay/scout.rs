//! Looks for lanes with work, so that workers need not: one statement for all lanes, milliseconds apart when there is work and
//! ever more rarely when there is none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::visit::Errand;
use super::{Board, Shared, round};
use crate::event::Lane;
use crate::retry::Pause;
use crate::session::Own;
use crate::source::{Heads, Sighting};

/// The shortest pause between looks.
const POLL_MIN: Duration = Duration::from_millis(2);
/// How long a round is waited for before lanes that are not in it get batches.
const PATIENCE: Duration = Duration::from_millis(100);
/// The longest pause while all workers are busy and lanes queue for them: a look takes its share of the processors from them.
const POLL_CROWDED: Duration = Duration::from_millis(50);
/// Until the next glance while a worker is on its way to each lane, and more are than there are workers: nothing is asked.
const GLANCE: Duration = Duration::from_millis(10);
/// How often lanes are looked at while round follows round: for retries that are due.
const LOOK_WHILE_IT_FLOWS: Duration = Duration::from_millis(100);
/// The same while some lanes are left to batches: what is written there waits for a look.
const LOOK_FOR_SOME: Duration = Duration::from_millis(20);
/// How often both logs' newest entries are compared, for a target that went back while nothing was pending.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// A look that takes longer than its round trip and this walks over something at each turn: a crowd of stopped events, in lanes where nothing
/// else moves the start past it.
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
    let mut due = Rarely::new(Duration::from_millis(100));
    let mut advance = Rarely::new(Duration::from_secs(2));
    let mut looked = Instant::now();
    let linger = shared.config.relay.linger;
    let mut own = shared.source.own();
    while !stop.is_cancelled() {
        if board.brought.swap(false, Ordering::Relaxed) && !linger.is_zero() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(linger) => {}
            }
        }
        let enough = if board.all_join_rounds() { LOOK_WHILE_IT_FLOWS } else { LOOK_FOR_SOME };
        if looked.elapsed() < enough && board.flows() && rounds_make_sense(&shared) {
            board.offer_together((0..i32::from(shared.config.relay.lanes)).map(Lane));
            if board.round_is_open() {
                rest(&board, Duration::ZERO, &stop).await;
                continue;
            }
        }
        let stopped = shared.stops.excluded();
        let look_due = due.is_due();
        let lanes = board.free_lanes(shared.config.relay.lanes);
        if lanes.is_empty() && !look_due {
            let crowded = board.is_crowded(shared.config.relay.workers.into());
            rest(&board, if crowded { GLANCE } else { POLL_MIN }, &stop).await;
            continue;
        }
        looked = Instant::now();
        let all_are_free = lanes.len() == usize::from(shared.config.relay.lanes);
        let started = Instant::now();
        match shared.source.look_again(&mut own, &stopped, look_due, &lanes).await {
            Ok(sightings) => {
                away.reset();
                shared.source_answers();
                if look_due {
                    due.took(started.elapsed());
                }
                let took = started.elapsed();
                let all_rest = board.all_rest(sightings.iter().map(|sighting| sighting.lane));
                offer(&shared, &board, &sightings);
                if took > SLOW_LOOK && advance.is_due() {
                    let asked = Instant::now();
                    let way = shared.source.round_trip().await.unwrap_or_default();
                    advance.took(asked.elapsed());
                    if took > SLOW_LOOK + way {
                        let lanes = 0..i32::from(shared.config.relay.lanes);
                        lanes.for_each(|lane| board.offer(Lane(lane), Errand { advance: true, ..Errand::default() }));
                    }
                }
                let nothing = sightings.is_empty() && all_are_free;
                if nothing {
                    shared.nothing_to_do.notify_one();
                }
                pause = if nothing {
                    (pause * 3 / 2).min(shared.config.relay.poll_max)
                } else if let Some(rest) = all_rest {
                    // While a target is away, say: there is something to do, and nobody can be sent.
                    (pause * 3 / 2).min(shared.config.relay.poll_max).min(rest.max(POLL_MIN))
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
        rest(&board, pause, &stop).await;
    }
}

/// Until the next look: so long, or until the round that is open has ended and was rested after.
async fn rest(board: &Board, pause: Duration, stop: &CancellationToken) {
    let rested = async {
        match board.round_is_open() {
            true => after_the_round(board).await,
            false => tokio::time::sleep(pause).await,
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = rested => {}
    }
}

/// Looks from the very start of each lane, every few seconds, for what lies below where it begins. Beside the others, for as long as a transaction is
/// open that keeps what is dead from being cleaned away, it walks over all that was settled since: seconds, which no new event must wait for.
pub(super) async fn look_from_the_start(shared: Arc<Shared>, board: Arc<Board>, stop: CancellationToken) {
    let mut full = Rarely::new(Duration::from_secs(3));
    loop {
        let stopped = shared.stops.excluded();
        let started = Instant::now();
        let looked = tokio::select! {
            () = stop.cancelled() => return,
            looked = shared.source.look(&stopped, true, false) => looked,
        };
        match looked {
            Ok(sightings) => {
                let below: Vec<Sighting> = sightings.into_iter().filter(|sighting| sighting.below).collect();
                offer(&shared, &board, &below);
            }
            Err(error) => tracing::debug!(%error, "could not look from the start"),
        }
        full.took(started.elapsed());
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(full.next.into()) => {}
        }
    }
}

/// Waits for the end of the round that is open, and rests; not for ever, for a round may be held up and other lanes not.
async fn after_the_round(board: &Board) {
    let over = async {
        while board.round_is_open() {
            board.rounds.ended.notified().await;
        }
    };
    if tokio::time::timeout(PATIENCE, over).await.is_ok() {
        tokio::time::sleep(board.rounds.rest()).await;
    }
}

/// Sends workers to lanes with work: on a round where there is nothing but pending events, and nothing is the matter anywhere.
fn offer(shared: &Shared, board: &Board, sightings: &[Sighting]) {
    let in_rounds = rounds_make_sense(shared) && !board.round_is_open();
    let (plain, others): (Vec<&Sighting>, Vec<&Sighting>) = sightings
        .iter()
        .partition(|sighting| in_rounds && !sighting.below && !sighting.due && board.joins_rounds(sighting.lane));
    for sighting in others {
        let errand = Errand { full: sighting.below, due: sighting.due, ..Errand::default() };
        board.offer(sighting.lane, errand);
    }
    board.offer_together(plain.into_iter().map(|sighting| sighting.lane));
}

/// Whether nothing is away or probed, and a lane's part of a batch is more than an event or two.
fn rounds_make_sense(shared: &Shared) -> bool {
    let relay = &shared.config.relay;
    let lanes = u32::from(relay.lanes).min(round::LANES as u32);
    relay.batch / lanes.max(1) >= 4 && !shared.stops.any_probed() && shared.breaker.report().is_none()
}

/// Compares both logs' newest entries. Read without locks, so a difference is only a prompt to look under them. It is also what
/// notices, while nothing is pending, that the target is away or back.
pub(super) async fn compare_logs(shared: Arc<Shared>, board: Arc<Board>, stop: CancellationToken) {
    let compare = async {
        let mut missed = false;
        let (mut here, mut there) = (shared.source.own(), shared.target.own());
        loop {
            let (source, target) =
                tokio::join!(shared.source.heads_again(&mut here), look_at_target(&shared, &mut there, missed));
            match source {
                Ok(source) => {
                    missed = target.is_none();
                    let lanes = target.map_or_else(Vec::new, |target| differing(&source, &target));
                    lanes.into_iter().for_each(|lane| board.offer(lane, Errand::default()));
                }
                Err(error) => tracing::debug!(%error, "could not compare the logs"),
            }
            tokio::time::sleep(COMPARE_EVERY).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = compare => {}
    }
}

/// The newest entries of the target's log, and what can be told of it by whether it answers; `None`: it did not. `missed`: nor did it the last time. A connection that broke is no outage: only what cannot be
/// reached anew is away, and the reason is what that try was told, not that the pool ran out of time.
async fn look_at_target(shared: &Shared, own: &mut Own, missed: bool) -> Option<Heads> {
    if !missed {
        match shared.target.heads_again(own).await {
            Ok(heads) => {
                shared.target_seen();
                return Some(heads);
            }
            Err(error) => tracing::debug!(%error, "could not read the target's log"),
        }
    }
    if let Err(error) = shared.target.reach().await {
        shared.target_missed(&error);
        return None;
    }
    let heads = shared
        .target
        .heads_again(own)
        .await
        .inspect_err(|error| tracing::debug!(%error, "could not read the target's log"));
    if heads.is_ok() {
        shared.target_seen();
    }
    heads.ok()
}

/// Lanes whose logs end differently, or are in flight just now.
pub(super) async fn differing_lanes(shared: &Shared) -> sqlx::Result<Vec<Lane>> {
    let (source, target) = tokio::try_join!(shared.source.heads(), shared.target.heads())?;
    Ok(differing(&source, &target))
}

fn differing(source: &Heads, target: &Heads) -> Vec<Lane> {
    let differs = |lane: &Lane| source.get(lane) != target.get(lane);
    let mut lanes: Vec<Lane> = source.keys().copied().filter(differs).collect();
    lanes.sort();
    lanes
}
