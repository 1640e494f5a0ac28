//! `capture`: triggers on a legacy table that write its outbox events, for applications that nobody will change.
//!
//! Guarantees: each change of a row is one event (two where its key changes), written in the transaction of the change and while
//! the row is locked, so that the order of ids is the order of changes, and before any other trigger of the row writes something that
//! follows from it; no event for an update that changes nothing. Installing
//! waits for the table's lock a moment at a time, and gives way to the application. Does not see what bypasses triggers:
//! `session_replication_role = replica`, `ALTER TABLE … DISABLE TRIGGER`; TRUNCATE is refused, for it tells no rows.

use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgPool;

use crate::config::{Config, DeletePayload, Entity, LegacyRows, RowsFrom, TableName};
use crate::disposition::told;
use crate::init::{self, Plan, Side, Step};
use crate::job::Who;
use crate::session::{Limits, ask};
use crate::source::{KeyTrouble, Names, Source};
use crate::sql::{ident, literal, query, render};

/// Whether an entity's changes are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As configured.
    Installed,
    /// By another configuration than the present one, or by another version: install it again.
    Outdated,
    /// The triggers are there, but disabled.
    Disabled,
    /// They are not.
    Absent,
}

impl State {
    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Installed => "installed",
            State::Outdated => "outdated",
            State::Disabled => "disabled",
            State::Absent => "absent",
        }
    }
}

/// An entity's capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Which.
    pub entity: String,
    /// The legacy table.
    pub table: String,
    /// Whether its changes are captured.
    pub state: State,
}

