//! `verify`: whether both databases agree, through the mapping, while events flow.
//!
//! Guarantees: no false alarm on live traffic (a difference is told only after a look under the lane's lock, with no event of its
//! aggregate open), no pause, no long snapshot: every statement is a short transaction. Equal chunks ship nothing but a checksum, and
//! memory does not grow with the tables. A verification is as of no single moment: each row is right when it was read.
//! Does not guarantee to see what changes behind its back: a row that is made wrong after its chunk was read is the next one's.

mod buckets;
mod judge;
pub mod keep;
mod look;
mod pass;
mod patience;
mod ranges;
pub mod report;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

pub(crate) use self::judge::{Judgement, Rule, Seen, Suspect};
pub(crate) use self::look::{Homes, Look};
use self::pass::Pass;
use self::patience::patiently;
use self::ranges::Step;
pub(crate) use self::report::STOPPED;
pub use self::report::{ColumnDifference, Difference, EntityReport, Kind, Outcome, Report, Waiting, render};
use crate::config::{Config, Entity, OnFailure};
use crate::disposition::{logged, told};
use crate::event::Lane;
use crate::job::{self, Ending, Order, Who, Working};
use crate::lease::LeaseError;
use crate::mapping::MappingError;
use crate::mapping::compare::{Comparison, Hash};
use crate::redact::Quoting;
use crate::session::{is_late, is_lock_timeout};
use crate::source::{Legacy, RowKey, Source};
use crate::sql::ident;
use crate::target::{Progress as Told, ReportId, Target};
use crate::words::{per_second, several};

/// How it is done.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// These entities; empty: all that have `legacy`.
    pub entities: Vec<String>,
    /// So many rows of each side, chosen at random, instead of all.
    pub sample: Option<u32>,
    /// Rows a second on each side, at most.
    pub rate: Option<u32>,
    /// The tables' writes emit no events: look twice instead of under a lock.
    pub without_events: bool,
    /// Who asked, and how; the latter is kept with the report.
    pub who: Who,
    /// The report, if it is begun already.
    pub begun: Option<(ReportId, DateTime<Utc>)>,
    /// The job that this is, if it is begun already.
    pub job: Option<Working>,
}

/// Rows so far, the time since the entity was begun, and how far a further walk is.
pub type Progress<'a> = dyn Fn(u64, Duration, Option<Again>) + Sync + 'a;

/// Why it could not go on.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The legacy database.
    #[error("legacy: {}", told(.0))]
    Source(#[source] sqlx::Error),
    /// The new one.
    #[error("new: {}", told(.0))]
    Target(#[source] sqlx::Error),
    /// A mapping.
    #[error("{0}")]
    Mapping(Box<MappingError>),
    /// A lane that cannot be taken.
    #[error("{0}")]
    Lane(#[source] LeaseError),
    /// A lane that is not given back.
    #[error(
        "lane {0} is held by somebody else all the time: end what else works on the databases (a copy, a repair, a session left open in a \
         transaction: outbox-relay status), then run it again"
    )]
    Busy(Lane),
    /// Even a small chunk takes too long.
    #[error("even a small chunk takes longer than relay.deadline: is there an index on the key?")]
    TooSlow,
    /// Rows with NULL in their key cannot be counted in time.
    #[error(
        "to count the rows of the new table with NULL in their key takes longer than relay.deadline: CREATE INDEX CONCURRENTLY ON {table} ((1)) \
         WHERE {condition} has them at hand; or raise relay.deadline; then verify again"
    )]
    NullsTooSlow {
        /// The new one, quoted.
        table: String,
        /// Which rows.
        condition: String,
    },
    /// The new table's own rows cannot be read.
    #[error(
        "a row of the new table cannot be read: {0}: mend or delete that row, or leave the column out ([entity.verify] ignore), then verify again"
    )]
    Unreadable(String),
    /// Nobody is called so, or has no legacy rows.
    #[error("{0}")]
    NoEntity(String),
    /// A repair would change another number of rows than whoever asked expected.
    #[error("{matched} rows would be changed, {expected} were expected: nothing was changed")]
    NotAsExpected {
        /// Whoever asked.
        expected: u64,
        /// What is so.
        matched: u64,
    },
    /// Told to end.
    #[error("stopped before the end")]
    Stopped,
}

