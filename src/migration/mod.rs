//! The migration around the relay, as operators see it: how far each entity's capture, first copy, verification and repair have
//! come, and what is under way, whoever does it. The admin API, the page and the command line stand on this.
//!
//! Guarantees: what is told of rows is what the one who asks may see ([`crate::redact`]); it is read from both databases, and so the
//! same from every instance. A legacy database that is away leaves only the state of capture unknown.

mod jobs;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use utoipa::ToSchema;

pub use self::jobs::{Jobs, Rows, Started, Work};
use crate::backfill::{self, BackfillError};
use crate::capture;
use crate::config::{Config, Entity, RowsFrom};
use crate::init::Side;
use crate::job::Who;
use crate::plan::{self, Plan, PlanError};
use crate::redact::{HIDDEN, Quoting, Sight};
use crate::relay::Shared;
pub use crate::repair::Apply;
use crate::repair::{Action, Repaired};
use crate::source::Source;
use crate::target::{Copied, History, Job, JobId, RepairedLast, RepairedRow, ReportId, Target, Verified, Which};
use crate::verify::{Difference, EntityReport, Outcome, Report, STOPPED, VerifyError, Waiting};

/// Why something was not started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// Nobody is called so.
    #[error("no entity of the configuration is called {0:?}")]
    NoEntity(String),
    /// It does not say of which legacy rows it is made.
    #[error("entity {0} does not say of which legacy rows it is made (legacy = {{ table = …, key = … }})")]
    NoLegacy(String),
    /// There is no such report.
    #[error("there is no report {0}")]
    NoReport(i64),
    /// There is no such job.
    #[error("there is no job {0}")]
    NoJob(i64),
    /// A copy that was not begun cannot rest.
    #[error("the copy of {0} was not begun yet")]
    NotBegun(String),
    /// A key has another number of parts than the legacy table's.
    #[error("the legacy key of {entity} has {parts} parts: give each key as an array of as many texts")]
    Keys {
        /// Whose.
        entity: String,
        /// How many.
        parts: usize,
    },
    /// Other work is under way for the same entities.
    #[error("{}", other_work(.0))]
    OtherWork(Box<Job>),
    /// This process does enough already.
    #[error("{0} pieces of work are under way in this process: wait for one, or ask another instance")]
    TooMany(usize),
    /// A copy.
    #[error(transparent)]
    Backfill(#[from] BackfillError),
    /// A verification or a repair.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The legacy database was away, or said no.
    #[error("the legacy database: {}", crate::disposition::told(.0))]
    Source(#[source] sqlx::Error),
    /// The new database was away, or said no.
    #[error("the new database: {}", crate::disposition::told(.0))]
    Target(#[source] sqlx::Error),
}

impl From<PlanError> for MigrationError {
    fn from(PlanError { side, error }: PlanError) -> MigrationError {
        match side {
            Side::Legacy => MigrationError::Source(error),
            Side::New => MigrationError::Target(error),
        }
    }
}

fn other_work(job: &Job) -> String {
    let Job { id, kind, actor, .. } = job;
    let entities = job.entities.join(", ");
    let is = format!("job {id} is under way, {kind} of {entities} for {actor}");
    if job.stop_asked {
        return format!("{is}, and was asked to end: ask again when it has, which GET /v1/jobs/{id} tells");
    }
    let rests = job.progress.as_ref().and_then(|progress| progress.waits_for.as_ref());
    let go_on = match (&job.progress, rests.is_some_and(|why| why.starts_with(backfill::PAUSED))) {
        (Some(progress), true) => format!(", which rests: POST /v1/backfill/{}/resume", progress.entity),
        _ => String::new(),
    };
    format!("{is}, and not what is asked for: wait until it has ended{go_on}, or end it: POST /v1/jobs/{id}/stop")
}

/// All of it, now.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Migration {
    /// When this was read.
    pub as_of: DateTime<Utc>,
    /// Each entity that says of which legacy rows it is made, in the order of the configuration.
    pub entities: Vec<EntityState>,
    /// Copies, verifications and repairs that have not ended, newest first; also those whose process is gone.
    pub jobs: Vec<Job>,
    /// `[verify] every`, in seconds; none: verification does not go on by itself.
    pub verify_every_seconds: Option<f64>,
}

/// How far one entity has come.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EntityState {
    /// Its name.
    pub entity: String,
    /// Of which events it is made.
    pub aggregate_type: String,
    /// Its table in the new database.
    pub table: Option<String>,
    /// The legacy table of which it is made; none: a query.
    pub legacy_table: Option<String>,
    /// Whether triggers write its events.
    pub capture: Capture,
    /// Its first copy; none: not begun.
    pub copy: Option<Copy>,
    /// What the last verification of all its rows found; none: not verified yet.
    pub verified: Option<Verified>,
    /// What a later sample of its rows found: of all others it says nothing. None: there was no sample since.
    pub sampled: Option<Verified>,
    /// What was last repaired of it; none: nothing.
    pub repaired: Option<RepairedLast>,
}