/// Why it cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Refused, with what to do.
    #[error("{0}")]
    Refused(String),
    /// The legacy database said no.
    #[error("legacy: {}", told(.0))]
    Database(#[from] sqlx::Error),
    /// A step failed.
    #[error(transparent)]
    Step(#[from] init::InitError),
}

/// What is captured, and what things are called.
struct Capture<'a> {
    entity: &'a Entity,
    rows: &'a LegacyRows,
    table: &'a TableName,
    names: Vec<(&'static str, String)>,
    outbox: Names,
    /// Of rows, and of TRUNCATE.
    triggers: [String; 2],
    /// What the one of rows was called by earlier versions.
    earlier: String,
    function: String,
    /// What all functions are called that the configuration has for the table.
    known: Vec<String>,
}

const LIMITS: Limits = Limits { deadline: std::time::Duration::from_secs(30), lock: std::time::Duration::from_secs(1) };

impl<'a> Capture<'a> {
    fn new(config: &'a Config, entity: &'a Entity) -> Result<Capture<'a>, CaptureError> {
        let Some(rows) = &entity.legacy else {
            return Err(CaptureError::Refused(format!(
                "entity {0} does not say of which legacy table it is made: legacy = {{ table = \"public.{0}\", key = [\"id\"] }}",
                entity.name
            )));
        };
        let RowsFrom::Table(table) = &rows.from else {
            return Err(CaptureError::Refused(format!(
                "entity {} is made of a query: a change of one of its tables is not a change of one row of it. Let the application \
                 write its events, or make an entity of each table",
                entity.name
            )));
        };
        let outbox = Names::new(&config.legacy, config.relay.lanes);
        // One for an aggregate type and a table: a second entity made of the same rows takes the same events.
        let slug = slug(&entity.aggregate_type, table);
        let function = format!("{}.{}", outbox.relay, ident(&function_of(&entity.aggregate_type, table)));
        // A row's triggers fire in the byte order of their names, and what one of them writes is captured before the next one fires. So this
        // one is the first, before the application's and before RI_…, which cascade: or a change would get a later id than what follows from it.
        let triggers = [format!("!outbox_relay_capture_{slug}"), format!("outbox_relay_truncate_{slug}")];
        let made_of_it = config
            .entities
            .iter()
            .filter(|of| of.legacy.as_ref().is_some_and(|rows| rows.from == RowsFrom::Table(table.clone())));
        let known = made_of_it.map(|of| function_of(&of.aggregate_type, table)).collect();
        let earlier = format!("outbox_relay_capture_{slug}");
        let mut capture =
            Capture { entity, rows, table, names: Vec::new(), outbox, triggers, earlier, function, known };
        capture.names = capture.names();
        Ok(capture)
    }

    fn table_name(&self) -> String {
        format!("{}.{}", ident(&self.table.schema), ident(&self.table.table))
    }

    fn names(&self) -> Vec<(&'static str, String)> {
        let key = &self.rows.key;
        let each = |template: &dyn Fn(&String) -> String| key.iter().map(template).collect::<Vec<_>>();
        let changes = each(&|c| format!("OLD.{0}::text IS DISTINCT FROM NEW.{0}::text", ident(c)));
        // Of arrays the element's own operator is taken, on whatever search path.
        let equal = each(&|c| format!("ARRAY[OLD.{0}] OPERATOR(pg_catalog.=) ARRAY[NEW.{0}]", ident(c)));
        let pairs: Vec<String> = key.iter().map(|c| format!("{}, OLD.{}", literal(c), ident(c))).collect();
        let words = &self.rows.capture;
        vec![
            ("function", self.function.clone()),
            ("table", self.table_name()),
            ("table_text", self.table.to_string().replace('\'', "''").replace('%', "%%")),
            ("row_trigger", ident(&self.triggers[0])),
            ("earlier_trigger", ident(&self.earlier)),
            ("truncate_trigger", ident(&self.triggers[1])),
            ("table_name", literal(&self.table_name())),
            ("row_triggers", array(&[self.triggers[0].clone(), self.earlier.clone()])),
            ("truncate_name", literal(&self.triggers[1])),
            ("aggregate", self.rows.aggregate_or_key()),
            ("kind", literal(&self.entity.aggregate_type)),
            ("insert", literal(&words.insert)),
            ("update", literal(&words.update)),
            ("delete", literal(&words.delete)),
            ("key_changes", format!("({})", changes.join(" OR "))),
            ("key_is_equal", format!("({})", equal.join(" AND "))),
            (
                "deleted",
                match words.delete_payload {
                    DeletePayload::Key => format!("jsonb_build_object({})", pairs.join(", ")),
                    DeletePayload::Row => "to_jsonb(OLD)".to_owned(),
                },
            ),
        ]
    }

    /// The function's text without its version, and the version: a hash of that text.
    fn definition(&self) -> (String, String) {
        let text = self.outbox.render_with(include_str!("../../sql/capture/function.sql"), &self.names);
        let version = format!("outbox-relay capture {:016x}", fnv(&text));
        (text.clone(), version)
    }

    /// As it is kept in the audit.
    fn subject(&self) -> serde_json::Value {
        serde_json::json!({ "entity": self.entity.name, "table": self.table.to_string() })
    }

    fn install_steps(&self) -> Vec<Step> {
        let (text, version) = self.definition();
        let function = render(&text, &[("version", literal(&version))]);
        // Together, so that a refusal changes nothing of what stands there.
        vec![Step::together(
            format!("the triggers on {}, and the function that writes its events", self.table),
            "SHARE ROW EXCLUSIVE for a moment, once transactions that have written it have ended: writers wait, readers go on \
                 (ACCESS EXCLUSIVE, and the table's owner, where a trigger of an earlier version is replaced)",
            format!(
                "{}{function}{}",
                self.guard_sql(),
                render(include_str!("../../sql/capture/triggers.sql"), &self.names)
            ),
        )]
    }

    /// An error, if something would: nobody else asks before a script that was printed.
    fn guard_sql(&self) -> String {
        let mut names = self.names.clone();
        names.push(("unfit", self.unfit_sql()));
        self.outbox.render_with(include_str!("../../sql/capture/guard.sql"), &names)
    }

    /// What would have the application's writes fail, or events wrong, as sentences.
    fn unfit_sql(&self) -> String {
        let names = [
            ("function_name", literal(&self.function)),
            ("table_name", literal(&self.table_name())),
            ("table_shown", literal(&self.table.to_string())),
            ("outbox_name", literal(&self.outbox.outbox)),
            ("filled", array(&self.filled())),
            ("key", array(&self.rows.key)),
            ("known", array(&self.known)),
            ("relay_name", literal(&self.outbox.relay)),
        ];
        render(include_str!("../../sql/capture/unfit.sql"), &names)
    }

    /// The columns of the outbox that the function fills.
    fn filled(&self) -> Vec<String> {
        let columns = ["{aggregate_type}", "{aggregate_id}", "{event_type}", "{payload}"];
        columns.iter().map(|name| self.outbox.render(name).trim_matches('"').replace("\"\"", "\"")).collect()
    }

    /// What the table's owner may do for whoever installed an earlier version: afterwards there is no other trigger to be taken away.
    fn renamed(&self) -> String {
        format!(
            ". If it is only to replace the trigger of an earlier version: let the table's owner run ALTER TRIGGER {} ON {} RENAME TO {}; then \
             install",
            ident(&self.earlier),
            self.table_name(),
            ident(&self.triggers[0])
        )
    }

    fn remove_steps(&self) -> Vec<Step> {
        vec![Step::together(
            format!("the triggers on {}, and their function", self.table),
            "ACCESS EXCLUSIVE for a moment, once transactions that use it have ended",
            render(include_str!("../../sql/capture/remove.sql"), &self.names),
        )]
    }

    async fn state(&self, pool: &PgPool) -> Result<(State, Option<String>), CaptureError> {
        let state = query(include_str!("../../sql/capture/state.sql"), false)
            .bind(self.table_name())
            .bind(&self.function)
            .bind(&self.triggers)
            .bind(&self.earlier)
            .bind(&self.outbox.outbox)
            .bind(self.filled());
        let rows = ask(pool, LIMITS, "", state).await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        if !row.try_get::<bool, _>("has_table")? {
            return Err(CaptureError::Refused(format!(
                "entity {}: there is no table {} in the legacy database",
                self.entity.name, self.table
            )));
        }
        let version: Option<String> = row.try_get("version")?;
        let (enabled, disabled): (i64, i64) = (row.try_get("enabled")?, row.try_get("disabled")?);
        let state = match (version, enabled, disabled, row.try_get::<bool, _>("has_earlier")?) {
            (_, 0, 0, false) => State::Absent,
            (Some(version), 2, 0, false) if version == self.definition().1 => State::Installed,
            (_, _, 1.., _) => State::Disabled,
            _ => State::Outdated,
        };
        Ok((state, row.try_get("unfilled")?))
    }

    /// What the configuration alone says would be wrong with the events.
    fn refuse_words(&self, config: &Config) -> Result<(), CaptureError> {
        for other in shared_with(config, self.entity) {
            if Capture::new(config, other)?.definition().0 != self.definition().0 {
                return Err(CaptureError::Refused(format!(
                    "entities {} and {} are made of the same table's rows and are of one aggregate type, so the same triggers write their \
                     events; but what these are to write differs: give both the same legacy.key, legacy.aggregate_id and [entity.capture]",
                    self.entity.name, other.name
                )));
            }
        }
        let words = &self.rows.capture;
        let types = [("insert", &words.insert), ("update", &words.update), ("delete", &words.delete)];
        for (what, name) in types {
            if !self.entity.events.contains_key(name) {
                return Err(CaptureError::Refused(format!(
                    "entity {} takes no event type {name}, which capture would write for each {what}: map it in [entity.events], or \
                     name another in [entity.capture] {what} = \"…\"",
                    self.entity.name
                )));
            }
        }
        Ok(())
    }

    /// What would have the application's own writes fail, or events wrong, once the triggers stand.
    async fn refuse(&self, source: &Source, unfilled: Option<String>) -> Result<(), CaptureError> {
        if let Some(columns) = unfilled {
            return Err(CaptureError::Refused(format!(
                "the outbox's column {columns} may not be NULL and has no default: every write to {} would fail. Give it a default, \
                 then install",
                self.table
            )));
        }
        let unfit = ask(&source.pool, LIMITS, "", query(&self.unfit_sql(), false)).await?;
        if let Some(row) = unfit.first() {
            return Err(CaptureError::Refused(row.try_get("what")?));
        }
        // The expression and the key must be right before a trigger says so to the application.
        source.legacy(self.entity).await.map(drop).map_err(|error| {
            CaptureError::Refused(match KeyTrouble::of(&error) {
                Some(trouble) => trouble.to_string(),
                None => format!("entity {}: its legacy rows cannot be read: {}", self.entity.name, told(&error)),
            })
        })
    }
}

