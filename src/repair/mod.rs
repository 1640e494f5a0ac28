//! `repair` and `resync`: writes rows of the new database anew from the legacy ones, and deletes what these do not have.
//!
//! Guarantees: each row is read, judged and changed while both sides of its lane are locked, and only if no event of its aggregate is
//! open; so nothing that an event is about to bring is overwritten with older state. What is changed is kept with what stood before, in
//! the transaction of the change. Without `apply` nothing is changed, and the same look says what would be.
//! Does not guarantee that a row stays right: what made it wrong may do so again.

mod lane;
mod wanted;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use self::wanted::{Since, Wanted};
use crate::config::{Config, Entity};
use crate::source::{RowKey, Source};
use crate::target::Target;
use crate::verify::{Ground, Kind, Look, Rule, Suspect, VerifyError};

/// Who wants it, and why.
#[derive(Debug, Clone)]
pub struct By {
    /// A shell's user, a token's name.
    pub actor: String,
    /// Kept with every changed row.
    pub reason: String,
    /// `repair` or `resync`.
    pub command: &'static str,
}

/// What is done to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
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
    /// Ends it between two lanes.
    pub stop: &'a CancellationToken,
}

impl Repair<'_> {
    /// What the last report found: these rows, as they are now.
    pub async fn last_report(&self) -> Result<Repaired, VerifyError> {
        let id = self.target.last_report().await.map_err(VerifyError::Target)?;
        let id = id.ok_or_else(|| VerifyError::NoEntity("there is no report yet: outbox-relay verify".to_owned()))?;
        let found = self.target.report_differences(id).await.map_err(VerifyError::Target)?;
        let mut repaired = Repaired { applied: self.apply, ..Repaired::default() };
        repaired.notes.push(format!("of report {}: {} differences", id.0, found.len()));
        for entity in self.config.entities.iter().filter(|e| e.legacy.is_some()) {
            let suspects: Vec<Suspect> = found
                .iter()
                .filter(|d| d.entity == entity.name)
                .map(|d| Suspect {
                    key: if d.kind == Kind::Refused {
                        None
                    } else {
                        d.key.iter().cloned().collect::<Option<Vec<_>>>().map(RowKey)
                    },
                    from: d.legacy_key.clone(),
                })
                .collect();
            self.rows(entity, suspects, &mut repaired).await?;
        }
        Ok(repaired)
    }

    /// The rows of an entity that are wanted, whether or not they differ.
    pub async fn resync(&self, entity: &Entity, wanted: &Wanted) -> Result<Repaired, VerifyError> {
        let mut repaired = Repaired { applied: self.apply, ..Repaired::default() };
        match wanted {
            Wanted::Keys(keys) => {
                let ground = Ground::of(self.source, self.target, entity).await?;
                let through = self.hands_keys_through(entity, &ground).await?;
                let of = |key: &RowKey| Suspect { key: through.then(|| key.clone()), from: Some(key.clone()) };
                self.rows(entity, keys.iter().map(of).collect(), &mut repaired).await?;
            }
            Wanted::Since(since) => {
                let ids = self.aggregates_since(entity, since).await?;
                repaired.notes.push(format!("{} aggregates had events in that time", ids.len()));
                self.aggregates(entity, &ids, &mut repaired).await?;
            }
            Wanted::Divergent => self.divergent(entity, &mut repaired).await?,
        }
        Ok(repaired)
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
        if whole && self.apply && repaired.left == 0 {
            repaired.divergent_cleared = self.source.clear_divergent(&events).await.map_err(VerifyError::Source)?;
        } else if self.apply && !ids.is_empty() {
            repaired.notes.push("not everything could be made right, so the aggregates stay divergent".to_owned());
        }
        Ok(())
    }

    /// Whether a row of the new table may be taken for its legacy key's, as a sample of the legacy rows shows; else none is deleted for
    /// want of a legacy row.
    async fn hands_keys_through(&self, entity: &Entity, ground: &Ground) -> Result<bool, VerifyError> {
        const SAMPLE: u32 = 200;
        let rows = self.source.legacy_sample(&ground.legacy, entity, SAMPLE).await.map_err(VerifyError::Source)?;
        self.look(entity, ground, &[], &ground.comparison.columns).hands_keys_through(&rows).await
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
            rule: Rule { columns, rules: &entity.verify, replaces: !entity.replace_by.is_empty() },
            pass,
            batch: self.config.relay.batch,
            stop: self.stop,
            without_events: false,
        }
    }

    /// The rows of these aggregates. False: those that have no legacy row any more are not known.
    async fn aggregates(&self, entity: &Entity, ids: &[String], repaired: &mut Repaired) -> Result<bool, VerifyError> {
        let ground = Ground::of(self.source, self.target, entity).await?;
        let by_key = self.source.is_its_key(&ground.legacy, ids).await.map_err(VerifyError::Source)?
            && self.hands_keys_through(entity, &ground).await?;
        let suspects = if by_key {
            // Also where there is no row: what stands under that key is then too much.
            ids.iter()
                .map(|id| RowKey(vec![id.clone()]))
                .map(|key| Suspect { from: Some(key.clone()), key: Some(key) })
                .collect()
        } else {
            let keys = self.source.keys_of_aggregates(&ground.legacy, ids).await.map_err(VerifyError::Source)?;
            repaired.notes.push(format!(
                "{}: rows of the new table whose legacy rows are gone are not found by their aggregates: outbox-relay verify {} finds them",
                entity.name, entity.name
            ));
            keys.into_iter().map(|key| Suspect { key: None, from: Some(key) }).collect()
        };
        self.rows(entity, suspects, repaired).await?;
        Ok(by_key)
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
            (Action::Refused, _) => "refused",
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
    if !repaired.applied {
        let _ = writeln!(out, "Nothing was changed. To do it: --apply --reason TEXT");
    }
    out
}
