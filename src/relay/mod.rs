//! The relay: looks for lanes with work, and has workers apply them batch by batch.
//!
//! Guarantees what the design promises for each batch (see [`batch`]), with any number of workers and processes. Does not
//! guarantee that lanes are served in any order; no lane is starved, for each goes to the back of the queue after a batch.

mod apply;
pub mod batch;
mod keeper;
mod plan;
mod refusal;
pub mod round;
pub mod router;
mod scout;
pub mod stops;
mod tally;
mod visit;
mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::router::Router;
use self::stops::{Breaker, Stop, StopCode, Stops};
use self::visit::Errand;
use crate::config::{Config, Entity};
use crate::disposition::told;
use crate::event::Lane;
use crate::metrics::Metrics;
use crate::source::{Remaining, Source};
use crate::target::Target;

/// What all tasks of one relay share.
pub struct Shared {
    /// As started.
    pub config: Config,
    /// The outbox.
    pub source: Source,
    /// The new database.
    pub target: Target,
    /// Counters.
    pub metrics: Metrics,
    /// Stopped aggregate types.
    pub stops: Stops,
    /// Whether the target is away.
    pub breaker: Breaker,
    router: RwLock<Arc<Router>>,
    entities: RwLock<Arc<Vec<Entity>>>,
    state: Mutex<State>,
    /// Asks for a sweep at once: an event type was mapped, or something was unblocked.
    pub(crate) sweep_now: tokio::sync::Notify,
    /// A look found nothing to do in any lane, and no worker is on its way to one.
    pub(crate) nothing_to_do: tokio::sync::Notify,
}

/// What pages and readiness show of a running relay.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Lanes that cannot go on by themselves, with what to do.
    pub stopped_lanes: BTreeMap<Lane, String>,
    /// Lanes whose batch has been in flight for seconds.
    pub slow_lanes: BTreeSet<Lane>,
    /// What the source last said when it was away.
    pub source_away: Option<String>,
    /// The configuration on disk cannot be used; the last good one goes on.
    pub reload_error: Option<String>,
    /// By entity, how many rows its first copy left out, if it has ended and left any; `None`: not known yet.
    pub rows_left: Option<BTreeMap<String, u64>>,
}

impl Shared {
    /// A relay's common ground. Compiles the mappings, which is why the target must answer.
    pub async fn new(config: Config, source: Source, target: Target, metrics: Metrics) -> sqlx::Result<Shared> {
        let entities = config.entities.clone();
        let shared = Shared {
            config,
            source,
            target,
            metrics,
            stops: Stops::default(),
            breaker: Breaker::default(),
            router: RwLock::default(),
            entities: RwLock::default(),
            state: Mutex::default(),
            sweep_now: tokio::sync::Notify::new(),
            nothing_to_do: tokio::sync::Notify::new(),
        };
        // A relay that starts sweeps anyway.
        shared.exchange_entities(entities, true).await?;
        Ok(shared)
    }

