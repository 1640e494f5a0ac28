//! `backfill`: the first copy of whole tables, while the application writes and any number of relays run.
//!
//! Guarantees: no row of the new table goes back to an older state, none that was deleted comes back, none is missing at the end but
//! those that are told (see `chunk` for why); ended at any moment, by whatever, it goes on where it was; two that copy the
//! same entity share the work. It needs every change since it began to come as an event: from the application, or by capture.
//!
//! An entity's keys are read in pages; a page is noted, then its keys are copied lane by lane, in chunks that hold the lane's
//! lock for a few dozen milliseconds, then it is forgotten.

mod chunk;
mod error;
mod gate;
mod lanes;
mod left;
mod pace;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use self::error::BackfillError;
use self::error::{is_too_slow, keys_late, legacy, new, sequence, sequence_late, tables_of_this_version, unread};
use self::gate::Gate;
pub(crate) use self::gate::PAUSED;
use self::pace::Pace;
use crate::config::{Action, Config, Entity};
use crate::connect::{self, ConnectError};
use crate::disposition::{logged, told};
use crate::failpoint::reach;
use crate::job::{Ending, Kind, Order, Place, Who, Working};
use crate::mapping;
use crate::plan;
use crate::redact::Quoting;
use crate::retry::Pause;
use crate::session::is_late;
use crate::source::{Legacy, Source};
use crate::target::{Copied, CopyId, LeftRow, OverRows, Progress, Reason, Target};
use crate::words::per_second;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which entities, by name; none: all that say of which legacy rows they are made.
    pub entities: Vec<String>,
    /// Forget what was copied, and begin anew. Rows are overwritten, not deleted.
    pub restart: bool,
    /// How long rows that wait for their events are waited for, once nothing moves any more.
    pub patience: Duration,
    /// Who asked.
    pub who: Who,
    /// The job that this is, if it is begun already.
    pub job: Option<Working>,
}

impl Default for Options {
    fn default() -> Options {
        let patience = Duration::from_secs(30);
        Options { entities: Vec::new(), restart: false, patience, who: Who::default(), job: None }
    }
}

/// What whoever watches is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Told {
    /// An entity's copy begins, or goes on.
    Began {
        /// Which.
        entity: String,
        /// Rows copied before.
        rows: u64,
        /// Rows in all, about.
        estimate: Option<u64>,
    },
    /// Twice a second.
    Progress {
        /// Which.
        entity: String,
        /// Rows copied so far.
        rows: u64,
        /// Rows in all, about.
        estimate: Option<u64>,
        /// Rows a second since it began or went on.
        rate: f64,
        /// What is waited for.
        waits_for: Option<String>,
    },
    /// It is done, as far as it can be, or was told to end.
    Ended {
        /// How far.
        #[serde(flatten)]
        copied: Copied,
    },
}

/// How it ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Each entity, in the order in which they were copied; when it was told to end, some may be missing.
    pub copies: Vec<Copied>,
    /// It was told to end before it was done.
    pub interrupted: bool,
    /// What was to be forgotten was: whoever goes on must not restart once more.
    pub forgotten: bool,
}

impl Summary {
    /// Told to end before anything was copied.
    fn stopped() -> Summary {
        Summary { copies: Vec::new(), interrupted: true, forgotten: false }
    }

    /// Whether all rows were copied.
    pub fn is_whole(&self) -> bool {
        !self.interrupted && self.copies.iter().all(|copy| copy.left() == 0)
    }
}

/// One entity's copy, as all of its lanes share it.
struct Job<'a> {
    config: &'a Config,
    source: &'a Source,
    target: &'a Target,
    entity: &'a Entity,
    copy: CopyId,
    place: Option<Place>,
    legacy: Legacy,
    statement: OverRows,
    /// Whether the target has constraints that are checked at the end of a transaction.
    deferred_constraints: AtomicBool,
    /// Its table refers to itself.
    refers_to_itself: bool,
    /// Event types by which the entity's whole row is written, or deleted.
    whole: Vec<String>,
    /// Aggregate types whose failed events hold nobody back, for healing.
    pass: Vec<String>,
    pace: Pace,
    counts: Counts,
    tell: &'a (dyn Fn(Told) + Sync),
    stop: &'a CancellationToken,
}

/// What was done since it began or went on, for whoever watches.
struct Counts {
    began: Instant,
    before: u64,
    estimate: Option<u64>,
    rows: AtomicU64,
    refused: AtomicU64,
    waits_for: std::sync::Mutex<Option<String>>,
}