/// The other entities whose events the same triggers write.
pub fn shared_with<'c>(config: &'c Config, entity: &Entity) -> Vec<&'c Entity> {
    let table = |of: &Entity| match of.legacy.as_ref().map(|rows| &rows.from) {
        Some(RowsFrom::Table(table)) => Some((of.aggregate_type.clone(), table.clone())),
        _ => None,
    };
    let this = table(entity);
    config.entities.iter().filter(|of| of.name != entity.name && this.is_some() && table(of) == this).collect()
}

/// What `install` or `remove` would run: for a DBA. Asks no database, so what only that can tell is left to `check`.
pub fn print(config: &Config, entity: &Entity, remove: bool) -> Result<String, CaptureError> {
    let capture = Capture::new(config, entity)?;
    if !remove {
        capture.refuse_words(config)?;
    }
    let source = if remove { capture.remove_steps() } else { capture.install_steps() };
    Ok(init::steps_script(&Plan { source, ..Plan::default() }))
}

/// Installs the triggers, or replaces them by those that are configured now. False: they stood there already.
pub async fn install(config: &Config, entity: &Entity, source: &Source, who: &Who) -> Result<bool, CaptureError> {
    let capture = Capture::new(config, entity)?;
    capture.refuse_words(config)?;
    let (state, unfilled) = capture.state(&source.pool).await?;
    capture.refuse(source, unfilled).await?;
    if state == State::Installed {
        return Ok(false);
    }
    source.audit(who, "capture.install", &capture.subject()).await?;
    let installed = init::apply(Side::Legacy, &source.pool, &capture.install_steps()).await;
    installed.map_err(|error| match (hint(error, entity), state) {
        (CaptureError::Refused(said), State::Outdated) => CaptureError::Refused(format!("{said}{}", capture.renamed())),
        (other, _) => other,
    })?;
    Ok(true)
}