    /// The entities in use, ready to be applied.
    pub fn router(&self) -> Arc<Router> {
        self.router.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The entities in use.
    pub fn entities(&self) -> Arc<Vec<Entity>> {
        self.entities.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uses these entities from the next batch on. `anew`: they have changed, so whatever was stopped because of the old ones is
    /// tried again; else only what was wrong with a mapping is looked at again, because the tables may have been mended.
    pub async fn use_entities(&self, entities: Vec<Entity>, anew: bool) -> sqlx::Result<()> {
        if self.exchange_entities(entities, anew).await? {
            self.sweep_now.notify_one();
        }
        Ok(())
    }

    /// Whether other event types are mapped than before, or some are mapped differently.
    async fn exchange_entities(&self, entities: Vec<Entity>, anew: bool) -> sqlx::Result<bool> {
        let router = Arc::new(Router::compile(&entities, &self.target).await?);
        let changed = anew || router.mapped() != self.router().mapped();
        if anew {
            self.stops.forget();
        }
        let broken: HashMap<String, crate::mapping::MappingError> = router.broken(&entities).into_iter().collect();
        *self.router.write().unwrap_or_else(PoisonError::into_inner) = router.clone();
        *self.entities.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(entities);
        self.stops.resume_unless(|kind, stop| match stop.code {
            StopCode::Unmapped => !router.knows(kind),
            StopCode::Refused(_) => !anew,
            StopCode::Mapping(_) => broken.contains_key(kind),
        });
        for (kind, error) in broken {
            let stop = Stop { code: StopCode::Mapping(error.code), message: error.one_line() };
            if self.stops.stop(&kind, stop) {
                tracing::error!(aggregate_type = %kind, code = error.code, "stopped until it is mended:\n{error}\n  then: outbox-relay check        (the relay resumes by itself)");
            }
        }
        Ok(changed)
    }

    /// A copy of what pages show.
    pub fn state(&self) -> State {
        self.change_state(|state| state.clone())
    }

    /// The source does not answer. Told once, until it does.
    pub(crate) fn source_away(&self, error: &sqlx::Error) {
        let news = self.change_state(|state| state.source_away.replace(told(error)).is_none());
        if news {
            self.metrics.breaker("source", true);
            tracing::warn!(error = told(error), "the source does not answer; trying again until it does");
        }
    }

    /// The source answered: whoever asked, so that an idle relay knows it too.
    pub(crate) fn source_answers(&self) {
        if self.change_state(|state| state.source_away.take()).is_some() {
            self.metrics.breaker("source", false);
            tracing::info!("the source answers again");
        }
    }

    /// A look found that the target cannot be reached. Told once, until it can.
    pub(crate) fn target_missed(&self, error: &sqlx::Error) {
        if self.breaker.missed(told(error)) {
            self.metrics.breaker("target", true);
            tracing::warn!(error = told(error), "the target cannot be reached; trying again until it can");
        }
    }

    /// A look was answered, so that an idle relay knows that the target is back.
    pub(crate) fn target_seen(&self) {
        self.target_answers(self.breaker.seen());
    }

    /// The target answered; whether that is news.
    fn target_answers(&self, news: bool) {
        if news {
            self.metrics.breaker("target", false);
            tracing::info!("the target answers again");
        }
    }

    /// Notes something for pages and readiness.
    pub fn change_state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Lanes on their way to workers. A lane is queued or worked on once at a time in this process.
struct Board {
    lanes: Mutex<HashMap<Lane, Place>>,
    queue: tokio::sync::mpsc::UnboundedSender<Job>,
    rounds: Rounds,
    /// Something was settled since the last look.
    brought: AtomicBool,
}

/// The rounds of this process.
#[derive(Default)]
struct Rounds {
    /// Queued or under way.
    open: AtomicUsize,
    last: Mutex<LastRound>,
    ended: tokio::sync::Notify,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct LastRound {
    /// Rounds of late, the last one a quarter of it, and as twice as long as those before at most: however long one was held up by a hiccup, the
    /// next one is hardly later.
    took: Duration,
    /// The quickest of late: what rounds take here when the servers have nothing else to do.
    quickest: Duration,
    /// At least half of its lanes had something to do: then the next one need not be preceded by a look.
    flows: bool,
}

impl LastRound {
    /// After another round. `took` if it settled anything.
    fn then(self, took: Option<Duration>, flows: bool) -> LastRound {
        let Some(took) = took else { return LastRound { flows, ..self } };
        // What was quick once is forgotten, but not before an hour that is busy is over.
        let quickest = if self.quickest.is_zero() { took } else { took.min(self.quickest + self.quickest / FORGET) };
        let took = if self.took.is_zero() { took } else { (self.took * 3 + took.min(self.took * 2)) / 4 };
        LastRound { took, quickest, flows }
    }

    /// How long to rest: a third of a quick round, and several times what rounds take longer than three of these. So servers that have no time left
    /// are given it, rounds there are fewer and larger; and those that are only far are not taken for busy.
    fn rest(self) -> Duration {
        let longer = self.took.saturating_sub(self.quickest * BUSY);
        (self.quickest / 3 + longer * GIVE).clamp(REST_MIN, REST_MAX)
    }
}

/// A round makes what is taken for quick longer by so small a part.
const FORGET: u32 = 100_000;
/// So many times what a quick round takes tell of servers that are busy,
const BUSY: u32 = 3;
/// and what is beyond is rested so many times.
const GIVE: u32 = 6;
const REST_MIN: Duration = Duration::from_millis(1);
const REST_MAX: Duration = Duration::from_millis(60);

impl Rounds {
    fn last(&self) -> std::sync::MutexGuard<'_, LastRound> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rest(&self) -> Duration {
        self.last().rest()
    }
}

/// What a worker is sent for.
#[derive(Debug, PartialEq, Eq)]
enum Job {
    Batch(Lane, Errand),
    /// A round over these lanes.
    Round(Vec<Lane>),
}

#[derive(Debug, Default)]
struct Place {
    taken: bool,
    /// It shares a worker with others.
    in_round: bool,
    /// What was asked for while no worker could be sent: the next one does it. A lane that is rested after each vain try (a
    /// DBA's lock at its front) would else lose nearly every errand that is not the common one.
    wanted: Errand,
    isolate: bool,
    /// How often its next batch is halved.
    narrow: u32,
    /// The last round left it out, for an event that came meanwhile or was locked, and nothing went well there since.
    late: bool,
    /// Until then it is in no round: something was the matter.
    alone_until: Option<Instant>,
    busy_since: Option<Instant>,
    not_before: Option<Instant>,
    /// How often in a row a worker came here for nothing.
    in_vain: u32,
}

impl Board {
    fn new(queue: tokio::sync::mpsc::UnboundedSender<Job>) -> Board {
        Board { lanes: Mutex::default(), queue, rounds: Rounds::default(), brought: AtomicBool::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Lane, Place>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether more is on its way than there are workers: to find more would only lengthen the queue.
    fn is_crowded(&self, workers: usize) -> bool {
        let batches = self.lock().values().filter(|place| place.taken && !place.in_round).count();
        batches + self.rounds.open.load(Ordering::Relaxed) > workers
    }

    /// Sends a worker there, unless one is on its way.
    fn offer(&self, lane: Lane, errand: Errand) {
        let mut lanes = self.lock();
        let place = lanes.entry(lane).or_default();
        place.want(errand);
        if !place.rests() && !place.taken {
            place.taken = true;
            // Nobody listens any more: the relay is shutting down.
            let _ = self.queue.send(Job::Batch(lane, place.errand()));
        }
    }

    /// Sends workers to all of these lanes that are free: on rounds, as far as they have company. Not while a round is open: what is
    /// written meanwhile waits for its end, and for company.
    fn offer_together(&self, lanes: impl Iterator<Item = Lane>) {
        if self.round_is_open() {
            return;
        }
        let mut places = self.lock();
        let is_free =
            |lane: &Lane| places.get(lane).is_none_or(|place| !place.taken && !place.rests() && place.joins_rounds());
        let free: Vec<Lane> = lanes.filter(is_free).collect();
        // Alike in size, so that none is left without company.
        let each = free.len().div_ceil(free.len().div_ceil(round::LANES).max(1)).max(1);
        for lanes in free.chunks(each) {
            for lane in lanes {
                let place = places.entry(*lane).or_default();
                place.taken = true;
                place.in_round = lanes.len() > 1;
            }
            let job = match lanes {
                [lane] => Job::Batch(*lane, Errand::default()),
                _ => {
                    self.rounds.open.fetch_add(1, Ordering::Relaxed);
                    Job::Round(lanes.to_vec())
                }
            };
            let _ = self.queue.send(job);
        }
    }

    /// Whether a lane may be in a round, should there be one.
    fn joins_rounds(&self, lane: Lane) -> bool {
        self.lock().entry(lane).or_default().joins_rounds()
    }

    /// An event came, in a round, that belongs before those that were claimed, or is locked by somebody. Once that is a commit between two statements, and the next round
    /// has all of them. Whether it was so in the one before, too: then somebody holds a lock, which is for a batch.
    fn is_late_again(&self, lane: Lane) -> bool {
        std::mem::replace(&mut self.lock().entry(lane).or_default().late, true)
    }

    /// Whether all lanes are in rounds, so that none waits for a look while round follows round.
    fn all_join_rounds(&self) -> bool {
        self.lock().values().all(Place::joins_rounds)
    }

    /// Whether all of these lanes rest, if there are any: for how long, until the first no longer does.
    fn all_rest(&self, mut lanes: impl Iterator<Item = Lane>) -> Option<Duration> {
        let (places, now) = (self.lock(), Instant::now());
        let rest = |lane: &Lane| {
            let until = places.get(lane).filter(|place| !place.taken)?.not_before?;
            until.checked_duration_since(now)
        };
        let first = rest(&lanes.next()?)?;
        lanes.try_fold(first, |least, lane| Some(least.min(rest(&lane)?)))
    }

    /// Lanes of these many that no worker is on its way to: what is written in the others is found by who is there.
    fn free_lanes(&self, of: u16) -> Vec<Lane> {
        let places = self.lock();
        (0..i32::from(of)).map(Lane).filter(|lane| places.get(lane).is_none_or(|place| !place.taken)).collect()
    }

    fn round_is_open(&self) -> bool {
        self.rounds.open.load(Ordering::Relaxed) > 0
    }

    /// A round is over. `took` if it settled anything; whether most lanes had something to do.
    fn round_done(&self, took: Option<Duration>, flows: bool) {
        let mut last = self.rounds.last();
        *last = last.then(took, flows);
        drop(last);
        self.rounds.open.fetch_sub(1, Ordering::Relaxed);
        self.rounds.ended.notify_one();
    }

    /// Whether most lanes have something to do at any time.
    fn flows(&self) -> bool {
        self.rounds.last().flows
    }

    /// The worker is done there.
    fn done(&self, lane: Lane, again: Option<Errand>, change: impl FnOnce(&mut Place)) {
        let mut lanes = self.lock();
        let place = lanes.entry(lane).or_default();
        place.in_round = false;
        change(place);
        let goes_on = again.is_some() || place.wanted.full || place.wanted.due;
        place.want(again.unwrap_or_default());
        if goes_on && !place.rests() {
            let _ = self.queue.send(Job::Batch(lane, place.errand()));
        } else {
            place.taken = false;
        }
    }
}

impl Place {
    fn want(&mut self, errand: Errand) {
        self.wanted.full |= errand.full;
        self.wanted.due |= errand.due;
        self.wanted.advance |= errand.advance;
    }

    /// Whether nothing is known to be the matter. Once in vain is a race with the look.
    fn joins_rounds(&self) -> bool {
        let alone = self.alone_until.is_some_and(|until| until > Instant::now());
        let asked_for_more = self.wanted.full || self.wanted.due;
        !alone && !self.isolate && self.narrow == 0 && self.in_vain < 2 && !asked_for_more
    }

    fn rests(&self) -> bool {
        self.not_before.is_some_and(|at| at > Instant::now())
    }

    fn errand(&mut self) -> Errand {
        Errand { isolate: self.isolate, narrow: self.narrow, ..std::mem::take(&mut self.wanted) }
    }
}

/// How long the batches in flight may take to end after the shutdown. What is cut off then is as if the process had died: the
/// logs tell the next one.
const GRACE: Duration = Duration::from_secs(6);

/// Runs until `shutdown`; then the batches in flight end, and it returns. A task that panics ends it with an error.
pub async fn run(shared: Arc<Shared>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let board = Arc::new(Board::new(sender));
    let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
    let stop = shutdown.child_token();
    let mut tasks = JoinSet::new();
    for _ in 0..shared.config.relay.workers {
        tasks.spawn(worker::work(shared.clone(), board.clone(), receiver.clone(), stop.clone()));
    }
    tasks.spawn(scout::look_out(shared.clone(), board.clone(), stop.clone()));
    tasks.spawn(scout::look_from_the_start(shared.clone(), board.clone(), stop.clone()));
    tasks.spawn(scout::compare_logs(shared.clone(), board.clone(), stop.clone()));
    tasks.spawn(keeper::retain(shared.clone(), stop.clone()));
    tasks.spawn(keeper::sweep(shared.clone(), stop.clone()));
    tasks.spawn(keeper::watch(shared.clone(), stop.clone()));
    tasks.spawn(keeper::tell_copies(shared.clone(), stop.clone()));
    let mut result = Ok(());
    let grace = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::pin!(grace);
    loop {
        let ended = tokio::select! {
            ended = tasks.join_next() => ended,
            () = &mut grace => {
                tracing::warn!("batches are still in flight after {GRACE:?}: cut off; the next start heals them");
                tasks.shutdown().await;
                break;
            }
        };
        match ended {
            None => break,
            Some(Ok(())) => {}
            Some(Err(error)) => {
                stop.cancel();
                result = Err(anyhow::anyhow!("a task of the relay ended abnormally: {error}"));
            }
        }
    }
    result
}

/// Whether a drain is over: `None` while something is pending, waits for its next attempt, or is only half settled.
pub async fn drained(shared: &Shared) -> sqlx::Result<Option<Remaining>> {
    let stopped: Vec<String> = shared.stops.report().into_iter().map(|stop| stop.aggregate_type).collect();
    // An index probe a lane says so at once while a backlog drains; the whole question walks over what was settled already.
    if !shared.source.look(&stopped, false, true).await?.is_empty() {
        return Ok(None);
    }
    let remaining = shared.source.remaining(&stopped).await?;
    if remaining.pending || remaining.retry || !scout::differing_lanes(shared).await?.is_empty() {
        return Ok(None);
    }
    Ok(Some(remaining))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_is_late_twice_in_a_row_has_a_lock_in_it() {
        let (queue, _workers) = tokio::sync::mpsc::unbounded_channel();
        let board = Board::new(queue);
        let lane = Lane(0);
        assert!(!board.is_late_again(lane));
        assert!(board.is_late_again(lane));
        assert!(!board.is_late_again(Lane(1)));
        board.done(lane, None, |place| place.late = false);
        assert!(!board.is_late_again(lane));
    }

    #[test]
    fn what_a_resting_or_busy_lane_is_asked_for_is_done_later() {
        let (queue, mut workers) = tokio::sync::mpsc::unbounded_channel();
        let board = Board::new(queue);
        let lane = Lane(0);
        let rest = |place: &mut Place| place.not_before = Some(Instant::now() + Duration::from_secs(60));
        board.offer(lane, Errand::default());
        assert_eq!(workers.try_recv(), Ok(Job::Batch(lane, Errand::default())));
        board.offer(lane, Errand { full: true, ..Errand::default() });
        board.done(lane, None, rest);
        board.offer(lane, Errand { due: true, ..Errand::default() });
        assert!(workers.try_recv().is_err());
        board.lock().values_mut().for_each(|place| place.not_before = None);
        board.offer(lane, Errand::default());
        assert_eq!(workers.try_recv(), Ok(Job::Batch(lane, Errand { full: true, due: true, ..Errand::default() })));
        board.done(lane, None, |_| {});
        assert!(workers.try_recv().is_err());
    }

    #[test]
    fn rounds_rest_longer_where_servers_are_busy_than_where_they_are_far() {
        let rest = |rounds: &[u64]| {
            let took = |last: LastRound, took: &u64| last.then(Some(Duration::from_millis(*took)), true);
            rounds.iter().fold(LastRound::default(), took).rest().as_millis()
        };
        for (rounds, milliseconds) in [
            (&[][..], 1),
            (&[3, 3], 1),
            // Far: it is always so.
            (&[60, 60], 20),
            // A hiccup, and as ever.
            (&[4, 24], 1),
            (&[4, 9, 8], 1),
            (&[3, 6, 6, 6, 6, 900], 1),
            // Busy: it was quicker.
            (&[4, 20, 20, 20, 20, 20, 20, 20, 20], 29),
            (&[3, 60, 60, 60, 60, 60, 60, 60, 60], 54),
            // Not any more.
            (&[4, 20, 20, 20, 20, 20, 20, 20, 20, 4, 4, 4], 1),
        ] {
            assert_eq!(rest(rounds), milliseconds, "{rounds:?}");
        }
        // Nothing was settled: that says nothing.
        let last = LastRound::default().then(Some(Duration::from_millis(9)), true);
        assert_eq!(last.then(None, false), LastRound { flows: false, ..last });
        // It is forgotten.
        assert_eq!(rest(&[&[3][..], &[9; 200_000]].concat()), 3);
    }

    #[test]
    fn where_all_lanes_with_work_rest_the_next_look_waits_for_the_first_of_them() {
        let (queue, _workers) = tokio::sync::mpsc::unbounded_channel();
        let board = Board::new(queue);
        let rest = |lane: i32, seconds: u64| {
            let until = Instant::now() + Duration::from_secs(seconds);
            board.lock().entry(Lane(lane)).or_default().not_before = Some(until);
        };
        let all_rest = |lanes: &[i32]| board.all_rest(lanes.iter().copied().map(Lane)).map(|rest| rest.as_secs());
        rest(1, 60);
        rest(2, 30);
        rest(3, 0);
        assert_eq!((all_rest(&[1, 2]), all_rest(&[])), (Some(29), None));
        assert_eq!((all_rest(&[1, 3]), all_rest(&[1, 4])), (None, None), "one can be visited");
        board.lock().entry(Lane(1)).or_default().taken = true;
        assert_eq!(all_rest(&[1, 2]), None, "somebody is there");
    }

    #[test]
    fn nothing_is_asked_of_a_lane_that_a_worker_is_on_its_way_to() {
        let (queue, _workers) = tokio::sync::mpsc::unbounded_channel();
        let board = Board::new(queue);
        let free = || board.free_lanes(4).into_iter().map(|lane| lane.0).collect::<Vec<_>>();
        assert_eq!(free(), [0, 1, 2, 3]);
        board.offer(Lane(1), Errand::default());
        board.offer_together([Lane(2), Lane(3)].into_iter());
        assert_eq!(free(), [0]);
        // It is somebody else's just now: whether it still has work is asked.
        board.done(Lane(1), Some(Errand::default()), |place| {
            place.not_before = Some(Instant::now() + Duration::from_secs(60));
        });
        board.done(Lane(2), None, |_| {});
        assert_eq!(free(), [0, 1, 2]);
    }

    #[test]
    fn free_lanes_share_a_round_and_those_where_something_is_the_matter_do_not() {
        let (queue, mut workers) = tokio::sync::mpsc::unbounded_channel();
        let board = Board::new(queue);
        let lanes = || (0..20).map(Lane);
        let soon = Instant::now() + Duration::from_secs(60);
        board.offer(Lane(1), Errand::default());
        assert_eq!(workers.try_recv(), Ok(Job::Batch(Lane(1), Errand::default())));
        board.lock().entry(Lane(2)).or_default().alone_until = Some(soon);
        board.lock().entry(Lane(3)).or_default().not_before = Some(soon);
        board.lock().entry(Lane(4)).or_default().in_vain = 2;
        board.offer_together(lanes());
        let left: Vec<Lane> = lanes().filter(|lane| !(1..=4).contains(&lane.0)).collect();
        assert_eq!(workers.try_recv(), Ok(Job::Round(left.clone())));
        assert!(!board.is_crowded(2), "a round is one worker's");
        // One after the other.
        board.offer_together(lanes());
        assert!(workers.try_recv().is_err());
        left.iter().for_each(|lane| board.done(*lane, None, |_| {}));
        board.round_done(None, false);
        // Who has no company gets a batch.
        board.offer_together([Lane(7)].into_iter());
        assert_eq!(workers.try_recv(), Ok(Job::Batch(Lane(7), Errand::default())));
        // More than share a round: none of them alone.
        board.offer_together((20..53).map(Lane));
        let sizes = [(); 3].map(|()| match workers.try_recv() {
            Ok(Job::Round(lanes)) => lanes.len(),
            other => panic!("{other:?}"),
        });
        assert_eq!(sizes, [11, 11, 11]);
    }
}
