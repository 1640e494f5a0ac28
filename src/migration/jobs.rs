//! Work that operators start over the admin API, done by this process.
//!
//! Guarantees: the same work of the same entity is begun once over all instances; a few pieces at a time in this process; each is
//! joined at the shutdown, which ends a copy where the next one goes on. See [`crate::job`] for who sees it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{MigrationError, named};
use crate::backfill::{self, BackfillError};
use crate::config::{Config, Entity};
use crate::connect;
use crate::job::{Ending, Kind, Order, Place, Taken, Who, Working};
use crate::relay::Shared;
use crate::repair::{self, Apply, By, Repair, Task, Wanted, odd_key};
use crate::source::Source;
use crate::target::{JobId, ReportId, Target};
use crate::verify;

/// Pieces of work at a time; a copy that rests is none.
const AT_ONCE: usize = 4;
/// How long whoever starts one waits for its end before told that it is under way.
const WAIT: Duration = Duration::from_secs(2);

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Work {
    /// Copy entities, or go on with them.
    Backfill {
        /// Which; empty: all that say of which legacy rows they are made.
        entities: Vec<String>,
        /// From the first row.
        restart: bool,
        /// Rows a second; none: as configured.
        rate: Option<u32>,
    },
    /// Compare both databases.
    Verify {
        /// Which entities; empty: all that can be.
        entities: Vec<String>,
        /// So many rows of each side instead of all.
        sample: Option<u32>,
        /// Rows a second on each side; none: as `[verify] rate`.
        rate: Option<u32>,
        /// Their tables' writes emit no events.
        without_events: bool,
    },
    /// Write rows of the new database anew.
    Rows {
        /// Which.
        rows: Rows,
        /// Whether to act.
        how: Apply,
    },
}

/// Which rows are written anew.
#[derive(Debug, Clone)]
pub enum Rows {
    /// `repair`: those that a report found.
    Reported {
        /// Which; none: of each entity the last full one that was finished.
        report: Option<ReportId>,
        /// Only this entity's rows.
        entity: Option<String>,
    },
    /// `resync`: these.
    Resync {
        /// Whose.
        entity: String,
        /// Which.
        wanted: Wanted,
    },
}

/// What came of starting it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// The job; somebody else's, if the same was under way.
    pub job: JobId,
    /// Whether it was begun now.
    pub began: bool,
}

/// The work of this process. Clones are the same.
#[derive(Clone)]
pub struct Jobs {
    tasks: TaskTracker,
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Jobs {
    /// None yet; all are told to end with `stop`.
    pub fn new(stop: CancellationToken) -> Jobs {
        Jobs { tasks: TaskTracker::new(), places: Arc::new(Semaphore::new(AT_ONCE)), stop }
    }

    /// Waits until all have ended, once they were told to.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Begins it, unless somebody does the same already, and waits for its end a moment. Another work that is under way for the same
    /// entities, and beside which it must not be begun, refuses it; and then nothing was changed.
    pub async fn start(&self, shared: &Shared, work: Work, who: Who) -> Result<Started, MigrationError> {
        let mut config = shared.config.clone();
        // As they are now, not as they were at the start.
        config.entities = shared.entities().to_vec();
        let (order, unless) = order(&config, &work, &who)?;
        if let Work::Rows { rows: Rows::Reported { report: Some(id), .. }, .. } = &work
            && shared.target.report(*id).await.map_err(MigrationError::Target)?.is_none()
        {
            return Err(MigrationError::NoReport(id.0));
        }
        let found = Taken::look(&shared.target, &order, unless).await.map_err(MigrationError::Target)?;
        if let Some(taken) = found {
            let job = same(taken)?;
            wake(shared, &order).await?;
            return Ok(Started { job, began: false });
        }
        let place = Place::of(&self.places).ok_or(MigrationError::TooMany(AT_ONCE))?;
        let begun = Working::begin_unless(&shared.target, &order, unless, &self.stop).await;
        let working = match begun.map_err(MigrationError::Target)? {
            Ok(working) => working.at(place),
            // It was begun between the two looks.
            Err(taken) => {
                let job = same(*taken)?;
                wake(shared, &order).await?;
                return Ok(Started { job, began: false });
            }
        };
        let job = working.id;
        if let Err(error) = working.during(wake(shared, &order)).await {
            working.end(&error.ending(config.quoting(&order.entities))).await;
            return Err(error.into());
        }
        tracing::info!(job = job.0, kind = order.kind.as_str(), actor = %who.actor, "work begins");
        let done = self.tasks.spawn(run(config, work, who, working));
        // It goes on when nobody waits any more. A panic of it has been told by its hook.
        let _ = tokio::time::timeout(WAIT, done).await;
        Ok(Started { job, began: true })
    }
}

/// The job of somebody who does the same already.
fn same(taken: Taken) -> Result<JobId, MigrationError> {
    if taken.is_same { Ok(JobId(taken.job.id)) } else { Err(MigrationError::OtherWork(Box::new(taken.job))) }
}

/// Whoever starts a copy wants it to run.
async fn wake(shared: &Shared, order: &Order) -> Result<(), BackfillError> {
    if order.kind == Kind::Backfill {
        backfill::pause(&shared.source, &shared.target, &order.entities, false, &order.who).await?;
    }
    Ok(())
}

/// The job that it is, and what must not be under way beside it.
fn order(config: &Config, work: &Work, who: &Who) -> Result<(Order, &'static [Kind]), MigrationError> {
    Ok(match work {
        Work::Backfill { entities, restart, rate } => {
            entities.iter().try_for_each(|name| with_rows(config, name).map(drop))?;
            let request = serde_json::json!({ "entities": entities, "restart": restart, "rows_per_second": rate });
            let entities = backfill::wanted(config, entities)?.iter().map(|entity| entity.name.clone()).collect();
            (Order { kind: Kind::Backfill, entities, request, who: who.clone() }, &[Kind::Backfill])
        }
        Work::Verify { entities, .. } => {
            entities.iter().try_for_each(|name| with_rows(config, name).map(drop))?;
            let chosen = verify::chosen(&config.entities, entities)?;
            (verify::order(&verification(config, work, who, None), &chosen), &[Kind::Verify])
        }
        Work::Rows { rows, how } => {
            let (task, by) = task(config, rows, who)?;
            if let Task::Resync(entity, Wanted::Keys(keys)) = &task
                && let Some(rows) = &entity.legacy
                && odd_key(rows, keys).is_some()
            {
                return Err(MigrationError::Keys { entity: entity.name.clone(), parts: rows.key.len() });
            }
            let unless: &[Kind] = if how.apply { &[Kind::Repair, Kind::Resync] } else { &[] };
            (repair::order(config, &task, &by, *how), unless)
        }
    })
}

/// An entity that says of which legacy rows it is made.
fn with_rows<'c>(config: &'c Config, name: &str) -> Result<&'c Entity, MigrationError> {
    let entity = named(&config.entities, name).ok_or_else(|| MigrationError::NoEntity(name.to_owned()))?;
    entity.legacy.as_ref().map(|_| entity).ok_or_else(|| MigrationError::NoLegacy(name.to_owned()))
}

