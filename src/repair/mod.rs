//! `repair` and `resync`: writes rows of the new database anew from the legacy ones, and deletes what these do not have.
//!
//! Guarantees: each row is read, judged and changed while both sides of its lane are locked, and only if no event of its aggregate is
//! open; so nothing that an event is about to bring is overwritten with older state. What is changed is kept with what stood before, in
//! the transaction of the change. Without `apply` nothing is changed, and the same look says what would be.
//! Does not guarantee that a row stays right: what made it wrong may do so again.

mod lane;
mod reported;
mod wanted;

use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::reported::Reports;
pub use self::wanted::{Since, Wanted, odd_key};
use crate::config::{Config, Entity};
use crate::job::{self, Ending, Order, Via, Who, Working};
use crate::source::{RowKey, Source};
use crate::target::{Progress, ReportId, Target};
use crate::verify::{Ground, Look, Rule, Suspect, VerifyError, hands_all_keys_through};
use crate::words::{per_second, several};

/// Who wants it, and why.
#[derive(Debug, Clone)]
pub struct By {
    /// A shell's user, a token's name.
    pub actor: String,
    /// Kept with every changed row.
    pub reason: String,
    /// [`job::Kind::Repair`] or [`job::Kind::Resync`].
    pub command: job::Kind,
    /// How they asked.
    pub via: Via,
}

/// What is done to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is made what the legacy row yields.
    Write,
    /// No legacy row yields it: it is deleted.
    Delete,
    /// An event of its aggregate is open: left alone.
    Waits,
    /// The new database does not take what the legacy row yields: left alone.
    Refused,
}

/// One row of the plan, or of what was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The entity's name.
    pub entity: String,
    /// What is done.
    pub action: Action,
    /// The row's key in the new table; where that is not known, the legacy row's.
    pub key: Vec<Option<String>>,
    /// Why, where nothing is done; else what differs.
    pub message: Option<String>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Repaired {
    /// Whether anything was to be changed, or only shown.
    pub applied: bool,
    /// Rows written.
    pub written: u64,
    /// Rows deleted.
    pub deleted: u64,
    /// Rows that are right already.
    pub right: u64,
    /// Rows left alone.
    pub left: u64,
    /// Divergent events that are settled by it.
    pub divergent_cleared: u64,
    /// Each row, the first of them.
    pub changes: Vec<Change>,
    /// What it stands on does not know all that may be wrong: a verification that did not read everything, or none of an entity; aggregates
    /// of which nobody can tell what stands. What is wrong beyond that is wrong still.
    #[serde(default)]
    pub verify_again: bool,
    /// What else is to be known.
    pub notes: Vec<String>,
}

/// Changes that are shown.
pub const SHOWN: usize = 1000;

impl Repaired {
    /// Whether any row was, or would be, changed.
    pub fn changes_any(&self) -> bool {
        self.written + self.deleted > 0
    }

    /// Rows that were looked at.
    fn seen(&self) -> u64 {
        self.written + self.deleted + self.right + self.left
    }

    fn add(&mut self, change: Change) {
        match change.action {
            Action::Write => self.written += 1,
            Action::Delete => self.deleted += 1,
            Action::Waits | Action::Refused => self.left += 1,
        }
        if self.changes.len() < SHOWN {
            self.changes.push(change);
        }
    }
}

/// What `repair` and `resync` have in common.
pub struct Repair<'a> {
    /// As loaded.
    pub config: &'a Config,
    /// The outbox's database.
    pub source: &'a Source,
    /// The new one.
    pub target: &'a Target,
    /// Who, and why.
    pub by: &'a By,
    /// Whether to act.
    pub apply: bool,
    /// Acts only if so many rows would be changed; of a command, which has shown them: if no more.
    pub expected: Option<u64>,
    /// Ends it between two lanes.
    pub stop: &'a CancellationToken,
    /// The job that this is, if it is begun already.
    pub job: Option<Working>,
}