impl VerifyError {
    /// As the log may have it: what a server quotes of a row is left out.
    pub(crate) fn logged(&self) -> String {
        match self {
            VerifyError::Source(error) => format!("legacy: {}", logged(error)),
            VerifyError::Target(error) => format!("new: {}", logged(error)),
            VerifyError::Mapping(error) => error.logged(),
            VerifyError::Unreadable(_) => "a row of the new table cannot be read".to_owned(),
            other => other.to_string(),
        }
    }

    /// As whoever may see so much is told.
    pub fn shown(&self, quoting: Quoting) -> String {
        match quoting {
            Quoting::Values => self.to_string(),
            Quoting::NoValues => self.logged(),
        }
    }

    /// As its job ends, and is kept for those who may see most.
    pub(crate) fn ending(&self, quoting: Quoting) -> Ending {
        let database = match self {
            VerifyError::Source(error) | VerifyError::Target(error) => Some(error),
            _ => None,
        };
        match self {
            VerifyError::NotAsExpected { .. } => {
                Ending::Failed { code: "not_as_expected".to_owned(), message: self.to_string() }
            }
            _ => Ending::failed(database, self.shown(quoting)),
        }
    }
}

/// Differences of one entity that are kept; beyond them it is not read further.
pub const KEPT: u64 = 10_000;
/// How often a row is looked at under its lane's lock, until none of its events is on its way; and the pause between.
const ATTEMPTS: usize = 8;
const BETWEEN: Duration = Duration::from_millis(50);
/// Suspects that are gathered before they are looked at again.
const GATHER: usize = 500;

/// How far the verification of an entity is.
#[derive(Debug, Clone)]
pub struct Far<'a> {
    /// Its name.
    pub entity: &'a str,
    /// Read so far, of each side.
    pub rows: u64,
    /// About how many there are to be read; `None` where nobody knows.
    pub estimate: Option<u64>,
    /// Since it was begun.
    pub took: Duration,
    /// Once all was read, if it is read again to find what differs.
    pub again: Option<Again>,
}

/// A further walk over both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    /// Which: the second at least.
    pub walk: u32,
    /// About how many rows it has read, of both sides together.
    pub rows: u64,
}

impl Far<'_> {
    /// Rows a second.
    pub fn rate(&self) -> f64 {
        per_second(self.rows, self.took)
    }

    /// How long the rest will take; `None` where nobody knows, as once all was read and what differs is looked at again.
    pub fn left(&self) -> Option<Duration> {
        let rows = self.estimate?.saturating_sub(self.rows);
        (self.rows > 0 && rows > 0).then(|| Duration::from_secs_f64(rows as f64 / self.rate().max(0.001)))
    }
}

