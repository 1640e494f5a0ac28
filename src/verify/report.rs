//! What a verification found: its model, and its text for a terminal.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::Entity;
use crate::event::Status;
use crate::redact::{HIDDEN, Sight};
use crate::source::RowKey;
use crate::words::several;

/// What is different about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = DifferenceKind)]
pub enum Kind {
    /// The legacy row yields it, and it is not in the new table.
    MissingInNew,
    /// It is in the new table, and no legacy row yields it.
    MissingInLegacy,
    /// Both have it, with other values.
    Differs,
    /// The mapping, or the new table, does not take the legacy row.
    Refused,
}

impl Kind {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::MissingInNew => "missing_in_new",
            Kind::MissingInLegacy => "missing_in_legacy",
            Kind::Differs => "differs",
            Kind::Refused => "refused",
        }
    }
}

/// A value that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ColumnDifference {
    /// Of the new table.
    pub column: String,
    /// What the legacy row yields.
    pub legacy: Option<String>,
    /// What stands.
    pub new: Option<String>,
}

/// One row that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// The entity's name.
    pub entity: String,
    /// What about it.
    pub kind: Kind,
    /// Its key in the new table; where that is not known, the legacy row's.
    pub key: Vec<Option<String>>,
    /// The legacy row's key, as far as there is one.
    #[schema(value_type = Option<Vec<String>>)]
    pub legacy_key: Option<RowKey>,
    /// Whose it is.
    pub aggregate_id: Option<String>,
    /// For [`Kind::Differs`].
    pub columns: Vec<ColumnDifference>,
    /// For [`Kind::Refused`]: what the new database says.
    pub message: Option<String>,
}

impl Difference {
    pub(crate) fn new(
        kind: Kind,
        key: Vec<Option<String>>,
        legacy_key: Option<RowKey>,
        aggregate_id: Option<String>,
    ) -> Difference {
        Difference { entity: String::new(), kind, key, legacy_key, aggregate_id, columns: Vec::new(), message: None }
    }

    /// The new key, if no part of it is NULL.
    pub(crate) fn whole_key(&self) -> Option<RowKey> {
        self.key.iter().cloned().collect::<Option<Vec<String>>>().map(RowKey)
    }

    /// As whoever may see so much is shown it. Of an entity that is gone nobody knows what is to be hidden: all is.
    pub(crate) fn shown_to(mut self, sight: &Sight, entity: Option<&Entity>) -> Difference {
        let table = entity.and_then(|entity| entity.table.as_ref());
        for of in &mut self.columns {
            if table.is_none_or(|table| sight.hides(&table.schema, &table.table, &of.column)) {
                let hidden = |value: &Option<String>| value.as_ref().map(|_| HIDDEN.to_owned());
                (of.legacy, of.new) = (hidden(&of.legacy), hidden(&of.new));
            }
        }
        self.message = self.message.map(|message| match entity {
            Some(entity) => {
                let (code, text) = message.split_once(' ').unwrap_or(("", &message));
                let (kind, text) = (&entity.aggregate_type, text.to_owned());
                let seen = match table {
                    Some(table) => sight.message_of_row(kind, table, code, text),
                    None => sight.message(kind, code, text),
                };
                format!("{code} {seen}")
            }
            None => HIDDEN.to_owned(),
        });
        self
    }
}

/// A row that differs because an event of its aggregate is not applied yet: no difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Waiting {
    /// The entity's name.
    pub entity: String,
    /// The row's key.
    pub key: Vec<Option<String>>,
    /// Whose it is.
    pub aggregate_id: Option<String>,
    /// The first event that is in retry, held or failed.
    pub event: Option<i64>,
    /// `pending`, `retry`, `held`, `failed`; or why it cannot be told.
    pub status: String,
}

/// How the status of a row begins of which nobody can tell whether it waits for an event.
pub(crate) const UNKNOWN: &str = "unknown";

impl Waiting {
    /// Nothing brings it until somebody replays or skips that event.
    pub(crate) fn is_stuck(&self) -> bool {
        self.status == Status::Failed.as_str()
    }

    /// Whether it differs could not be told.
    pub(crate) fn is_unknown(&self) -> bool {
        self.status.starts_with(UNKNOWN)
    }
}

/// How an entity came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// No difference, but for rows whose events are on their way.
    Equal,
    /// At least one, or a row that is behind a failed event.
    Differs,
    /// It could not be compared.
    CouldNot,
}