/// Whether triggers write an entity's events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Capture {
    /// `installed`, `outdated`, `disabled`, `absent` (which is right where the application writes its events itself); `impossible` of a
    /// query; `unknown` while the legacy database is away.
    pub state: &'static str,
    /// Why it is not known.
    pub message: Option<String>,
}

/// How far a first copy has come.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Copy {
    /// What is known of it.
    #[serde(flatten)]
    pub copied: Copied,
    /// Rows to come, about; none: not known.
    pub remaining: Option<i64>,
    /// Seconds to its end at the rate that it has; none: not known, or it does not run.
    pub eta_seconds: Option<f64>,
    /// What it waits for.
    pub waits_for: Option<String>,
}

/// A report, and a page of what it found.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReportPage {
    /// Its number.
    pub id: i64,
    /// By the target's clock.
    pub started_at: DateTime<Utc>,
    /// None: it is under way, or was killed.
    pub finished_at: Option<DateTime<Utc>>,
    /// `command`, `api` or `run`.
    pub by: String,
    /// `full`, or `sample` and how many rows.
    pub mode: String,
    /// `equal`, `differs` or `could_not`; none: not finished.
    pub outcome: Option<String>,
    /// Each entity; empty until it is finished.
    pub entities: Vec<EntityReport>,
    /// Rows that waited for an event, the first of them.
    pub waiting: Vec<Waiting>,
    /// What differs, a page of it.
    pub differences: Vec<Difference>,
    /// For the next page of differences.
    pub next_cursor: Option<String>,
}

/// A page of a list that goes from the newest to the oldest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Page {
    /// The last one of the page before; none: the first page.
    pub cursor: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

/// Reads all of it.
pub async fn state(shared: &Shared, sight: &Sight) -> sqlx::Result<Migration> {
    let entities = shared.entities();
    let having: Vec<&Entity> = entities.iter().filter(|entity| entity.legacy.is_some()).collect();
    let names: Vec<String> = having.iter().map(|entity| entity.name.clone()).collect();
    let target = &shared.target;
    let jobs = jobs_seen(target.open_jobs().await?, &entities, sight);
    let copies = target.copies().await?;
    let verified = verified_seen(target.verified_last(&names, Which::Full).await?, &entities, sight);
    let sampled = verified_seen(target.verified_last(&names, Which::Sample).await?, &entities, sight);
    let repaired = target.repaired_last(&names).await?;
    let mut states = Vec::with_capacity(having.len());
    for entity in having {
        let copied = copies.iter().find(|copy| copy.entity == entity.name).cloned();
        let whole = verified.iter().find(|of| of.found.entity == entity.name);
        let is_later = |sample: &Verified| whole.is_none_or(|whole| sample.report > whole.report);
        states.push(EntityState {
            capture: captured(&shared.config, entity, &shared.source).await,
            copy: copied.map(|copied| copy(copied, &jobs)),
            sampled: sampled.iter().find(|of| of.found.entity == entity.name && is_later(of)).cloned(),
            verified: whole.cloned(),
            repaired: repaired.iter().find(|of| of.entity == entity.name).cloned(),
            entity: entity.name.clone(),
            aggregate_type: entity.aggregate_type.clone(),
            table: entity.table.as_ref().map(ToString::to_string),
            legacy_table: entity.legacy.as_ref().and_then(|rows| match &rows.from {
                RowsFrom::Table(table) => Some(table.to_string()),
                RowsFrom::Query(_) => None,
            }),
        });
    }
    let every = shared.config.verify.every;
    let verify_every_seconds = (!every.is_zero()).then_some(every.as_secs_f64());
    Ok(Migration { as_of: Utc::now(), entities: states, jobs, verify_every_seconds })
}

