//! The relay: looks for lanes with work, and has workers apply them batch by batch.
//!
//! Guarantees what the design promises for each batch (see [`batch`]), with any number of workers and processes. Does not
//! guarantee that lanes are served in any order; no lane is starved, for each goes to the back of the queue after a batch.

mod apply;
pub mod batch;
mod failpoint;
mod heal;
mod plan;
pub mod router;
mod scout;
pub mod stops;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::batch::Errand;
use self::router::Router;
use self::stops::{Breaker, Stop, Stops};
use crate::config::{Config, Entity};
use crate::event::Lane;
use crate::metrics::Metrics;
use crate::source::Source;
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
}

/// What pages and readiness show of a running relay.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Lanes that cannot go on by themselves, with what to do.
    pub stopped_lanes: BTreeMap<Lane, String>,
    /// What the source last said when it was away.
    pub source_away: Option<String>,
    /// The configuration on disk cannot be used; the last good one goes on.
    pub reload_error: Option<String>,
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
        };
        shared.use_entities(entities).await?;
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

    /// Uses these entities from the next batch on; what was stopped because of the old ones is tried again.
    pub async fn use_entities(&self, entities: Vec<Entity>) -> sqlx::Result<()> {
        let router = Arc::new(Router::compile(&entities, &self.target).await?);
        let broken: HashMap<String, crate::mapping::MappingError> = router.broken(&entities).into_iter().collect();
        self.stops.resume_unless(|kind, stop| stop.code == "unmapped" && !router.knows(kind));
        for (kind, error) in broken {
            let stop = Stop { code: error.code.to_owned(), message: error.one_line(), probe: false };
            if self.stops.stop(&kind, stop) {
                tracing::error!(aggregate_type = %kind, code = error.code, "stopped until it is mended:\n{error}");
            }
        }
        *self.router.write().unwrap_or_else(PoisonError::into_inner) = router;
        *self.entities.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(entities);
        Ok(())
    }

    /// A copy of what pages show.
    pub fn state(&self) -> State {
        self.change_state(|state| state.clone())
    }

    /// Notes something for pages and readiness.
    pub fn change_state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Lanes on their way to workers. A lane is queued or worked on once at a time in this process.
struct Board {
    lanes: Mutex<HashMap<Lane, Place>>,
    queue: tokio::sync::mpsc::UnboundedSender<(Lane, Errand)>,
}

#[derive(Debug, Default)]
struct Place {
    taken: bool,
    again: Option<Errand>,
    isolate: bool,
    busy_since: Option<std::time::Instant>,
    not_before: Option<std::time::Instant>,
}

impl Board {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Lane, Place>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a worker there, unless one is on its way.
    fn offer(&self, lane: Lane, errand: Errand) {
        let mut lanes = self.lock();
        let place = lanes.entry(lane).or_default();
        if place.not_before.is_some_and(|at| at > std::time::Instant::now()) {
            return;
        }
        if place.taken {
            if errand.full || errand.due {
                place.again = Some(errand);
            }
            return;
        }
        place.taken = true;
        let errand = Errand { isolate: place.isolate, ..errand };
        // Nobody listens any more: the relay is shutting down.
        let _ = self.queue.send((lane, errand));
    }

    /// The worker is done there.
    fn done(&self, lane: Lane, again: Option<Errand>, change: impl FnOnce(&mut Place)) {
        let mut lanes = self.lock();
        let place = lanes.entry(lane).or_default();
        change(place);
        let again = place.again.take().or(again);
        match again {
            Some(errand) if place.not_before.is_none_or(|at| at <= std::time::Instant::now()) => {
                let errand = Errand { isolate: place.isolate, ..errand };
                let _ = self.queue.send((lane, errand));
            }
            _ => place.taken = false,
        }
    }

    fn idle(&self) -> bool {
        self.lock().values().all(|place| !place.taken)
    }
}

/// Runs until `shutdown`; then the batches in flight end, and it returns. A task that panics ends it with an error.
pub async fn run(shared: Arc<Shared>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let board = Arc::new(Board { lanes: Mutex::default(), queue: sender });
    let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
    let stop = shutdown.child_token();
    let mut tasks = JoinSet::new();
    for _ in 0..shared.config.relay.workers {
        tasks.spawn(worker::work(shared.clone(), board.clone(), receiver.clone(), stop.clone()));
    }
    tasks.spawn(scout::look_out(shared.clone(), board.clone(), stop.clone()));
    tasks.spawn(scout::compare_logs(shared.clone(), board.clone(), stop.clone()));
    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            stop.cancel();
            result = Err(anyhow::anyhow!("a task of the relay ended abnormally: {error}"));
        }
    }
    result
}