/// What came of one entity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EntityReport {
    /// Its name.
    pub entity: String,
    /// How it came out.
    pub outcome: Outcome,
    /// Why it could not be compared, or not wholly.
    pub message: Option<String>,
    /// Whether all was read that was to be read. Else (it was told to end, it could not go on, or so much differed that reading on was
    /// of no use) there may be more differences than are told.
    #[serde(default = "yes")]
    pub complete: bool,
    /// The message without any value, for the log.
    #[serde(skip)]
    pub(crate) logged: Option<String>,
    /// Rows that the mapping yields, as far as they were read.
    pub legacy_rows: u64,
    /// Rows of the new table, likewise.
    pub new_rows: u64,
    /// Keys that looked different at first.
    pub looked_again: u64,
    /// Of these, those that a look under the lane's lock was needed for.
    pub looked_under_lock: u64,
    /// By [`Kind`], all of them.
    pub missing_in_new: u64,
    /// Likewise.
    pub missing_in_legacy: u64,
    /// Likewise.
    pub differing: u64,
    /// Likewise.
    pub refused: u64,
    /// Rows that differ because their events are not applied yet.
    pub waiting: u64,
    /// Of these, those behind an event that has failed: they differ until somebody replays or skips it.
    #[serde(default)]
    pub stuck: u64,
    /// Rows that stand although their legacy row no longer yields them; nobody asked for them to be deleted (`replace_by`).
    pub left_over: u64,
    /// `ranges`, `buckets` or `sample`.
    pub method: String,
    /// Whether the mapping was evaluated by the legacy server, or the rows were sent to the new one.
    pub mapped_by_legacy: bool,
    /// Columns left out, with the reason.
    pub ignored: Vec<String>,
    /// Columns that may lie a little apart, how far, and the reason.
    #[serde(default)]
    pub tolerated: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// Of reports that do not say it.
fn yes() -> bool {
    true
}

impl EntityReport {
    pub(crate) fn new(entity: &str) -> EntityReport {
        EntityReport {
            entity: entity.to_owned(),
            outcome: Outcome::Equal,
            message: None,
            complete: true,
            logged: None,
            legacy_rows: 0,
            new_rows: 0,
            looked_again: 0,
            looked_under_lock: 0,
            missing_in_new: 0,
            missing_in_legacy: 0,
            differing: 0,
            refused: 0,
            waiting: 0,
            stuck: 0,
            left_over: 0,
            method: "ranges".to_owned(),
            mapped_by_legacy: true,
            ignored: Vec::new(),
            tolerated: Vec::new(),
            seconds: 0.0,
        }
    }

    /// All differences.
    pub fn differences(&self) -> u64 {
        self.missing_in_new + self.missing_in_legacy + self.differing + self.refused
    }

    /// Whether every row was looked at, and stands as it should: none differs, none waits for an event.
    pub(crate) fn agrees(&self) -> bool {
        self.outcome == Outcome::Equal && self.complete && self.method != "sample" && self.waiting == 0
    }

    pub(crate) fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::MissingInNew => &mut self.missing_in_new,
            Kind::MissingInLegacy => &mut self.missing_in_legacy,
            Kind::Differs => &mut self.differing,
            Kind::Refused => &mut self.refused,
        } += 1;
    }
}

/// A whole verification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Under which it is kept on the target.
    pub id: i64,
    /// By the target's clock.
    pub started_at: DateTime<Utc>,
    /// How long it took.
    pub seconds: f64,
    /// The worst of the entities'.
    pub outcome: Outcome,
    /// Each entity.
    pub entities: Vec<EntityReport>,
    /// The first of them, each in full; all are kept on the target.
    pub differences: Vec<Difference>,
    /// Rows that wait for an event, the first of them.
    pub waiting: Vec<Waiting>,
}

/// How many differences a report shows.
pub const SHOWN: usize = 100;

/// What an entity's report says where it was told to end.
pub(crate) const STOPPED: &str = "stopped before the end";

impl Report {
    /// Whether it was told to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.entities.iter().any(|of| of.message.as_deref() == Some(STOPPED))
    }

    /// All differences.
    pub(crate) fn differences(&self) -> u64 {
        self.entities.iter().map(EntityReport::differences).sum()
    }

    /// Rows behind failed events.
    pub(crate) fn stuck(&self) -> u64 {
        self.entities.iter().map(|of| of.stuck).sum()
    }

    /// Whether all was read that was to be read.
    pub fn is_complete(&self) -> bool {
        self.entities.iter().all(|of| of.complete)
    }

    /// The worst of the entities' outcomes: what could not be compared counts most.
    pub(crate) fn worst(entities: &[EntityReport]) -> Outcome {
        let is = |outcome| entities.iter().any(|e| e.outcome == outcome);
        if is(Outcome::CouldNot) {
            Outcome::CouldNot
        } else if is(Outcome::Differs) {
            Outcome::Differs
        } else {
            Outcome::Equal
        }
    }
}