/// What the split does to foreign keys, with the entities as they are now.
pub async fn plan(shared: &Shared) -> Result<Plan, MigrationError> {
    Ok(plan::plan(&shared.entities(), &shared.source.pool, &shared.target.pool).await?)
}

async fn captured(config: &Config, entity: &Entity, source: &Source) -> Capture {
    if !matches!(&entity.legacy, Some(rows) if matches!(rows.from, RowsFrom::Table(_))) {
        return Capture { state: "impossible", message: None };
    }
    match capture::status(config, entity, source).await {
        Ok(status) => Capture { state: status.state.as_str(), message: None },
        Err(error) => Capture { state: "unknown", message: Some(error.to_string()) },
    }
}

fn copy(copied: Copied, jobs: &[Job]) -> Copy {
    let mut copied = copied;
    // While it runs, whoever copies knows better than the pages that are done.
    let runs = copied.state == "running";
    let said = jobs.iter().filter(|job| job.kind == "backfill" && job.is_running());
    let said = said.filter_map(|job| job.progress.as_ref()).find(|progress| progress.entity == copied.entity);
    if let Some(progress) = said.filter(|_| runs) {
        copied.rate = Some(progress.rate);
    }
    let remaining = copied.estimate.filter(|_| copied.ended_at.is_none()).map(|all| (all - copied.rows).max(0));
    let eta_seconds = match (remaining, copied.rate) {
        (Some(rows), Some(rate)) if runs && rate > 0.1 => Some(rows as f64 / rate),
        _ => None,
    };
    Copy { remaining, eta_seconds, waits_for: said.and_then(|progress| progress.waits_for.clone()), copied }
}

/// Verifications, newest first, and whether there are more.
pub async fn reports(target: &Target, page: Page) -> sqlx::Result<(Vec<History>, Option<String>)> {
    let found = target.reports(page.cursor.map(ReportId), page.limit + 1).await?;
    Ok(cut(found, page, |report| report.id))
}

/// One verification, with a page of what it found; its cursor goes forward. None: there is no such report.
pub async fn report(
    target: &Target,
    entities: &[Entity],
    id: ReportId,
    page: Page,
    sight: &Sight,
) -> sqlx::Result<Option<ReportPage>> {
    let Some(kept) = target.report(id).await? else { return Ok(None) };
    let found = target.report_page(id, page.cursor, page.limit + 1).await?;
    let (found, next_cursor) = cut(found, page, |(n, _)| *n);
    let (entities_found, waiting) = kept.report.map_or_else(Default::default, |of| (of.entities, of.waiting));
    Ok(Some(ReportPage {
        id: kept.id,
        started_at: kept.started_at,
        finished_at: kept.finished_at,
        by: kept.by,
        mode: kept.mode,
        outcome: kept.outcome,
        entities: entities_found.into_iter().map(|of| entity_seen(of, entities, sight)).collect(),
        waiting,
        differences: found.into_iter().map(|(_, found)| difference_seen(found, entities, sight)).collect(),
        next_cursor,
    }))
}