/// Verifies, and keeps the report on the target. `progress` is told after every chunk.
pub async fn verify(
    config: &Config,
    source: &Source,
    target: &Target,
    options: &Options,
    stop: &CancellationToken,
    progress: &(dyn Fn(&Far<'_>) + Sync),
) -> Result<Report, VerifyError> {
    let entities = chosen(&config.entities, &options.entities)?;
    let job = match &options.job {
        Some(job) => job.clone(),
        None => Working::begin(target, &order(options, &entities), stop).await.map_err(VerifyError::Target)?,
    };
    let tell = |far: &Far<'_>| {
        let (entity, rate) = (far.entity.to_owned(), far.rate());
        job.tell(Told { entity, rows: far.rows, estimate: far.estimate, rate, waits_for: None });
        progress(far);
    };
    let done = job.during(Box::pin(each(config, (source, target), options, entities, job.stop(), &tell))).await;
    job.end(&ending(&done, config.quoting(&options.entities))).await;
    done
}

/// The job that a verification is.
pub fn order(options: &Options, entities: &[&Entity]) -> Order {
    let Options { entities: asked, sample, rate, without_events, .. } = options;
    Order {
        kind: job::Kind::Verify,
        entities: entities.iter().map(|entity| entity.name.clone()).collect(),
        request: serde_json::json!({
            "entities": asked, "sample": sample, "rate": rate, "without_events": without_events
        }),
        who: options.who.clone(),
    }
}

fn ending(done: &Result<Report, VerifyError>, quoting: Quoting) -> Ending {
    match done {
        Ok(report) => {
            let differences = report.differences();
            let result = serde_json::json!({ "report": report.id, "outcome": report.outcome, "differences": differences, "complete": report.is_complete() });
            if report.is_stopped() { Ending::Stopped(Some(result)) } else { Ending::Done(result) }
        }
        Err(VerifyError::Stopped) => Ending::Stopped(None),
        Err(error) => error.ending(quoting),
    }
}

/// Verifies one entity after the other.
async fn each(
    config: &Config,
    (source, target): (&Source, &Target),
    options: &Options,
    entities: Vec<&Entity>,
    stop: &CancellationToken,
    progress: &(dyn Fn(&Far<'_>) + Sync),
) -> Result<Report, VerifyError> {
    let started = Instant::now();
    let (id, started_at) = match options.begun {
        Some(begun) => begun,
        None => {
            let by = options.who.via.as_str();
            target.begin_report(by, &mode(options)).await.map_err(VerifyError::Target)?
        }
    };
    let mut report = Report {
        id: id.0,
        started_at,
        seconds: 0.0,
        outcome: Outcome::Equal,
        entities: Vec::new(),
        differences: Vec::new(),
        waiting: Vec::new(),
    };
    let mut stopped = false;
    for entity in entities {
        let mut of = Verification {
            config,
            source,
            target,
            entity,
            options,
            stop,
            id,
            report: EntityReport::new(&entity.name),
            shown: Vec::new(),
            waiting: Vec::new(),
            unknown: 0,
            moved: false,
        };
        let began = Instant::now();
        let estimate = of.estimate().await;
        let told_progress = |rows: u64, took: Duration, again: Option<Again>| {
            progress(&Far { entity: &entity.name, rows, estimate, took, again });
        };
        let done = of.run(&told_progress).await;
        of.report.seconds = began.elapsed().as_secs_f64();
        if of.report.differences() + of.report.stuck > 0 {
            of.report.outcome = Outcome::Differs;
        } else if of.unknown > 0 {
            of.report.outcome = Outcome::CouldNot;
        }
        of.tell_unknown();
        match done {
            Ok(()) => {}
            Err(error) => {
                stopped = matches!(error, VerifyError::Stopped) || stop.is_cancelled();
                of.report.outcome = Outcome::CouldNot;
                of.report.complete = false;
                of.report.message = Some(if stopped {
                    report::STOPPED.to_owned()
                } else {
                    error.shown(config.quoting(std::slice::from_ref(&entity.name)))
                });
                of.report.logged = Some(error.logged());
            }
        }
        let room = report::SHOWN.saturating_sub(report.differences.len());
        report.differences.extend(of.shown.into_iter().take(room));
        report.waiting.extend(of.waiting);
        report.entities.push(of.report);
        if stopped {
            break;
        }
    }
    report.outcome = Report::worst(&report.entities);
    report.seconds = started.elapsed().as_secs_f64();
    target.end_report(id, &report).await.map_err(VerifyError::Target)?;
    Ok(report)
}

fn mode(options: &Options) -> String {
    match options.sample {
        Some(rows) => format!("sample {rows}"),
        None => "full".to_owned(),
    }
}

/// The entities that are meant, all of which have legacy rows.
pub(crate) fn chosen<'a>(entities: &'a [Entity], names: &[String]) -> Result<Vec<&'a Entity>, VerifyError> {
    let having: Vec<&Entity> = entities.iter().filter(|e| e.legacy.is_some()).collect();
    if names.is_empty() {
        if having.is_empty() {
            return Err(VerifyError::NoEntity(
                "no entity says which legacy rows it is made of: add legacy = { table = \"public.users\", key = [\"id\"] } to it".to_owned(),
            ));
        }
        return Ok(having);
    }
    let one = |name: &String| {
        let there = having.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(", ");
        having.iter().copied().find(|e| e.name == *name).ok_or_else(|| {
            let why = if entities.iter().any(|e| e.name == *name) {
                "does not say which legacy rows it is made of (legacy = { table = …, key = … })"
            } else {
                "is not in the configuration"
            };
            VerifyError::NoEntity(format!("entity {name} {why}; there are: {there}"))
        })
    };
    names.iter().map(one).collect()
}

/// Aggregate types whose failed events hold nobody back: every entity lets them pass.
pub(crate) fn passing(entities: &[Entity]) -> Vec<String> {
    let of =
        |failure: OnFailure| entities.iter().filter(move |e| e.on_failure == failure).map(|e| e.aggregate_type.clone());
    let held: std::collections::BTreeSet<String> = of(OnFailure::Hold).collect();
    of(OnFailure::Pass)
        .filter(|kind| !held.contains(kind))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// What an entity's comparison stands on.
pub(crate) struct Ground {
    pub(crate) legacy: Legacy,
    pub(crate) comparison: Comparison,
}

impl Ground {
    /// Reads both sides' types.
    pub(crate) async fn of(
        config: &Config,
        source: &Source,
        target: &Target,
        entity: &Entity,
    ) -> Result<Ground, VerifyError> {
        let none = || VerifyError::NoEntity(format!("entity {} has no table or no legacy rows", entity.name));
        let legacy = source.legacy(entity).await.map_err(VerifyError::Source)?.ok_or_else(none)?;
        let legacy = legacy.shown_to(config.redact.for_admins());
        let ignored: Vec<String> = entity.verify.ignore.iter().map(|i| i.column.clone()).collect();
        let comparison = target.comparison(entity, &ignored).await;
        let comparison = comparison.map_err(|error| VerifyError::Mapping(Box::new(error)))?.ok_or_else(none)?;
        Ok(Ground { legacy, comparison })
    }
}

/// Whether the legacy server evaluates the mapping; the new one does else.
async fn by_legacy(source: &Source, comparison: &mut Comparison) -> Result<bool, VerifyError> {
    let by_legacy = source.understands(comparison).await.map_err(VerifyError::Source)?;
    if !by_legacy {
        comparison.only_by_target();
    }
    Ok(by_legacy)
}

/// Whether the mapping hands the key of every legacy row through, and none yields another's: read of all of them, for a sample would miss
/// the few that decide what is deleted.
pub(crate) async fn hands_all_keys_through(
    config: &Config,
    (source, target): (&Source, &Target),
    entity: &Entity,
    stop: &CancellationToken,
) -> Result<bool, VerifyError> {
    let Ground { legacy, mut comparison } = Ground::of(config, source, target, entity).await?;
    if legacy.key_types.len() != comparison.key_types.len() {
        return Ok(false);
    }
    let columns = source.legacy_columns(entity).await.map_err(VerifyError::Source)?;
    comparison.take_columns(&columns);
    if comparison.keeps_key() {
        return Ok(true);
    }
    if comparison.folds_keys() {
        return Ok(false);
    }
    let by_legacy = by_legacy(source, &mut comparison).await?;
    let mut walk = Pass::new((source, target), &legacy, &comparison, by_legacy, stop, &|_, _, _| {});
    walk.hands_keys_through(None).await
}

/// One entity's.
struct Verification<'a> {
    config: &'a Config,
    source: &'a Source,
    target: &'a Target,
    entity: &'a Entity,
    options: &'a Options,
    stop: &'a CancellationToken,
    id: ReportId,
    report: EntityReport,
    shown: Vec<Difference>,
    waiting: Vec<Waiting>,
    /// Of the rows that wait, those of which nobody can tell whether they do.
    unknown: u64,
    /// A row that was looked at yields another key than its own.
    moved: bool,
}

impl Verification<'_> {
    /// About how many rows will be read; for the progress only.
    async fn estimate(&self) -> Option<u64> {
        if let Some(rows) = self.options.sample {
            // Of each side so many.
            return Some(u64::from(rows) * 2);
        }
        let rows = self.entity.legacy.as_ref()?;
        self.source.estimate(rows).await.ok().flatten().map(i64::unsigned_abs)
    }

    async fn run(&mut self, progress: &Progress<'_>) -> Result<(), VerifyError> {
        self.refuse_shared_tables()?;
        let Ground { legacy, mut comparison } = Ground::of(self.config, self.source, self.target, self.entity).await?;
        for ignored in &self.entity.verify.ignore {
            self.report.ignored.push(format!("{} ({})", ignored.column, ignored.reason));
        }
        for tolerance in &self.entity.verify.tolerance {
            let (column, within, reason) = (&tolerance.column, tolerance.within(), &tolerance.reason);
            self.report.tolerated.push(format!("{column} within {within} ({reason})"));
        }
        self.refuse_unknown_columns(&comparison)?;
        let columns = self.source.legacy_columns(self.entity).await.map_err(VerifyError::Source)?;
        comparison.take_columns(&columns);
        let by_legacy = by_legacy(self.source, &mut comparison).await?;
        self.report.mapped_by_legacy = by_legacy;
        let hash = self.hash().await?;
        let pass = passing(&self.config.entities);
        let columns = comparison.columns.clone();
        let mut look = Look {
            source: self.source,
            target: self.target,
            legacy: &legacy,
            comparison: &comparison,
            rule: Rule::of(self.entity, &columns),
            pass: &pass,
            batch: self.config.relay.batch,
            stop: self.stop,
            without_events: self.options.without_events || self.entity.verify.without_events,
            through: false,
            stuck_up_to: Mutex::default(),
        };
        let databases = (self.source, self.target);
        let walk = Pass::new(databases, &legacy, &comparison, by_legacy, self.stop, progress);
        let mut walk = Pass { hash, rate: self.options.rate, ..walk };
        let done = if let Some(rows) = self.options.sample {
            self.report.method = "sample".to_owned();
            self.sample(&mut look, rows, &mut walk).await
        } else if walk.ordered_alike() && self.ranges(&mut walk, &mut look).await? {
            Ok(())
        } else {
            self.forget().await?;
            self.report.method = "buckets".to_owned();
            walk.legacy_rows = 0;
            walk.new_rows = 0;
            walk.one_by_one = true;
            self.buckets(&mut walk, &mut look).await
        };
        self.report.legacy_rows = walk.legacy_rows;
        self.report.new_rows = walk.new_rows;
        done?;
        self.without_key(&comparison).await
    }

    /// Rows of the new table whose key is NULL are found in no range, and no legacy row can yield them.
    async fn without_key(&mut self, comparison: &Comparison) -> Result<(), VerifyError> {
        let rows = patiently(self.stop, || self.target.without_key(comparison)).await;
        let rows = rows.map_err(|error| {
            if !is_late(&error) || is_lock_timeout(&error) {
                return VerifyError::Target(error);
            }
            let nulls: Vec<String> =
                self.entity.key.iter().map(|column| format!("{} IS NULL", ident(column))).collect();
            VerifyError::NullsTooSlow { table: comparison.table_name().to_owned(), condition: nulls.join(" OR ") }
        })?;
        if rows > 0 {
            self.report.missing_in_legacy += rows;
            let message = format!(
                "{} of the new table with NULL in the key ({}), which no legacy row yields and repair does not find: delete them, or give \
                 them a key",
                several(rows, "row"),
                self.entity.key.join(", ")
            );
            self.say(&message);
        }
        Ok(())
    }

    /// By which hash both servers can be asked.
    async fn hash(&self) -> Result<Hash, VerifyError> {
        let (legacy, new) = tokio::join!(self.source.hash_probe(), self.target.hash_probe());
        let same = legacy.map_err(VerifyError::Source)? == new.map_err(VerifyError::Target)?;
        Ok(if same { Hash::Own } else { Hash::Md5 })
    }

    /// Whose a row is that two entities write cannot be told.
    fn refuse_shared_tables(&self) -> Result<(), VerifyError> {
        let other = self
            .config
            .entities
            .iter()
            .find(|e| e.name != self.entity.name && e.table.is_some() && e.table == self.entity.table);
        match other {
            Some(other) => Err(VerifyError::NoEntity(format!(
                "entity {} writes the same table: which of its rows should be there because of which entity cannot be told",
                other.name
            ))),
            None => Ok(()),
        }
    }

    fn refuse_unknown_columns(&self, comparison: &Comparison) -> Result<(), VerifyError> {
        let tolerated = self.entity.verify.tolerance.iter().map(|t| &t.column);
        match tolerated.into_iter().find(|column| !comparison.columns.contains(column)) {
            Some(column) => Err(VerifyError::NoEntity(format!(
                "entity.verify.tolerance names the column {column}, which is not compared; these are: {}",
                comparison.columns.join(", ")
            ))),
            None => Ok(()),
        }
    }

    /// False: the mapping does not hand the key through. Only at the end is that known of all rows, so whatever has no legacy row is judged
    /// then.
    async fn ranges(&mut self, walk: &mut Pass<'_>, look: &mut Look<'_>) -> Result<bool, VerifyError> {
        let (mut after, mut size, mut suspects, mut alone) = (None, walk.first_size(), Vec::new(), Vec::new());
        let (mut left, mut through) = (None, false);
        loop {
            let step = match left.take() {
                Some(narrowing) => walk.narrow(narrowing, &mut suspects).await?,
                None => walk.chunk(after.clone(), &mut size, &mut suspects).await?,
            };
            let mut ended = false;
            match step {
                Step::Moved => return Ok(false),
                Step::On(next) => (ended, after) = (next.is_none(), next),
                Step::Part(narrowing) => left = Some(narrowing),
            }
            if suspects.len() >= GATHER || ended {
                look.through = through;
                let (without, with) = look.parted(std::mem::take(&mut suspects)).await?;
                alone.extend(without);
                alone.extend(self.look_again(look, with).await?);
                if self.moved {
                    return Ok(false);
                }
            }
            if ended {
                break;
            }
            if self.is_full() {
                return Ok(true);
            }
            if self.report.differences() + alone.len() as u64 >= KEPT {
                // No more are held: they are judged now, and of the rows that may not be compared any more, this is asked.
                if !through && !walk.hands_keys_through(after.clone()).await? {
                    return Ok(false);
                }
                (through, look.through) = (true, true);
                self.look_again(look, std::mem::take(&mut alone)).await?;
                if self.is_full() {
                    return Ok(true);
                }
            }
        }
        look.through = true;
        self.look_again(look, alone).await?;
        Ok(true)
    }

    /// What was found in ranges is found again in buckets: it is not to be told twice, nor what was false.
    async fn forget(&mut self) -> Result<(), VerifyError> {
        if self.report.differences() > 0 {
            let forgotten = self.target.forget_differences(self.id, &self.entity.name).await;
            forgotten.map_err(VerifyError::Target)?;
        }
        let EntityReport { ignored, tolerated, mapped_by_legacy, .. } =
            std::mem::replace(&mut self.report, EntityReport::new(&self.entity.name));
        (self.report.ignored, self.report.tolerated) = (ignored, tolerated);
        self.report.mapped_by_legacy = mapped_by_legacy;
        (self.shown, self.waiting, self.unknown) = (Vec::new(), Vec::new(), 0);
        Ok(())
    }

    async fn buckets(&mut self, walk: &mut Pass<'_>, look: &mut Look<'_>) -> Result<(), VerifyError> {
        let mut suspects = Vec::new();
        let (groups, identical) = walk.bucket_groups(&mut suspects).await?;
        look.through = identical;
        self.look_again(look, std::mem::take(&mut suspects)).await?;
        let mut groups = groups.iter().peekable();
        while let Some(group) = groups.next() {
            walk.bucket_keys(group, identical, &mut suspects).await?;
            let homeless = self.look_again(look, std::mem::take(&mut suspects)).await?;
            if !homeless.is_empty() {
                let mut judgement = look
                    .fenced(&homeless, |mut keys| async {
                        walk.yielded(group, &mut keys).await?;
                        Ok(keys)
                    })
                    .await?;
                let mut extra = judgement.extra();
                if !extra.is_empty() {
                    walk.yielded(group, &mut extra).await?;
                    judgement.keep_extra(&extra);
                }
                self.note(judgement).await?;
            }
            if groups.peek().is_some() && self.is_full() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Legacy rows chosen at random, and of the new table, too, where the mapping hands keys through.
    async fn sample(&mut self, look: &mut Look<'_>, rows: u32, walk: &mut Pass<'_>) -> Result<(), VerifyError> {
        let froms = self.source.legacy_sample(look.legacy, self.entity, rows).await.map_err(VerifyError::Source)?;
        // These show whether it may, as it may where they show nothing; whether it does is asked of all, before a row is called nobody's.
        let may = look.hands_keys_through(&froms).await? != Some(false);
        let of_legacy = |named: bool| -> Vec<Suspect> {
            froms.iter().map(|from| Suspect { key: named.then(|| from.clone()), from: Some(from.clone()) }).collect()
        };
        self.look_at_sample(look, &of_legacy(may), walk).await?;
        walk.legacy_rows = froms.len() as u64;
        if may {
            let mut others = self.target.sample(look.comparison, rows).await.map_err(VerifyError::Target)?;
            walk.new_rows = others.len() as u64;
            let drawn: std::collections::HashSet<&RowKey> = froms.iter().collect();
            others.retain(|key| !drawn.contains(key));
            if self.look_at_others(look, others, walk).await? {
                return Ok(());
            }
            // What was told of a legacy row that yields another's key is not to be trusted.
            self.forget().await?;
            self.report.method = "sample".to_owned();
            self.look_at_sample(look, &of_legacy(false), walk).await?;
            walk.new_rows = 0;
        }
        self.say("only legacy rows were sampled: which legacy row a row of the new table comes from cannot be told from its key");
        Ok(())
    }

    /// Gives back those that no legacy row of the same key settles.
    async fn look_at_sample(
        &mut self,
        look: &Look<'_>,
        suspects: &[Suspect],
        walk: &mut Pass<'_>,
    ) -> Result<Vec<Suspect>, VerifyError> {
        let mut homeless = Vec::new();
        for some in suspects.chunks(GATHER) {
            if self.is_full() {
                break;
            }
            homeless.extend(self.look_again(look, some.to_vec()).await?);
            walk.pace(some.len() as u64).await?;
        }
        Ok(homeless)
    }

    /// Rows of the new table. False: there are legacy rows that yield another's key, so that nothing can be told of these.
    async fn look_at_others(
        &mut self,
        look: &mut Look<'_>,
        keys: Vec<RowKey>,
        walk: &mut Pass<'_>,
    ) -> Result<bool, VerifyError> {
        let suspects = keys.into_iter().map(|key| Suspect { from: Some(key.clone()), key: Some(key) }).collect();
        let (mut alone, with) = look.parted(suspects).await?;
        alone.extend(self.look_at_sample(look, &with, walk).await?);
        if self.moved || alone.is_empty() {
            return Ok(!self.moved);
        }
        // An event that is on its way to take a row away is waited for first.
        let mut left = &alone[..];
        loop {
            let Some(some) = left.chunks(GATHER).next() else { return Ok(true) };
            let judgement = look.nobodys(some).await?;
            if !(judgement.differences.is_empty() && judgement.waiting.is_empty()) {
                break;
            }
            left = &left[some.len()..];
        }
        walk.read_again();
        if !look.comparison.keeps_key() && !walk.hands_keys_through(None).await? {
            return Ok(false);
        }
        look.through = true;
        self.look_at_sample(look, left, walk).await?;
        Ok(true)
    }

    /// Whether so much differs that there is no use in reading on; then it is told that there is more.
    fn is_full(&mut self) -> bool {
        let full = self.report.differences() >= KEPT;
        if full {
            self.is_cut_off();
        }
        full
    }

    fn is_cut_off(&mut self) {
        self.report.complete = false;
        self.report.message = Some(format!(
            "{KEPT} differences or more: not read further. Was the first copy made? (outbox-relay backfill)"
        ));
    }

    /// Says of how many rows nobody knows whether they differ, and what to do.
    fn tell_unknown(&mut self) {
        if self.unknown == 0 {
            return;
        }
        let told = format!(
            "{} could not be judged, for it cannot be told which events are theirs: let the relay catch up, replay or skip what has failed \
             (outbox-relay failures), then verify again",
            several(self.unknown, "row")
        );
        self.say(&told);
        self.report.complete = false;
    }

    /// Besides what was said before; no value stands in it, so that the log may have it, too.
    fn say(&mut self, told: &str) {
        for said in [&mut self.report.message, &mut self.report.logged] {
            *said = Some(said.take().map_or(told.to_owned(), |before| format!("{before}; {told}")));
        }
    }

    /// Looks at suspects again, without a lock and then under it. Gives back those whose lane is not known and that a lookup by key
    /// cannot settle.
    async fn look_again(&mut self, look: &Look<'_>, suspects: Vec<Suspect>) -> Result<Vec<Suspect>, VerifyError> {
        if suspects.is_empty() {
            return Ok(Vec::new());
        }
        self.report.looked_again += suspects.len() as u64;
        let mut homeless = Vec::new();
        if look.without_events {
            for some in suspects.chunks(GATHER) {
                let (judgement, alone, moved) = look.twice(some).await?;
                self.moved |= moved;
                homeless.extend(alone);
                self.note(judgement).await?;
            }
            return Ok(homeless);
        }
        let mut left = Vec::new();
        for some in suspects.chunks(GATHER) {
            let (unequal, left_over, moved) = look.unlocked(some).await?;
            self.moved |= moved;
            // Of those that are equal: what is looked at under the lock counts there.
            self.report.left_over += left_over;
            left.extend(unequal);
        }
        self.report.looked_under_lock += left.len() as u64;
        // A row's aggregate may change lanes between a look and the lock, and a hot row has an event on its way most of the time; but not
        // for ever.
        for n in 1..=ATTEMPTS {
            if left.is_empty() {
                break;
            }
            let homes = look.by_lane(&left).await?;
            homeless.extend(homes.homeless);
            let (judgement, owned) = look.unowned(&homes.unowned).await?;
            self.note(judgement).await?;
            left = owned;
            for (lane, suspects) in homes.by_lane {
                let (mut judgement, elsewhere) = look.locked(lane, &suspects).await?;
                left.extend(elsewhere);
                homeless.extend(judgement.take_anothers());
                if n < ATTEMPTS {
                    left.extend(judgement.on_their_way(&suspects));
                }
                self.note(judgement).await?;
            }
            if !left.is_empty() {
                tokio::select! {
                    () = tokio::time::sleep(BETWEEN) => {}
                    () = self.stop.cancelled() => return Err(VerifyError::Stopped),
                }
            }
        }
        let homes = look.by_lane(&left).await?;
        homeless.extend(homes.homeless);
        let moving = homes.by_lane.into_values().flatten().chain(homes.unowned);
        self.note(look.never_at_home(moving)).await?;
        if look.through && !homeless.is_empty() {
            let judgement = look.nobodys(&homeless).await?;
            self.note(judgement).await?;
            return Ok(Vec::new());
        }
        Ok(homeless)
    }

    /// Keeps what was found, on the target and here.
    async fn note(&mut self, judgement: Judgement) -> Result<(), VerifyError> {
        self.report.left_over += judgement.left_over;
        self.report.waiting += judgement.waiting.len() as u64;
        self.report.stuck += judgement.waiting.iter().filter(|row| row.is_stuck()).count() as u64;
        self.unknown += judgement.waiting.iter().filter(|row| row.is_unknown()).count() as u64;
        let name = &self.entity.name;
        let room = report::SHOWN.saturating_sub(self.waiting.len());
        let waiting = judgement.waiting.into_iter().take(room);
        self.waiting.extend(waiting.map(|w| Waiting { entity: name.clone(), ..w }));
        let sight = self.config.redact.for_admins();
        let mut differences: Vec<Difference> = judgement
            .differences
            .into_iter()
            .map(|d| Difference { entity: name.clone(), ..d }.shown_to(&sight, Some(self.entity)))
            .collect();
        differences.sort_by(|a, b| a.key.cmp(&b.key));
        differences.dedup_by(|a, b| a.key == b.key && a.kind == b.kind);
        for difference in &differences {
            self.report.count(difference.kind);
        }
        self.target.keep_differences(self.id, &differences).await.map_err(VerifyError::Target)?;
        let room = report::SHOWN.saturating_sub(self.shown.len());
        self.shown.extend(differences.into_iter().take(room));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_says_what_to_do() {
        for (error, remedy) in [
            (VerifyError::Busy(Lane(3)), "then run it again"),
            (VerifyError::Unreadable("x".into()), "[entity.verify] ignore"),
            (
                VerifyError::NullsTooSlow { table: "\"t\"".into(), condition: "\"a\" IS NULL".into() },
                "CREATE INDEX CONCURRENTLY ON \"t\" ((1)) WHERE \"a\" IS NULL",
            ),
        ] {
            assert!(error.to_string().contains(remedy), "{error}");
        }
    }
}