/// Which rows, and for whom.
fn task<'c>(config: &'c Config, rows: &Rows, who: &Who) -> Result<(Task<'c>, By), MigrationError> {
    let by = |command| By { actor: who.actor.clone(), reason: who.reason.clone(), command, via: who.via };
    Ok(match rows {
        Rows::Reported { report, entity } => {
            let entity = entity.as_deref().map(|name| with_rows(config, name)).transpose()?;
            (Task::Reported(*report, entity), by(Kind::Repair))
        }
        Rows::Resync { entity, wanted } => (Task::Resync(with_rows(config, entity)?, wanted.clone()), by(Kind::Resync)),
    })
}

fn verification(config: &Config, work: &Work, who: &Who, job: Option<Working>) -> verify::Options {
    let options = verify::Options { who: who.clone(), job, ..verify::Options::default() };
    match work {
        Work::Verify { entities, sample, rate, without_events } => verify::Options {
            entities: entities.clone(),
            sample: *sample,
            rate: Some(rate.unwrap_or(config.verify.rate)),
            without_events: *without_events,
            ..options
        },
        _ => options,
    }
}

/// Does it; how it ended stands with the job, and is logged here.
async fn run(mut config: Config, work: Work, who: Who, working: Working) {
    let job = working.id.0;
    let failed = match work {
        Work::Backfill { entities, restart, rate } => {
            config.backfill.rows_per_second = rate.unwrap_or(config.backfill.rows_per_second);
            let stop = working.stop().clone();
            let options = backfill::Options { entities, restart, who, job: Some(working), ..Default::default() };
            Box::pin(backfill::run(&config, &options, &|_| {}, &stop)).await.err().map(|error| error.logged())
        }
        Work::Verify { .. } | Work::Rows { .. } => {
            let opening = working.stop().run_until_cancelled(connect::open(&config));
            match working.during(opening).await {
                Some(Ok((source, target))) => {
                    Box::pin(compare(&config, (&source, &target), &work, &who, working)).await.err()
                }
                Some(Err(error)) => {
                    working.end(&Ending::failed(error.database(), error.to_string())).await;
                    Some(error.to_string())
                }
                None => {
                    working.end(&Ending::Stopped(None)).await;
                    None
                }
            }
        }
    };
    match failed {
        Some(why) => tracing::warn!(job, why, "work that was begun over the API failed"),
        None => tracing::info!(job, "work has ended"),
    }
}

async fn compare(
    config: &Config,
    (source, target): (&Source, &Target),
    work: &Work,
    who: &Who,
    working: Working,
) -> Result<(), String> {
    let stop = working.stop().clone();
    let Work::Rows { rows, how: Apply { apply, expected } } = work else {
        let options = verification(config, work, who, Some(working));
        let done = verify::verify(config, source, target, &options, &stop, &|_| {}).await;
        return done.map(drop).map_err(|error| error.logged());
    };
    let (task, by) = task(config, rows, who).map_err(|error| error.to_string())?;
    let (apply, expected) = (*apply, *expected);
    let repair = Repair { config, source, target, by: &by, apply, expected, stop: &stop, job: Some(working) };
    repair.run(&task).await.map(drop).map_err(|error| error.logged())
}