impl Counts {
    fn rate(&self) -> f64 {
        per_second(self.rows.load(Ordering::Relaxed), self.began.elapsed())
    }

    fn waits_for(&self, why: Option<String>) {
        *self.waits_for.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = why;
    }
}

impl Job<'_> {
    fn refused(&self, error: &sqlx::Error) -> BackfillError {
        let place = self.statement.file().map(|file| format!(" ({file})")).unwrap_or_default();
        let of =
            |said: String| format!("entity {}{place}: {said}: mend it, then: outbox-relay backfill", self.entity.name);
        let code = crate::job::code(Some(error));
        BackfillError::Rows { code, message: of(told(error)), logged: of(logged(error)) }
    }

    /// Whether constraints may be checked as late as the commit.
    fn checks_late(&self) -> bool {
        self.deferred_constraints.load(Ordering::Relaxed)
    }

    /// Whether it was refused for a row of its own table that is not there (yet): lanes are copied one after the other, and the row that it
    /// refers to may be in a later one.
    fn waits_for_its_parent(&self, row: &LeftRow) -> bool {
        self.refers_to_itself && row.reason == Reason::Refused && row.code.as_deref() == Some("23503")
    }

    fn begun_anew(&self) -> BackfillError {
        BackfillError::BegunAnew { entity: self.entity.name.clone() }
    }

    fn gate(&self) -> Gate<'_> {
        Gate {
            source: self.source,
            target: self.target,
            entity: &self.entity.name,
            limits: &self.config.backfill,
            pace: &self.pace,
            seen: tokio::sync::Mutex::new(None),
            place: self.place.as_ref(),
        }
    }

    fn progress(&self) -> Told {
        let counts = &self.counts;
        Told::Progress {
            entity: self.entity.name.clone(),
            rows: counts.before + counts.rows.load(Ordering::Relaxed),
            estimate: counts.estimate,
            rate: counts.rate(),
            waits_for: counts.waits_for.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone(),
        }
    }
}

/// Copies; `tell` is told how it goes. Ends between two chunks when `stop` is cancelled.
pub async fn run(
    config: &Config,
    options: &Options,
    tell: &(dyn Fn(Told) + Sync),
    stop: &CancellationToken,
) -> Result<Summary, BackfillError> {
    let quoting = config.quoting(&options.entities);
    let entities = match wanted(config, &options.entities) {
        Ok(entities) => entities,
        Err(error) => {
            if let Some(job) = &options.job {
                job.end(&error.ending(quoting)).await;
            }
            return Err(error);
        }
    };
    let (job, opened) = match &options.job {
        Some(job) => (job.clone(), None),
        // A command's job begins where its target answers.
        None => {
            let Some(opened) = stop.run_until_cancelled(open(config)).await else { return Ok(Summary::stopped()) };
            let opened = opened?;
            let order = Order {
                kind: Kind::Backfill,
                entities: names(&entities),
                request: serde_json::json!({ "entities": options.entities, "restart": options.restart }),
                who: options.who.clone(),
            };
            (Working::begin(&opened.1, &order, stop).await.map_err(tables_of_this_version)?, Some(opened))
        }
    };
    let tell = |told: Told| {
        if let Told::Progress { entity, rows, estimate, rate, waits_for } = &told {
            let (entity, waits_for) = (entity.clone(), waits_for.clone());
            job.tell(Progress { entity, rows: *rows, estimate: *estimate, rate: *rate, waits_for });
        }
        tell(told);
    };
    let done = job.during(Box::pin(audited(config, options, (entities, opened), &tell, job.stop()))).await;
    job.end(&ending(&done, quoting)).await;
    done
}

fn ending(done: &Result<Summary, BackfillError>, quoting: Quoting) -> Ending {
    let summary = match done {
        Ok(summary) => summary,
        Err(error) => return error.ending(quoting),
    };
    let result = serde_json::json!({ "copies": summary.copies });
    if summary.interrupted {
        return Ending::Stopped(Some(result));
    }
    let left: Vec<String> = summary.copies.iter().filter_map(Copied::what_is_left).collect();
    if left.is_empty() {
        Ending::Done(result)
    } else {
        Ending::Left { code: "rows_left", message: left.join(". "), result }
    }
}

async fn open(config: &Config) -> Result<(Source, Target), ConnectError> {
    let mut opened = config.clone();
    opened.relay.workers = config.relay.workers.max(config.backfill.workers);
    connect::open(&opened).await
}