/// The report for a terminal.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([
        "entity",
        "legacy",
        "new",
        "missing in new",
        "missing in legacy",
        "differing",
        "refused",
        "waiting",
        "",
    ]);
    for e in &report.entities {
        let outcome = match e.outcome {
            Outcome::Equal => "equal",
            Outcome::Differs => "DIFFERS",
            Outcome::CouldNot => "COULD NOT",
        };
        let numbers =
            [e.legacy_rows, e.new_rows, e.missing_in_new, e.missing_in_legacy, e.differing, e.refused, e.waiting];
        let cells = std::iter::once(e.entity.clone()).chain(numbers.iter().map(u64::to_string));
        table.add_row(cells.chain([outcome.to_owned()]).collect::<Vec<_>>());
    }
    let _ = writeln!(out, "{table}");
    for e in &report.entities {
        if let Some(message) = &e.message {
            let _ = writeln!(out, "{}: {message}", e.entity);
        }
        if e.left_over > 0 {
            let _ = writeln!(
                out,
                "{}: {} left over: the legacy row is there, and no longer yields what stands; it stays, unless replace_by names its owner",
                e.entity,
                several(e.left_over, "row")
            );
        }
        for ignored in &e.ignored {
            let _ = writeln!(out, "{}: not compared: {ignored}", e.entity);
        }
        for tolerated in &e.tolerated {
            let _ = writeln!(out, "{}: compared with a tolerance: {tolerated}", e.entity);
        }
    }
    for difference in &report.differences {
        let _ = writeln!(out, "{}", line(difference));
    }
    let total = report.differences();
    let more = total.saturating_sub(report.differences.len() as u64);
    if more > 0 {
        let _ = writeln!(out, "… and {more} more: outbox-relay verify --report {}", report.id);
    }
    for waiting in report.waiting.iter().filter(|w| w.status != "pending").take(SHOWN) {
        let event = waiting.event.map_or(String::new(), |id| format!(": event {id}"));
        let _ = writeln!(out, "{} {} waits{event} is {}", waiting.entity, shown(&waiting.key), waiting.status);
    }
    let waiting: u64 = report.entities.iter().map(|of| of.waiting).sum();
    let stuck = report.stuck();
    if stuck > 0 {
        let rows = several(stuck, "row");
        let _ = writeln!(out, "{rows} behind failed events: outbox-relay failures, then replay or skip them.");
    }
    let _ = match report.outcome {
        Outcome::Differs if total == 0 => writeln!(out, "Equal, but for those."),
        Outcome::Equal if waiting > 0 => {
            writeln!(out, "Equal, but for {} whose events are not applied yet.", several(waiting, "row"))
        }
        Outcome::Equal => writeln!(out, "Equal."),
        Outcome::Differs => {
            let at_least = if report.is_complete() { "" } else { "At least " };
            // Without a number it takes full ones.
            let sampled = report.entities.iter().any(|of| of.method == "sample");
            let which = if sampled { format!(" --report {}", report.id) } else { String::new() };
            let found = several(total, "difference");
            writeln!(out, "{at_least}{found}. To mend from the legacy database: outbox-relay repair{which}")
        }
        Outcome::CouldNot => writeln!(out, "Not everything could be compared."),
    };
    out
}

/// The list of reports for a terminal.
pub fn render_history(reports: &[crate::target::History]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["report", "began", "took", "by", "what", "outcome", "differences"]);
    for of in reports {
        let took = of.finished_at.map(|at| (at - of.started_at).num_milliseconds() as f64 / 1e3);
        table.add_row([
            of.id.to_string(),
            of.started_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            took.map_or("not finished".to_owned(), |seconds| format!("{seconds:.1} s")),
            of.by.clone(),
            of.mode.clone(),
            of.outcome.clone().unwrap_or_default(),
            of.differences.map_or(String::new(), |n| n.to_string()),
        ]);
    }
    format!("{table}\n")
}

fn shown(key: &[Option<String>]) -> String {
    key.iter().map(|part| part.as_deref().unwrap_or("NULL")).collect::<Vec<_>>().join(", ")
}

/// One line of text for a difference.
pub fn line(difference: &Difference) -> String {
    let text = format!("{} {} {}", difference.entity, shown(&difference.key), what(difference));
    // Control characters would let a value draw on the operator's terminal.
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What is different.
pub fn what(difference: &Difference) -> String {
    let value = |value: &Option<String>| value.as_ref().map_or("NULL".to_owned(), |text| format!("{text:?}"));
    match difference.kind {
        Kind::MissingInNew => "is missing in new".to_owned(),
        Kind::MissingInLegacy => "is missing in legacy".to_owned(),
        Kind::Refused => format!("is refused: {}", difference.message.as_deref().unwrap_or_default()),
        Kind::Differs => {
            let columns = difference.columns.iter();
            let columns = columns.map(|c| format!("{}: legacy {}, new {}", c.column, value(&c.legacy), value(&c.new)));
            format!("differs: {}", columns.collect::<Vec<_>>().join("; "))
        }
    }
}