/// A whole report, as it may be shown now: what was kept may be from before anything was to be hidden.
pub fn report_seen(report: Report, entities: &[Entity], sight: &Sight) -> Report {
    Report {
        entities: report.entities.into_iter().map(|of| entity_seen(of, entities, sight)).collect(),
        differences: report.differences.into_iter().map(|of| difference_seen(of, entities, sight)).collect(),
        ..report
    }
}

/// Rows that were repaired, newest first.
pub async fn repairs(
    target: &Target,
    entities: &[Entity],
    entity: Option<&str>,
    page: Page,
    sight: &Sight,
) -> sqlx::Result<(Vec<RepairedRow>, Option<String>)> {
    let mut found = target.repairs(page.cursor, page.limit + 1, entity).await?;
    for row in &mut found {
        let table = named(entities, &row.entity).and_then(|known| known.table.as_ref());
        let seen = |text: Box<RawValue>| match table {
            Some(table) => raw(sight.row(&table.schema, &table.table, text.get()).into_owned()),
            // Of an entity that is gone nobody knows what is to be hidden.
            None => raw(format!("\"{HIDDEN}\"")),
        };
        row.before = row.before.take().map(seen);
        row.after = row.after.take().map(seen);
    }
    Ok(cut(found, page, |row| row.id))
}

/// Jobs, newest first.
pub async fn jobs(shared: &Shared, page: Page, sight: &Sight) -> sqlx::Result<(Vec<Job>, Option<String>)> {
    let found = shared.target.jobs(page.cursor.map(JobId), page.limit + 1).await?;
    let found = jobs_seen(found, &shared.entities(), sight);
    Ok(cut(found, page, |job| job.id))
}

/// One job.
pub async fn job(shared: &Shared, id: JobId, sight: &Sight) -> sqlx::Result<Option<Job>> {
    Ok(shared.target.job(id).await?.map(|job| job_seen(job, &shared.entities(), sight)))
}

/// Lets the copy of an entity rest, whoever makes it, or go on. Whether that changed anything, and how far the copy is.
pub async fn pause_copy(
    shared: &Shared,
    entity: &str,
    rest: bool,
    who: &Who,
) -> Result<(bool, Copied), MigrationError> {
    if !shared.entities().iter().any(|known| known.name == entity) {
        return Err(MigrationError::NoEntity(entity.to_owned()));
    }
    let names = [entity.to_owned()];
    let changed = backfill::pause(&shared.source, &shared.target, &names, rest, who).await?;
    let copies = shared.target.copies().await.map_err(MigrationError::Target)?;
    let copied = copies.into_iter().find(|copy| copy.entity == entity);
    let copied = copied.ok_or_else(|| MigrationError::NotBegun(entity.to_owned()))?;
    Ok((!changed.is_empty(), copied))
}

/// Asks for the end of a job, whoever does it. Whether that changed anything, and the job.
pub async fn stop_job(shared: &Shared, id: JobId, who: &Who, sight: &Sight) -> Result<(bool, Job), MigrationError> {
    let found = job(shared, id, sight).await.map_err(MigrationError::Target)?;
    let found = found.ok_or(MigrationError::NoJob(id.0))?;
    if found.ended_at.is_some() || found.stop_asked {
        return Ok((false, found));
    }
    let subject = serde_json::json!({ "job": id.0, "kind": found.kind, "entities": found.entities });
    shared.source.audit(who, "stop", &subject).await.map_err(MigrationError::Source)?;
    let changed = shared.target.stop_job(id).await.map_err(MigrationError::Target)?;
    let now = job(shared, id, sight).await.map_err(MigrationError::Target)?;
    Ok((changed, now.unwrap_or(found)))
}

/// The page, and where the next one begins, if there is one.
fn cut<T>(mut found: Vec<T>, page: Page, id: impl Fn(&T) -> i64) -> (Vec<T>, Option<String>) {
    let more = found.len() > page.limit as usize;
    found.truncate(page.limit as usize);
    let next = found.last().filter(|_| more).map(|last| id(last).to_string());
    (found, next)
}

