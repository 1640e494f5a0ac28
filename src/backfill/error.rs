//! Why a copy cannot go on.

use std::time::Duration;

use crate::config::{Entity, RowsFrom, TableName};
use crate::connect::{self, ConnectError};
use crate::disposition::{self, logged, told};
use crate::init::Side;
use crate::job::Ending;
use crate::mapping::MappingError;
use crate::plan::PlanError;
use crate::redact::Quoting;
use crate::session::{is_late, is_lock_timeout};
use crate::source::KeyTrouble;
use crate::sql::ident;

/// Why it cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// A database is away at the start, or not ready.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The mapping is wrong.
    #[error("{0}")]
    Mapping(Box<MappingError>),
    /// Refused, with what to do.
    #[error("{0}")]
    Refused(String),
    /// Likewise, because of rows that may be quoted.
    #[error("{message}")]
    Rows {
        /// SQLSTATE, or `too_many_refused`.
        code: String,
        /// What is to be done.
        message: String,
        /// The same without a row's values, for the log.
        logged: String,
    },
    /// Somebody has begun it anew meanwhile.
    #[error(
        "the copy of {entity} was begun anew by somebody else, and this one notes nothing any more: outbox-relay backfill --status tells \
         how far the other one is"
    )]
    BegunAnew {
        /// Whose.
        entity: String,
    },
    /// A database said no.
    #[error("{side}: {}", told(error))]
    Database {
        /// `legacy` or `new`.
        side: &'static str,
        /// What it said.
        error: sqlx::Error,
    },
}

impl BackfillError {
    /// Whether it passes by itself.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            BackfillError::Database { error, .. } => disposition::is_transient(error),
            BackfillError::Connect(ConnectError::Away { .. }) => true,
            BackfillError::Mapping(error) => error.unreachable,
            _ => false,
        }
    }

    /// As the log may have it: what a server quotes of a row is left out.
    pub(crate) fn logged(&self) -> String {
        match self {
            BackfillError::Database { side, error } => format!("{side}: {}", logged(error)),
            BackfillError::Mapping(error) => error.logged(),
            BackfillError::Rows { logged, .. } => logged.clone(),
            BackfillError::Connect(_) | BackfillError::Refused(_) | BackfillError::BegunAnew { .. } => self.to_string(),
        }
    }

    /// As whoever may see so much is told. What is wrong with a mapping was found before it was given a row.
    pub fn shown(&self, quoting: Quoting) -> String {
        match (self, quoting) {
            (BackfillError::Mapping(error), _) => error.to_string(),
            (other, Quoting::NoValues) => other.logged(),
            (other, Quoting::Values) => other.to_string(),
        }
    }

    /// As its job ends, and is kept for those who may see most.
    pub(crate) fn ending(&self, quoting: Quoting) -> Ending {
        let message = self.shown(quoting);
        match self {
            BackfillError::BegunAnew { .. } => Ending::Failed { code: "begun_anew".to_owned(), message },
            BackfillError::Rows { code, .. } => Ending::Failed { code: code.clone(), message },
            BackfillError::Database { error, .. } => Ending::failed(Some(error), message),
            BackfillError::Connect(error) => Ending::failed(error.database(), message),
            BackfillError::Mapping(_) | BackfillError::Refused(_) => Ending::failed(None, message),
        }
    }
}

impl From<PlanError> for BackfillError {
    fn from(PlanError { side, error }: PlanError) -> BackfillError {
        match side {
            Side::Legacy => legacy(error),
            Side::New => new(error),
        }
    }
}

pub(super) fn legacy(error: sqlx::Error) -> BackfillError {
    BackfillError::Database { side: "legacy", error }
}

pub(super) fn new(error: sqlx::Error) -> BackfillError {
    BackfillError::Database { side: "new", error }
}

/// Whether reading took too long by itself. Who waits for a lock waits for whoever holds it.
pub(super) fn is_too_slow(error: &sqlx::Error) -> bool {
    is_late(error) && !is_lock_timeout(error)
}

/// Why the legacy rows were not read: what passes by itself is left as it is.
pub(super) fn unread(entity: &Entity, error: sqlx::Error) -> BackfillError {
    if disposition::is_transient(&error) { legacy(error) } else { unreadable(entity, error) }
}