/// Connects, unless that was done, and copies; it stands in the audit. What it may wait for, it does only until `stop`.
async fn audited(
    config: &Config,
    options: &Options,
    (entities, opened): (Vec<&Entity>, Option<(Source, Target)>),
    tell: &(dyn Fn(Told) + Sync),
    stop: &CancellationToken,
) -> Result<Summary, BackfillError> {
    let prepare = async {
        let (source, target) = match opened {
            Some(opened) => opened,
            None => open(config).await?,
        };
        sees_the_load(config, &source).await?;
        let entities = in_order(config, entities, &source, &target).await?;
        let before = rows_copied(&target, &entities).await.map_err(tables_of_this_version)?;
        Ok::<_, BackfillError>((source, target, entities, before))
    };
    let Some(prepared) = stop.run_until_cancelled(prepare).await else { return Ok(Summary::stopped()) };
    let (source, target, entities, before) = prepared?;
    let subject = serde_json::json!({ "entities": names(&entities), "restart": options.restart });
    let noted = source.audit(&options.who, "backfill", &subject).await.map_err(legacy)?;
    let done = each(config, options, (&source, &target, &entities), tell, stop).await;
    if let Ok(after) = rows_copied(&target, &entities).await {
        let changed = if options.restart { after } else { after.saturating_sub(before) };
        source.audit_changed(noted, changed, changed).await;
    }
    done
}

/// What cannot be seen cannot be heeded, and must not be taken for nothing.
async fn sees_the_load(config: &Config, source: &Source) -> Result<(), BackfillError> {
    if !config.backfill.heeds_the_load() || source.load().await.map_err(legacy)?.is_shown {
        return Ok(());
    }
    Err(BackfillError::Refused(
        "backfill.max_sessions and backfill.max_replica_lag: on the legacy database this role is not shown what other roles do. Let its owner run \
         GRANT pg_monitor TO the relay's role, or set both to 0"
            .to_owned(),
    ))
}

fn names(entities: &[&Entity]) -> Vec<String> {
    entities.iter().map(|entity| entity.name.clone()).collect()
}

async fn rows_copied(target: &Target, entities: &[&Entity]) -> sqlx::Result<u64> {
    let copies = target.copies().await?;
    let of_these = copies.iter().filter(|copy| entities.iter().any(|entity| entity.name == copy.entity));
    Ok(of_these.map(|copy| copy.rows.unsigned_abs()).sum())
}

/// Copies one entity after the other.
async fn each(
    config: &Config,
    options: &Options,
    (source, target, entities): (&Source, &Target, &[&Entity]),
    tell: &(dyn Fn(Told) + Sync),
    stop: &CancellationToken,
) -> Result<Summary, BackfillError> {
    // All of them before the first is copied: whoever goes on after that copies all of them anew.
    if options.restart && !forget(target, &names(entities), stop).await? {
        return Ok(Summary::stopped());
    }
    let mut summary = Summary { copies: Vec::new(), interrupted: false, forgotten: options.restart };
    for entity in entities {
        if stop.is_cancelled() {
            summary.interrupted = true;
            break;
        }
        let waits = |why| {
            let (entity, waits_for) = (entity.name.clone(), Some(why));
            tell(Told::Progress { entity, rows: 0, estimate: None, rate: 0.0, waits_for });
        };
        let late = AtomicU32::new(0);
        let begun = patiently(stop, waits, || job(config, entity, (source, target), &late, tell, stop)).await?;
        let Some(job) = begun else {
            summary.interrupted = true;
            break;
        };
        let place = options.job.as_ref().and_then(Working::place).cloned();
        let finished = copy(&Job { place, ..job }, options.patience).await?;
        let copies = patiently(stop, |_| {}, || async { target.copies().await.map_err(new) }).await?;
        let Some(copies) = copies else {
            summary.interrupted = true;
            break;
        };
        if let Some(mut copied) = copies.into_iter().find(|copy| copy.entity == entity.name) {
            // This one's own work, which is over, counts as somebody's.
            if copied.state == "running" {
                copied.state = if !finished {
                    "interrupted"
                } else if copied.left() > 0 {
                    "left"
                } else {
                    "done"
                }
                .to_owned();
            }
            tell(Told::Ended { copied: copied.clone() });
            summary.copies.push(copied);
        }
        summary.interrupted |= !finished;
    }
    Ok(summary)
}