fn named<'e>(entities: &'e [Entity], name: &str) -> Option<&'e Entity> {
    entities.iter().find(|entity| entity.name == name)
}

fn verified_seen(found: Vec<Verified>, entities: &[Entity], sight: &Sight) -> Vec<Verified> {
    found.into_iter().map(|of| Verified { found: entity_seen(of.found, entities, sight), ..of }).collect()
}

fn difference_seen(of: Difference, entities: &[Entity], sight: &Sight) -> Difference {
    let entity = named(entities, &of.entity);
    of.shown_to(sight, entity)
}

/// Why an entity could not be compared is told in a server's words, which may quote a row.
fn entity_seen(mut of: EntityReport, entities: &[Entity], sight: &Sight) -> EntityReport {
    let hides = sight.quoting(entities, std::slice::from_ref(&of.entity)) == Quoting::NoValues;
    let limited = hides || named(entities, &of.entity).is_none();
    if limited && of.outcome == Outcome::CouldNot && of.message.as_deref() != Some(STOPPED) {
        of.message = of.message.map(|_| HIDDEN.to_owned());
    }
    of
}

fn jobs_seen(jobs: Vec<Job>, entities: &[Entity], sight: &Sight) -> Vec<Job> {
    jobs.into_iter().map(|job| job_seen(job, entities, sight)).collect()
}

/// What a repair says of each row has values in it, and what a server says of a failure may have.
fn job_seen(mut job: Job, entities: &[Entity], sight: &Sight) -> Job {
    let quoting = sight.quoting(entities, &job.entities);
    job.message = job.message.map(|message| reason_seen(quoting, job.code.as_deref(), message));
    let tells_rows = matches!(job.kind.as_str(), "repair" | "resync");
    if let Some(result) = job.result.as_ref().filter(|_| tells_rows && sight.is_limited_anywhere()) {
        let repaired = serde_json::from_str::<Repaired>(result.get());
        job.result = repaired.ok().and_then(|repaired| to_raw_value(&repaired_seen(repaired, entities, sight)).ok());
    }
    job
}

/// Why a job failed; to whom its words may not be shown, what to do. What is kept may be from before anything was to be hidden.
fn reason_seen(quoting: Quoting, code: Option<&str>, message: String) -> String {
    let code = code.unwrap_or("failed");
    let instead = || match code {
        "too_many_refused" => format!(
            "{HIDDEN}: more rows were refused than backfill.max_refused allows, and why may quote them. `outbox-relay backfill --status` says \
             more; mend the rows, the mapping or the table, and begin it again"
        ),
        "legacy.key_repeated" => {
            format!(
                "{HIDDEN}: several legacy rows have the same key. `outbox-relay check` says more; give the entity another key"
            )
        }
        "failed" => {
            format!(
                "{HIDDEN}: why it could not go on may quote a row. `outbox-relay check` finds what is wrong with tables, mappings and rights"
            )
        }
        code => format!(
            "{HIDDEN} ({code}): a row or a value was refused, in words that may quote it. Mend the row, the mapping or the table, and begin it \
             again"
        ),
    };
    quoting.reason(code, message).unwrap_or_else(instead)
}

/// What is told of a row has its values in it, and was kept as they might be shown then: perhaps before any was to be hidden.
fn repaired_seen(mut repaired: Repaired, entities: &[Entity], sight: &Sight) -> Repaired {
    for change in &mut repaired.changes {
        let quoting = sight.quoting(entities, std::slice::from_ref(&change.entity));
        let table = named(entities, &change.entity).and_then(|known| known.table.as_ref());
        let hides_columns = table.is_none_or(|table| sight.hides_any_of(&table.schema, &table.table));
        let hides = match change.action {
            Action::Write => hides_columns,
            Action::Refused => quoting == Quoting::NoValues,
            Action::Delete | Action::Waits => false,
        };
        if hides {
            change.message = change.message.take().map(|said| change_seen(quoting, said));
        }
    }
    repaired
}