/// The legacy rows cannot be read. A key that does not tell them apart says itself what to do.
pub(super) fn unreadable(entity: &Entity, error: sqlx::Error) -> BackfillError {
    if KeyTrouble::of(&error).is_some() {
        return legacy(error);
    }
    let say = |said: String| {
        format!(
            "entity {0}: its legacy rows cannot be read: {said}. Look whether the relay's role has its grants in the legacy database (outbox-relay \
             init --print), and whether entity.legacy.aggregate_id can be evaluated for every row of {1}. Then: outbox-relay backfill {0}",
            entity.name,
            rows_of(entity)
        )
    };
    let code = crate::job::code(Some(&error));
    BackfillError::Rows { code, message: say(told(&error)), logged: say(logged(&error)) }
}

/// The table, or the query's file.
fn rows_of(entity: &Entity) -> String {
    match entity.legacy.as_ref().map(|rows| &rows.from) {
        Some(RowsFrom::Table(table)) => table.to_string(),
        Some(RowsFrom::Query(file)) => file.path.display().to_string(),
        None => String::new(),
    }
}

/// Their keys were not read in time, again and again, though the database answers.
pub(super) fn keys_late(entity: &Entity, deadline: Duration) -> BackfillError {
    let key = entity.legacy.as_ref().map(|rows| rows.key.as_slice()).unwrap_or_default();
    let remedy = match entity.legacy.as_ref().map(|rows| &rows.from) {
        Some(RowsFrom::Table(table)) => {
            let columns: Vec<String> = key.iter().map(|column| ident(column)).collect();
            format!(
                "an index of {table} has to begin with the key ({}), in this order: CREATE INDEX CONCURRENTLY ON {}.{} ({})",
                key.join(", "),
                ident(&table.schema),
                ident(&table.table),
                columns.join(", ")
            )
        }
        _ => format!(
            "an index has to yield the rows of {} in the order of the key ({}), without a sort of all of them",
            rows_of(entity),
            key.join(", ")
        ),
    };
    BackfillError::Refused(format!(
        "entity {0}: a page of its legacy keys was not read within {deadline:?}, again and again: {remedy}; or raise relay.deadline. Then: \
         outbox-relay backfill {0}",
        entity.name
    ))
}

pub(super) fn tables_of_this_version(error: sqlx::Error) -> BackfillError {
    if connect::is_undefined(&error) || connect::is_undefined_column(&error) {
        return BackfillError::Refused(
            "the new database does not have the tables of this version yet: run outbox-relay init".to_owned(),
        );
    }
    new(error)
}

pub(super) fn sequence(entity: &Entity, error: sqlx::Error) -> BackfillError {
    let say = |said: String, remedy: &str| {
        format!(
            "entity {}: its rows are copied, but the sequences of its table could not be set past the highest value: {said}. {remedy}, \
             then: outbox-relay backfill {0}",
            entity.name
        )
    };
    let code = crate::session::sqlstate(&error).unwrap_or_default().into_owned();
    match code.as_str() {
        "42501" => BackfillError::Refused(say(told(&error), "GRANT USAGE, SELECT, UPDATE on them to the relay's role")),
        // The server names the value.
        "22003" => {
            let remedy = "Give the sequence room for that (ALTER SEQUENCE … AS bigint MAXVALUE …), or take the default off its column";
            BackfillError::Rows {
                code: code.clone(),
                message: say(told(&error), remedy),
                logged: say(logged(&error), remedy),
            }
        }
        _ => new(error),
    }
}

/// The same, where that took too long again and again.
pub(super) fn sequence_late(
    entity: &Entity,
    table: &TableName,
    (column, sequence): (&str, &str),
    error: &sqlx::Error,
) -> BackfillError {
    BackfillError::Refused(format!(
        "entity {}: its rows are copied, but {sequence} could not be set past the highest {column} of {table}: {}. Let whoever holds a lock \
         of either end; where no index of {table} begins with {column}, all rows are read for it: CREATE INDEX CONCURRENTLY ON {}.{} ({}), or \
         raise relay.deadline. Then: outbox-relay backfill {0}",
        entity.name,
        told(error),
        ident(&table.schema),
        ident(&table.table),
        ident(column)
    ))
}