/// Waits for who hands out a page of one at that moment. False: it was told to end, and nothing was forgotten.
async fn forget(target: &Target, entities: &[String], stop: &CancellationToken) -> Result<bool, BackfillError> {
    let forget = || async { target.forget_copies(entities).await.map_err(tables_of_this_version) };
    Ok(patiently(stop, |_| {}, forget).await?.is_some())
}

/// Does it, once more whenever a database was away, as each chunk is; `waits` is told. `None`: it was told to end.
async fn patiently<T, F: Future<Output = Result<T, BackfillError>>>(
    stop: &CancellationToken,
    waits: impl Fn(String),
    mut attempt: impl FnMut() -> F,
) -> Result<Option<T>, BackfillError> {
    let mut pause = Pause::new(Duration::from_millis(100), Duration::from_secs(1));
    loop {
        match attempt().await {
            Ok(done) => return Ok(Some(done)),
            Err(error) if error.is_transient() => waits(error.to_string()),
            Err(error) => return Err(error),
        }
        if !gate::rest(pause.next_pause(), stop).await {
            return Ok(None);
        }
    }
}

/// Lets the copies of these entities rest, whoever makes them, or go on; those that changed.
pub async fn pause(
    source: &Source,
    target: &Target,
    entities: &[String],
    rest: bool,
    who: &Who,
) -> Result<Vec<String>, BackfillError> {
    let changed = target.pause_copies(entities, rest).await.map_err(new)?;
    if !changed.is_empty() {
        let action = if rest { "backfill.pause" } else { "backfill.resume" };
        let subject = serde_json::json!({ "entities": changed });
        source.audit(who, action, &subject).await.map_err(legacy)?;
    }
    Ok(changed)
}

/// The entities to be copied.
pub(crate) fn wanted<'a>(config: &'a Config, names: &[String]) -> Result<Vec<&'a Entity>, BackfillError> {
    let mut wanted: Vec<&Entity> = Vec::new();
    for name in names {
        let entity = crate::map::entity(config, name).map_err(|error| BackfillError::Refused(error.to_string()))?;
        if entity.legacy.is_none() {
            return Err(BackfillError::Refused(format!(
                "entity {name} does not say of which legacy rows it is made: legacy = {{ table = \"public.{name}\", key = [\"id\"] }}"
            )));
        }
        if wanted.iter().all(|known| known.name != entity.name) {
            wanted.push(entity);
        }
    }
    if names.is_empty() {
        wanted = config.entities.iter().filter(|entity| entity.legacy.is_some()).collect();
    }
    if wanted.is_empty() {
        return Err(BackfillError::Refused(
            "no entity says of which legacy rows it is made: legacy = { table = \"public.users\", key = [\"id\"] }"
                .to_owned(),
        ));
    }
    Ok(wanted)
}

/// Parents first.
async fn in_order<'a>(
    config: &Config,
    mut wanted: Vec<&'a Entity>,
    source: &Source,
    target: &Target,
) -> Result<Vec<&'a Entity>, BackfillError> {
    let plan = plan::plan(&config.entities, &source.pool, &target.pool).await?;
    let order: Vec<&String> = plan.order.iter().flat_map(|step| &step.entities).collect();
    wanted.sort_by_key(|entity| order.iter().position(|name| **name == entity.name).unwrap_or(usize::MAX));
    Ok(wanted)
}

