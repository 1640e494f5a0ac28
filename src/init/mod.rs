//! `init`: makes the outbox and the relay's own tables, or says how. Every step is data, computed from the catalogs, so that what
//! is printed for a DBA is what is run.
//!
//! Guarantees: it may be run again, after an interruption too, and then does only what is missing. A statement that needs a
//! strong lock gives up after a moment and is tried again, rather than queue the application behind itself. It never guesses
//! what became of a database: where the two logs do not agree, it refuses until told. It does not drop anything of the
//! outbox's.

mod adopt;
mod catalog;
pub mod grants;
mod introduce;
mod print;
mod remove;
mod run;

use sqlx::postgres::PgPool;

pub use self::adopt::{Existing, UnknownExisting};
pub(crate) use self::catalog::columns as outbox_columns;
pub use self::catalog::{Index, relay_indexes};
pub use self::grants::{Grants, Roles, grants};
pub use self::introduce::Choices;
pub(crate) use self::print::steps_script;
pub use self::print::{print, script};
pub use self::remove::{Removal, removal, remove};
pub(crate) use self::run::run as apply;
use crate::config::Config;
use crate::connect::{SCHEMA_VERSION, TEST_LANES};
use crate::source::Names;
use crate::sql::{ident, literal, render};

/// One statement, with what a DBA wants to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it is for.
    pub why: String,
    /// What it locks, and for how long.
    pub locks: String,
    /// The statement, or several that belong together.
    pub sql: String,
    /// Whether it must run outside a transaction (`CREATE INDEX CONCURRENTLY`).
    pub alone: bool,
}

impl Step {
    /// Runs in a transaction, with a `lock_timeout`.
    pub(crate) fn together(why: impl Into<String>, locks: impl Into<String>, sql: impl Into<String>) -> Step {
        Step { why: why.into(), locks: locks.into(), sql: sql.into(), alone: false }
    }

    /// Runs outside a transaction.
    fn alone(why: impl Into<String>, locks: impl Into<String>, sql: impl Into<String>) -> Step {
        Step { why: why.into(), locks: locks.into(), sql: sql.into(), alone: true }
    }
}

/// What is to be done on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// On the legacy database, in order.
    pub source: Vec<Step>,
    /// On the new database, in order.
    pub target: Vec<Step>,
    /// What a DBA should know besides: which database could not be asked, which choices were made.
    pub notes: Vec<String>,
}

impl Plan {
    /// Whether nothing is missing.
    pub fn is_empty(&self) -> bool {
        self.source.is_empty() && self.target.is_empty()
    }
}

/// A side of the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The database that holds the outbox.
    Legacy,
    /// The database that events are applied to.
    New,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::Legacy => "legacy",
            Side::New => "new",
        })
    }
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A database said no.
    #[error("{side}: {}{}", crate::disposition::told(error), doing.as_deref().map(|d| format!(" (while making {d})")).unwrap_or_default())]
    Database {
        /// Which.
        side: Side,
        /// What it said.
        error: sqlx::Error,
        /// The step's purpose, if it was one.
        doing: Option<String>,
    },
    /// Refused, with what to do.
    #[error("{0}")]
    Refused(String),
}

impl InitError {
    fn legacy(error: sqlx::Error) -> InitError {
        InitError::Database { side: Side::Legacy, error, doing: None }
    }

    fn new(error: sqlx::Error) -> InitError {
        InitError::Database { side: Side::New, error, doing: None }
    }
}

/// What is missing on these databases, and how to make it.
pub async fn plan(config: &Config, source: &PgPool, target: &PgPool, choices: Choices) -> Result<Plan, InitError> {
    let names = Names::new(&config.legacy, config.relay.lanes);
    let on_source = catalog::source(config, &names, source).await.map_err(InitError::legacy)?;
    let on_target = catalog::target(config, target).await.map_err(InitError::new)?;
    refuse_another_installation(config, &names, &on_source, &on_target)?;
    refuse_encodings(&on_source.encoding, &on_target.encoding)?;
    if on_source.knows_a_target && !on_target.has_installation && !choices.restarts() {
        return Err(InitError::Refused(introduce::lost_target()));
    }
    Ok(Plan {
        source: source_steps(config, &names, &on_source, choices.existing)?,
        target: target_steps(config, &on_target),
        notes: adopt::notes(config, &on_source, choices.existing),
    })
}