/// Which rows are to be made right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task<'a> {
    /// Those that a report found: of each entity the last full one that was finished, if none is named; of one entity, or of all.
    Reported(Option<ReportId>, Option<&'a Entity>),
    /// The same, of reports that were chosen already.
    Chosen(Reports<'a>),
    /// These rows of an entity, whether or not they differ.
    Resync(&'a Entity, Wanted),
}

impl<'a> Task<'a> {
    /// With its reports chosen, if it is about any: what is shown and what is done are then of the same ones.
    pub async fn chosen(&self, config: &'a Config, target: &Target) -> Result<Task<'a>, VerifyError> {
        match self {
            Task::Reported(named, only) => Reports::choose(config, target, *named, *only).await.map(Task::Chosen),
            Task::Chosen(_) | Task::Resync(..) => Ok(self.clone()),
        }
    }

    /// Whether there may be something to do although no row is to be changed.
    pub fn settles(&self) -> bool {
        matches!(self, Task::Resync(_, Wanted::Divergent))
    }

    /// The names of those that it is about.
    pub fn entities(&self, config: &Config) -> Vec<String> {
        match self {
            Task::Reported(_, Some(entity))
            | Task::Chosen(Reports { only: Some(entity), .. })
            | Task::Resync(entity, _) => vec![entity.name.clone()],
            Task::Reported(_, None) | Task::Chosen(Reports { only: None, .. }) => {
                config.entities.iter().filter(|e| e.legacy.is_some()).map(|e| e.name.clone()).collect()
            }
        }
    }

    /// As it is kept with the job, and in the audit.
    fn words(&self) -> serde_json::Value {
        match self {
            Task::Reported(report, entity) | Task::Chosen(Reports { named: report, only: entity, .. }) => {
                json!({ "report": report.map(|id| id.0), "entity": entity.map(|entity| &entity.name) })
            }
            Task::Resync(entity, Wanted::Keys(keys)) => {
                // Not all of them are kept: which they were, in whatever order, the digest tells.
                let mut keys: Vec<&RowKey> = keys.iter().collect();
                keys.sort();
                let first: Vec<_> = keys.iter().take(100).map(|key| &key.0).collect();
                json!({ "entity": entity.name, "keys": first, "rows": keys.len(), "keys_sha256": digest(&keys) })
            }
            Task::Resync(entity, Wanted::Since(Since { since, until })) => {
                json!({ "entity": entity.name, "since": since, "until": until })
            }
            Task::Resync(entity, Wanted::Divergent) => json!({ "entity": entity.name, "divergent": true }),
        }
    }
}

/// Of all keys, in their order.
fn digest(keys: &[&RowKey]) -> String {
    let text = json!(keys.iter().map(|key| &key.0).collect::<Vec<_>>()).to_string();
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether to act, and on how many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Apply {
    /// Else it is only told what would be done.
    pub apply: bool,
    /// As [`Repair::expected`].
    pub expected: Option<u64>,
}

/// The job that a repair is.
pub fn order(config: &Config, task: &Task<'_>, by: &By, how: Apply) -> Order {
    let mut request = task.words();
    request["dry_run"] = json!(!how.apply);
    request["expected"] = json!(how.expected);
    let who = Who { actor: by.actor.clone(), reason: by.reason.clone(), via: by.via };
    Order { kind: by.command, entities: task.entities(config), request, who }
}

impl Repair<'_> {
    /// Does it, or tells what would be done.
    pub async fn run(&self, task: &Task<'_>) -> Result<Repaired, VerifyError> {
        // A command expects what it has shown, and so does the same as one that asks for no number.
        let expected = self.expected.filter(|_| self.by.via != Via::Command);
        let order = order(self.config, task, self.by, Apply { apply: self.apply, expected });
        let job = match &self.job {
            Some(job) => job.clone(),
            None => Working::begin(self.target, &order, self.stop).await.map_err(VerifyError::Target)?,
        };
        let own = Repair { stop: job.stop(), job: Some(job.clone()), ..*self };
        let done = job.during(Box::pin(own.audited(task, &order))).await;
        let ending = match &done {
            Ok(repaired) => Ending::Done(serde_json::to_value(repaired).unwrap_or_default()),
            Err(VerifyError::Stopped) => Ending::Stopped(None),
            // What else went wrong then need not have.
            Err(_) if own.stop.is_cancelled() => Ending::Stopped(None),
            Err(error) => error.ending(self.config.quoting(&order.entities)),
        };
        job.end(&ending).await;
        done
    }

    async fn audited(&self, task: &Task<'_>, order: &Order) -> Result<Repaired, VerifyError> {
        // Once, for what is counted and for what is done.
        let task = &task.chosen(self.config, self.target).await?;
        if !self.apply {
            return self.task(task).await;
        }
        if let Some(expected) = self.expected {
            let planned = Repair { apply: false, job: self.job.clone(), ..*self }.task(task).await?;
            let matched = planned.written + planned.deleted;
            let is_as_expected = match self.by.via {
                Via::Command => matched <= expected,
                Via::Api | Via::Run => matched == expected,
            };
            if !is_as_expected {
                return Err(VerifyError::NotAsExpected { expected, matched });
            }
        }
        let noted = self.source.audit(&order.who, order.kind.as_str(), &task.words()).await;
        let noted = noted.map_err(VerifyError::Source)?;
        let done = self.task(task).await;
        // What was changed before an error is kept row by row, in the new database.
        if let Ok(repaired) = &done {
            let changed = repaired.written + repaired.deleted;
            self.source.audit_changed(noted, changed + repaired.left, changed).await;
        }
        done
    }

    async fn task(&self, task: &Task<'_>) -> Result<Repaired, VerifyError> {
        match task {
            Task::Reported(named, only) => {
                self.reported(&Reports::choose(self.config, self.target, *named, *only).await?).await
            }
            Task::Chosen(reports) => self.reported(reports).await,
            Task::Resync(entity, wanted) => self.resync(entity, wanted).await,
        }
    }

    /// The rows of an entity that are wanted, whether or not they differ.
    async fn resync(&self, entity: &Entity, wanted: &Wanted) -> Result<Repaired, VerifyError> {
        let mut repaired = Repaired { applied: self.apply, ..Repaired::default() };
        match wanted {
            Wanted::Keys(keys) => {
                let ground = Ground::of(self.config, self.source, self.target, entity).await?;
                let (suspects, through) = self.of_keys(entity, &ground, keys, &mut repaired).await?;
                self.rows(entity, suspects, through, &mut repaired).await?;
            }
            Wanted::Since(since) => {
                let ids = self.aggregates_since(entity, since).await?;
                let aggregates = several(ids.len() as u64, "aggregate");
                repaired.notes.push(format!("{aggregates} had events in that time"));
                self.aggregates(entity, &ids, &mut repaired).await?;
            }
            Wanted::Divergent => self.divergent(entity, &mut repaired).await?,
        }
        Ok(repaired)
    }

    /// The rows of these legacy keys, which may be written otherwise than the rows have them; and whether every key is handed through, if
    /// that is known.
    async fn of_keys(
        &self,
        entity: &Entity,
        ground: &Ground,
        keys: &[RowKey],
        repaired: &mut Repaired,
    ) -> Result<(Vec<Suspect>, Option<bool>), VerifyError> {
        let (there, gone) = self.source.keys_of_rows(&ground.legacy, keys).await.map_err(VerifyError::Source)?;
        let sampled = self.hands_keys_through(entity, ground).await?;
        let through = self.hands_all_through(entity, sampled, &gone).await?;
        let of = |key: RowKey, through: bool| Suspect { key: through.then(|| key.clone()), from: Some(key) };
        // Where no legacy row shows it, it may.
        let suspects: Vec<Suspect> = gone.into_iter().map(|key| of(key, sampled != Some(false))).collect();
        let mut wanted = self.standing(entity, ground, &suspects, through, repaired).await?;
        let nowhere = (suspects.len() - wanted.len()) as u64;
        if nowhere > 0 && through == Some(true) {
            let verb = if nowhere == 1 { "stands" } else { "stand" };
            repaired.notes.push(format!("{} {verb} on neither side", several(nowhere, "key")));
        }
        wanted.extend(there.into_iter().map(|key| of(key, sampled == Some(true))));
        Ok((wanted, through))
    }

    /// Of keys without a legacy row, those that stand in the new table. Where not every key is handed through, what such a row yielded may
    /// stand under another key: then the others are left, and told.
    async fn standing(
        &self,
        entity: &Entity,
        ground: &Ground,
        suspects: &[Suspect],
        through: Option<bool>,
        repaired: &mut Repaired,
    ) -> Result<Vec<Suspect>, VerifyError> {
        let look = self.look(entity, ground, &[], &ground.comparison.columns);
        let standing = look.standing(suspects).await?;
        if through != Some(false) || standing.len() == suspects.len() {
            return Ok(standing);
        }
        let name = &entity.name;
        let of_keys = several((suspects.len() - standing.len()) as u64, "key");
        repaired.notes.push(format!(
            "{name}: {of_keys} without a legacy row: where such a row would stand in the new table cannot be told from its key: \
             outbox-relay verify {name} finds it"
        ));
        let stands: HashSet<&Suspect> = standing.iter().collect();
        for suspect in suspects.iter().filter(|suspect| !stands.contains(suspect)) {
            let message =
                "it has no legacy row, and where that would stand in the new table cannot be told from its key";
            repaired.add(Change {
                entity: name.clone(),
                action: Action::Waits,
                key: suspect.named(),
                message: Some(message.to_owned()),
            });
        }
        Ok(standing)
    }

    /// Every entity of the type, and then the events that made its aggregates divergent are forgotten.
    async fn divergent(&self, entity: &Entity, repaired: &mut Repaired) -> Result<(), VerifyError> {
        let kind = &entity.aggregate_type;
        let (ids, events) = self.source.divergent_aggregates(kind).await.map_err(VerifyError::Source)?;
        let having_table: Vec<&Entity> =
            self.config.entities.iter().filter(|e| e.aggregate_type == *kind && e.table.is_some()).collect();
        let mut whole = true;
        for entity in having_table {
            if entity.legacy.is_none() {
                whole = false;
                repaired.notes.push(format!(
                    "entity {} takes events of {kind} too, and does not say which legacy rows it is made of: its rows are not resynced, and \
                     the aggregates stay divergent",
                    entity.name
                ));
                continue;
            }
            whole &= self.aggregates(entity, &ids, repaired).await?;
        }
        repaired.verify_again |= !whole && !ids.is_empty();
        if whole && self.apply && repaired.left == 0 {
            repaired.divergent_cleared = self.source.clear_divergent(&events).await.map_err(VerifyError::Source)?;
        } else if self.apply && !ids.is_empty() {
            repaired.notes.push("not everything could be made right, so the aggregates stay divergent".to_owned());
        }
        Ok(())
    }

    /// Whether rows of the new table are to be looked for under their legacy keys, as a sample of the legacy rows shows. Before one is
    /// deleted, all of them are asked.
    async fn hands_keys_through(&self, entity: &Entity, ground: &Ground) -> Result<Option<bool>, VerifyError> {
        const SAMPLE: u32 = 200;
        let rows = self.source.legacy_sample(&ground.legacy, entity, SAMPLE).await.map_err(VerifyError::Source)?;
        self.look(entity, ground, &[], &ground.comparison.columns).hands_keys_through(&rows).await
    }

    /// Whether every legacy row's key is handed through: asked of all of them where any of these keys has none, for a sample misses the few
    /// that decide what becomes of it. `None`: it was not asked.
    async fn hands_all_through(
        &self,
        entity: &Entity,
        sampled: Option<bool>,
        gone: &[RowKey],
    ) -> Result<Option<bool>, VerifyError> {
        if sampled == Some(false) {
            return Ok(sampled);
        }
        if gone.is_empty() {
            return Ok(None);
        }
        hands_all_keys_through(self.config, (self.source, self.target), entity, self.stop).await.map(Some)
    }

    fn tell(&self, entity: &Entity, repaired: &Repaired, began: Instant, before: u64, all: usize) {
        if let Some(job) = &self.job {
            let rows = repaired.seen().saturating_sub(before);
            let rate = per_second(rows, began.elapsed());
            let entity = entity.name.clone();
            job.tell(Progress { entity, rows, estimate: Some(all as u64), rate, waits_for: None });
        }
    }

    fn look<'l>(
        &'l self,
        entity: &'l Entity,
        ground: &'l Ground,
        pass: &'l [String],
        columns: &'l [String],
    ) -> Look<'l> {
        Look {
            source: self.source,
            target: self.target,
            legacy: &ground.legacy,
            comparison: &ground.comparison,
            rule: Rule::of(entity, columns),
            pass,
            batch: self.config.relay.batch,
            stop: self.stop,
            without_events: false,
            through: false,
            stuck_up_to: Mutex::default(),
        }
    }

    /// The rows of these aggregates. False: what stands of those that have no legacy row any more is not known.
    async fn aggregates(&self, entity: &Entity, ids: &[String], repaired: &mut Repaired) -> Result<bool, VerifyError> {
        let ground = Ground::of(self.config, self.source, self.target, entity).await?;
        let by_key = self.source.is_its_key(&ground.legacy, ids).await.map_err(VerifyError::Source)?
            && self.hands_keys_through(entity, &ground).await? == Some(true);
        if !by_key {
            let keys = self.source.keys_of_aggregates(&ground.legacy, ids, self.stop).await;
            let keys = keys.map_err(VerifyError::Source)?.ok_or(VerifyError::Stopped)?;
            repaired.notes.push(format!(
                "{}: rows of the new table whose legacy rows are gone are not found by their aggregates: outbox-relay verify {} finds them",
                entity.name, entity.name
            ));
            let suspects = keys.into_iter().map(|key| Suspect { key: None, from: Some(key) }).collect();
            self.rows(entity, suspects, None, repaired).await?;
            return Ok(false);
        }
        let keys: Vec<RowKey> = ids.iter().map(|id| RowKey(vec![id.clone()])).collect();
        let (there, gone) = self.source.keys_of_rows(&ground.legacy, &keys).await.map_err(VerifyError::Source)?;
        let through = self.hands_all_through(entity, Some(true), &gone).await?;
        // Also where there is no row: what stands under that key is then too much.
        let of = |key: RowKey| Suspect { from: Some(key.clone()), key: Some(key) };
        let mut suspects: Vec<Suspect> = gone.into_iter().map(of).collect();
        if through == Some(false) {
            suspects = self.standing(entity, &ground, &suspects, through, repaired).await?;
        }
        suspects.extend(there.into_iter().map(of));
        self.rows(entity, suspects, through, repaired).await?;
        Ok(through != Some(false))
    }
}

/// The plan, or what was done, for a terminal.
pub fn render(repaired: &Repaired) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for note in &repaired.notes {
        let _ = writeln!(out, "{note}");
    }
    for change in &repaired.changes {
        let action = match (change.action, repaired.applied) {
            (Action::Write, true) => "written",
            (Action::Write, false) => "would be written",
            (Action::Delete, true) => "deleted",
            (Action::Delete, false) => "would be deleted",
            (Action::Waits, _) => "left alone",
            (Action::Refused, _) => "left as it is",
        };
        let key = change.key.iter().map(|k| k.as_deref().unwrap_or("NULL")).collect::<Vec<_>>().join(", ");
        let message = change.message.as_ref().map_or(String::new(), |m| format!(": {m}"));
        let line = format!("{} {key} {action}{message}", change.entity);
        let _ = writeln!(out, "{}", line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>());
    }
    let shown = repaired.changes.len() as u64;
    let all = repaired.written + repaired.deleted + repaired.left;
    if all > shown {
        let _ = writeln!(out, "… and {} more", all - shown);
    }
    let (w, d) = if repaired.applied { ("written", "deleted") } else { ("to be written", "to be deleted") };
    let _ = writeln!(
        out,
        "{} {w}, {} {d}, {} right already, {} left alone.",
        repaired.written, repaired.deleted, repaired.right, repaired.left
    );
    if repaired.divergent_cleared > 0 {
        let _ = writeln!(out, "{} divergent events are settled.", repaired.divergent_cleared);
    }
    out
}

/// The same of a dry run, with what to do next.
pub fn render_dry(planned: &Repaired) -> String {
    let next = if planned.changes_any() { "Nothing was changed. To do it: --apply --reason TEXT\n" } else { "" };
    render(planned) + next
}