/// `late`: how often it took too long to look at the legacy rows, as it does where no index tells whether a query's key is NULL.
async fn job<'a>(
    config: &'a Config,
    entity: &'a Entity,
    (source, target): (&'a Source, &'a Target),
    late: &AtomicU32,
    tell: &'a (dyn Fn(Told) + Sync),
    stop: &'a CancellationToken,
) -> Result<Job<'a>, BackfillError> {
    let described = source.legacy(entity).await;
    if let Err(error) = &described
        && is_too_slow(error)
        && source.round_trip().await.is_ok()
        && late.fetch_add(1, Ordering::Relaxed) + 1 >= TRIES
    {
        return Err(keys_late(entity, config.relay.deadline));
    }
    let described = described.map_err(|error| unread(entity, error))?;
    let described = described.map(|legacy| legacy.shown_to(config.redact.for_admins()));
    let (Some(rows), Some(described)) = (&entity.legacy, described) else {
        return Err(BackfillError::Refused(format!("entity {} has no legacy rows", entity.name)));
    };
    let estimate = source.estimate(rows).await.map_err(legacy)?;
    let mut transaction = target.pool.begin().await.map_err(new)?;
    let compiled = mapping::compile(entity, &mut transaction, &target.settings_sql(), &target.schema).await;
    transaction.rollback().await.map_err(new)?;
    let statement = compiled.map_err(|error| BackfillError::Mapping(Box::new(error)))?.upsert;
    let Some(statement) = statement else {
        return Err(BackfillError::Refused(format!("entity {} has no table to be copied to", entity.name)));
    };
    let refers_to_itself = match &entity.table {
        Some(table) => target.refers_to_itself(table).await.map_err(new)?,
        None => false,
    };
    let copy = target.begin_copy(&entity.name, estimate).await.map_err(tables_of_this_version)?;
    let before = target.copies().await.map_err(new)?.into_iter().find(|copy| copy.entity == entity.name);
    let limits = &config.backfill;
    let counts = Counts {
        began: Instant::now(),
        before: before.as_ref().map_or(0, |copy| copy.rows.unsigned_abs()),
        estimate: before.and_then(|copy| copy.estimate).map(i64::unsigned_abs),
        rows: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        waits_for: std::sync::Mutex::default(),
    };
    tell(Told::Began { entity: entity.name.clone(), rows: counts.before, estimate: counts.estimate });
    Ok(Job {
        config,
        source,
        target,
        entity,
        copy,
        place: None,
        legacy: described,
        statement: statement.over_rows(),
        deferred_constraints: AtomicBool::new(target.has_deferrable_constraints().await.map_err(new)?),
        refers_to_itself,
        whole: whole(entity),
        pass: config.passing(),
        pace: Pace::new(limits.lock_time, Some(limits.rows_per_second).filter(|rows| *rows > 0)),
        counts,
        tell,
        stop,
    })
}

fn whole(entity: &Entity) -> Vec<String> {
    let whole = entity.events.iter().filter(|(_, action)| matches!(action, Action::Upsert | Action::Delete));
    whole.map(|(event_type, _)| event_type.clone()).collect()
}

/// Copies one entity. False: it was told to end.
async fn copy(job: &Job<'_>, patience: Duration) -> Result<bool, BackfillError> {
    let work = async {
        let gate = job.gate();
        let slots = tokio::sync::Semaphore::new(job.config.backfill.workers.into());
        // Two pages at once: while the last lanes of one are copied, the next one's are begun.
        let (one, other) = tokio::try_join!(lanes::pages(job, &gate, &slots), lanes::pages(job, &gate, &slots))?;
        if !(one && other && lanes::leftover_pages(job, &gate, &slots).await?) {
            return Ok(false);
        }
        if !left::rows(job, &gate, patience).await? {
            return Ok(false);
        }
        reach("rows_copied");
        let late = AtomicU32::new(0);
        let ended = patiently(job.stop, |why| job.counts.waits_for(Some(why)), || end(job, &late)).await?;
        Ok(ended.is_some())
    };
    let watch = async {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            (job.tell)(job.progress());
        }
    };
    tokio::select! {
        done = work => done,
        () = watch => Ok(false),
    }
}

/// How often what takes too long is tried before that is said.
const TRIES: u32 = 3;

/// Sets the sequences, and then notes that it has ended: a copy whose sequences could not be set has not. `late`: how often that took too long.
async fn end(job: &Job<'_>, late: &AtomicU32) -> Result<(), BackfillError> {
    if let Some(table) = &job.entity.table {
        let mut raised = Vec::new();
        for (column, name) in job.target.sequences(table).await.map_err(|error| sequence(job.entity, error))? {
            job.counts
                .waits_for(Some(format!("the highest {column} of {table} is looked for, past which {name} is set")));
            match job.target.raise_sequence(table, &column, &name).await {
                Ok(true) => raised.push(name),
                Ok(false) => {}
                // It would be as late the next time, for ever.
                Err(error) if is_late(&error) && late.fetch_add(1, Ordering::Relaxed) + 1 >= TRIES => {
                    return Err(sequence_late(job.entity, table, (&column, &name), &error));
                }
                Err(error) => return Err(sequence(job.entity, error)),
            }
        }
        job.counts.waits_for(None);
        job.target.note_sequences(&job.copy, &raised).await.map_err(new)?;
    }
    if job.target.copy_ended(&job.copy).await.map_err(new)? { Ok(()) } else { Err(job.begun_anew()) }
}