/// What `init` would do on two databases that have nothing yet: for `--print` where they cannot be reached.
pub fn plan_for_empty(config: &Config) -> Plan {
    let names = Names::new(&config.legacy, config.relay.lanes);
    let source = source_steps(config, &names, &catalog::SourceCatalog::default(), None).unwrap_or_default();
    let target = target_steps(config, &catalog::TargetCatalog::default());
    let note = "The databases were not asked: this is what an empty pair needs. With a connection, init --print shows what these need.";
    Plan { source, target, notes: vec![note.to_owned()] }
}

/// Makes everything that is missing, and introduces the two databases to each other. May be run again.
pub async fn init(config: &Config, source: &PgPool, target: &PgPool, choices: Choices) -> Result<(), InitError> {
    let plan = plan(config, source, target, choices).await?;
    run::run(Side::Legacy, source, &plan.source).await?;
    run::run(Side::New, target, &plan.target).await?;
    introduce::introduce(config, source, target, choices).await
}

/// The relay's tables and indexes on the source, and what the outbox lacks.
fn source_steps(
    config: &Config,
    names: &Names,
    catalog: &catalog::SourceCatalog,
    existing: Option<Existing>,
) -> Result<Vec<Step>, InitError> {
    let mut steps = Vec::new();
    if !catalog.missing_objects(SOURCE_SCHEMA).is_empty() {
        steps.push(Step::together(
            "the relay's own tables beside the outbox",
            "nothing of the application's: the tables are new",
            names.render(SOURCE_SCHEMA),
        ));
    }
    let installation = names.render(&installation_row(config, names));
    match &catalog.outbox {
        None => steps.push(Step::together(
            "the outbox that the application writes to, and what this installation is",
            "nothing: the table is new",
            format!("{}{installation}", names.render(include_str!("../../sql/source/outbox.sql"))),
        )),
        Some(outbox) => {
            let adopting = adopt::Adopting { config, names, outbox, installed: catalog.has_installation, existing };
            steps.extend(adopting.steps(&installation).map_err(InitError::Refused)?);
        }
    }
    steps.extend(index_steps(config, names, catalog));
    if catalog.lanes != i64::from(config.relay.lanes) {
        steps.push(Step::together(
            "the lanes",
            "nothing",
            names.render(&format!(
                "INSERT INTO {{relay}}.lane SELECT generate_series(0, {}) ON CONFLICT DO NOTHING;",
                config.relay.lanes - 1
            )),
        ));
    }
    Ok(steps)
}

const SOURCE_SCHEMA: &str = include_str!("../../sql/source/schema.sql");
const TARGET_SCHEMA: &str = include_str!("../../sql/target/schema.sql");

fn installation_row(config: &Config, names: &Names) -> String {
    format!(
        "\nINSERT INTO {{relay}}.installation (version, outbox, lanes, test_lanes)\n\
         VALUES ({SCHEMA_VERSION}, {}, {}, ({TEST_LANES}))\nON CONFLICT DO NOTHING;",
        literal(&names.outbox),
        config.relay.lanes,
    )
}

fn index_steps(config: &Config, names: &Names, catalog: &catalog::SourceCatalog) -> Vec<Step> {
    let mut steps = Vec::new();
    let schema = ident(&config.legacy.outbox.schema);
    for index in relay_indexes(config) {
        let name = ident(&index.name);
        let definition = names.render(index.definition);
        let Some(outbox) = &catalog.outbox else {
            let sql = format!("CREATE INDEX IF NOT EXISTS {name} {definition};");
            steps.push(Step::together(
                format!("a small partial index: {}", index.why),
                "nothing: the table is new",
                sql,
            ));
            continue;
        };
        if outbox.valid_indexes.contains(&index.name) {
            continue;
        }
        if outbox.kind == "p" {
            steps.extend(partitioned_index(names, &index, outbox, &schema));
            continue;
        }
        if outbox.invalid_indexes.contains(&index.name) {
            steps.push(drop_invalid(&format!("{schema}.{name}")));
        }
        steps.push(Step::alone(
            format!("a small partial index: {}", index.why),
            BUILD_LOCKS,
            format!("CREATE INDEX CONCURRENTLY {name} {definition};"),
        ));
    }
    steps
}