/// Without values: that a row is missing, or the SQLSTATE and words by which it was refused.
fn change_seen(quoting: Quoting, said: String) -> String {
    if said.starts_with("is missing in ") {
        return said;
    }
    let refused = said.strip_prefix("is refused: ").and_then(|said| said.split_once(' '));
    let shown = refused.and_then(|(code, words)| Some((code, quoting.reason(code, words.to_owned())?)));
    shown.map_or_else(|| HIDDEN.to_owned(), |(code, words)| format!("is refused: {code} {words}"))
}

fn raw(text: String) -> Box<RawValue> {
    RawValue::from_string(text).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_job_failed_is_told_where_nothing_of_a_row_can_be_in_it_and_else_what_to_do() {
        for (code, said, seen) in [
            (Some("42P01"), "new: relation \"users\" does not exist (42P01)", None),
            (Some("08006"), "legacy: connection refused", None),
            (Some("begun_anew"), "the copy of users was begun anew", None),
            (Some("legacy.key"), "entity users: no unique index", None),
            (Some("rows_left"), "users: rows were left out", None),
            (
                Some("22P02"),
                "legacy: invalid input syntax for type integer: \"ada\" (22P02)",
                Some("legacy: invalid input syntax for type integer: \"…\" (22P02)"),
            ),
            (
                Some("22P02"),
                "entity users (mappings/user.sql): invalid input syntax for type date: \"ada\" (22P02): mend it",
                Some("entity users (mappings/user.sql): invalid input syntax for type date: \"…\" (22P02): mend it"),
            ),
            (Some("23502"), "new: null value in column \"name\" (23502)", None),
            (
                Some("legacy.key_repeated"),
                "two rows have the same key, mail = a@b.c",
                Some("give the entity another key"),
            ),
            (Some("too_many_refused"), "such as: no place for ada", Some("backfill --status")),
            (Some("22023"), "legacy: ada: no place (22023)", Some("(22023): a row or a value was refused")),
            (Some("23514"), "new: ada is no address (23514)", Some("(23514): a row or a value was refused")),
            (Some("P0001"), "new: no place for ada (P0001)", Some("(P0001): a row or a value was refused")),
            (Some("failed"), "a row cannot be read: ada", Some("outbox-relay check")),
            (None, "ada", Some("outbox-relay check")),
        ] {
            let told = reason_seen(Quoting::NoValues, code, said.to_owned());
            assert!(told.contains(seen.unwrap_or(said)) && !told.contains("ada"), "{code:?}: {told}");
            assert_eq!(reason_seen(Quoting::Values, code, said.to_owned()), said);
        }
    }

    #[test]
    fn of_a_row_that_was_changed_only_what_holds_no_value_is_told() {
        let check = "is refused: 23514 new row for relation \"users\" violates check constraint \"c\"";
        for (said, seen) in [
            ("is missing in new", "is missing in new"),
            ("differs: name: legacy \"ada\", new \"bob\"", HIDDEN),
            (check, check),
            ("is refused: P0001 no place for ada", HIDDEN),
            (
                "is refused: 22P02 invalid input syntax for type integer: \"ada\"",
                "is refused: 22P02 invalid input syntax for type integer: \"…\"",
            ),
        ] {
            assert_eq!(change_seen(Quoting::NoValues, said.to_owned()), seen);
        }
    }

    #[test]
    fn a_page_ends_where_the_next_one_begins() {
        let page = |limit| Page { cursor: None, limit };
        assert_eq!(cut(vec![9, 8, 7], page(2), |n| *n), (vec![9, 8], Some("8".to_owned())));
        assert_eq!(cut(vec![9, 8], page(2), |n| *n), (vec![9, 8], None));
        assert_eq!(cut(Vec::<i64>::new(), page(2), |n| *n), (vec![], None));
    }
}