/// Takes the triggers away. False: none were there.
pub async fn remove(config: &Config, entity: &Entity, source: &Source, who: &Who) -> Result<bool, CaptureError> {
    let capture = Capture::new(config, entity)?;
    let (state, _) = capture.state(&source.pool).await?;
    if state == State::Absent {
        return Ok(false);
    }
    source.audit(who, "capture.remove", &capture.subject()).await?;
    init::apply(Side::Legacy, &source.pool, &capture.remove_steps()).await.map_err(|error| hint(error, entity))?;
    Ok(true)
}

fn hint(error: init::InitError, entity: &Entity) -> CaptureError {
    match &error {
        init::InitError::Database { error: refused, .. }
            if crate::session::sqlstate(refused).as_deref() == Some("42501") =>
        {
            CaptureError::Refused(format!(
                "{error}. The table's owner can: outbox-relay capture install {} --print",
                entity.name
            ))
        }
        _ => error.into(),
    }
}

/// Whether its changes are captured.
pub async fn status(config: &Config, entity: &Entity, source: &Source) -> Result<Status, CaptureError> {
    let capture = Capture::new(config, entity)?;
    let (state, _) = capture.state(&source.pool).await?;
    Ok(Status { entity: entity.name.clone(), table: capture.table.to_string(), state })
}

/// `ARRAY['a', 'b']::text[]`
fn array(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
    format!("ARRAY[{}]::text[]", names.join(", "))
}

fn function_of(aggregate_type: &str, table: &TableName) -> String {
    format!("capture_{}", slug(aggregate_type, table))
}

/// Short enough for any name, and another for every aggregate type and table.
fn slug(aggregate_type: &str, table: &TableName) -> String {
    let word: String =
        aggregate_type.chars().filter(char::is_ascii_alphanumeric).take(20).collect::<String>().to_lowercase();
    format!("{word}_{:08x}", fnv(&format!("{aggregate_type}\0{}\0{}", table.schema, table.table)) & 0xffff_ffff)
}

/// FNV-1a: the same for ever.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