/// Postgres does not make the index of a partitioned table concurrently: first each partition gets its own. Interrupted anywhere,
/// the next run goes on; a partition that is made meanwhile gets it by itself.
fn partitioned_index(names: &Names, index: &catalog::Index, outbox: &catalog::Outbox, schema: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let whole = ident(&index.name);
    if !outbox.invalid_indexes.contains(&index.name) {
        let definition = names.render(&index.definition.replace("ON {outbox}", "ON ONLY {outbox}"));
        steps.push(Step::together(
            format!("a small partial index over all partitions: {}", index.why),
            "SHARE for a moment: only the catalogs change",
            format!("CREATE INDEX {whole} {definition};"),
        ));
    }
    for partition in outbox.partitions.iter().filter(|partition| !partition.attached.contains(&index.name)) {
        let table = format!("{}.{}", ident(&partition.schema), ident(&partition.name));
        let own = catalog::index_name(&partition.name, index.suffix);
        let qualified = format!("{}.{}", ident(&partition.schema), ident(&own));
        if partition.invalid_indexes.contains(&own) {
            steps.push(drop_invalid(&qualified));
        }
        if !partition.valid_indexes.contains(&own) {
            let definition = names.render(&index.definition.replace("ON {outbox}", &format!("ON {table}")));
            let sql = format!("CREATE INDEX CONCURRENTLY {} {definition};", ident(&own));
            steps.push(Step::alone(format!("… on {table}"), BUILD_LOCKS, sql));
        }
        steps.push(Step::together(
            format!("… as {table}'s part of {whole}"),
            "the indexes alone, for a moment",
            format!("ALTER INDEX {schema}.{whole} ATTACH PARTITION {qualified};"),
        ));
    }
    steps
}

const BUILD_LOCKS: &str = "SHARE UPDATE EXCLUSIVE while it reads the table twice and waits for transactions that are open now: readers \
                           and writers go on";

fn drop_invalid(index: &str) -> Step {
    Step::alone(
        "an interrupted run left this index half made: it is made anew",
        "SHARE UPDATE EXCLUSIVE for a moment, once transactions that are open now have ended: readers and writers go on",
        format!("DROP INDEX CONCURRENTLY {index};"),
    )
}

/// The relay's tables on the target.
fn target_steps(config: &Config, catalog: &catalog::TargetCatalog) -> Vec<Step> {
    let names = [("relay", ident(&config.new.schema))];
    let mut steps = Vec::new();
    if !catalog.missing_objects(TARGET_SCHEMA).is_empty() {
        steps.push(Step::together(
            "the relay's own tables in the new database",
            "nothing of the application's: the tables are new",
            render(TARGET_SCHEMA, &names),
        ));
    }
    if !catalog.has_installation {
        let row =
            format!("INSERT INTO {{relay}}.installation (version) VALUES ({SCHEMA_VERSION}) ON CONFLICT DO NOTHING;");
        steps.push(Step::together("what this installation is", "nothing", render(&row, &names)));
    }
    steps
}

/// The new database must be able to write what the outbox can hold, in the relay's own log as well: the id of an aggregate that
/// it has no letters for would stop that aggregate's whole lane.
fn refuse_encodings(source: &str, target: &str) -> Result<(), InitError> {
    if matches!(target, "UTF8" | "SQL_ASCII") || target == source {
        return Ok(());
    }
    Err(InitError::Refused(format!(
        "the new database's encoding is {target}, the legacy one's {source}: it cannot write every text that the outbox can hold. \
         Create it anew with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
    )))
}

fn refuse_another_installation(
    config: &Config,
    names: &Names,
    source: &catalog::SourceCatalog,
    target: &catalog::TargetCatalog,
) -> Result<(), InitError> {
    for (side, version) in [(Side::Legacy, source.version), (Side::New, target.version)] {
        if let Some(version) = version.filter(|v| *v > SCHEMA_VERSION) {
            return Err(InitError::Refused(format!(
                "the relay's tables in the {side} database are of version {version}, made by a newer outbox-relay; this one knows \
                 version {SCHEMA_VERSION}: use the newer program"
            )));
        }
    }
    let Some((lanes, outbox)) = &source.made_for else { return Ok(()) };
    if *lanes != i32::from(config.relay.lanes) {
        return Err(InitError::Refused(format!(
            "relay.lanes is {}, but the relay's tables were made for {lanes}, and that is fixed: set lanes = {lanes}",
            config.relay.lanes
        )));
    }
    if *outbox != names.outbox {
        return Err(InitError::Refused(format!(
            "the schema {} belongs to the outbox {outbox}; give {} its own with [legacy] schema",
            names.relay, names.outbox
        )));
    }
    Ok(())
}
