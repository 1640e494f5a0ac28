//! What is wrong with a mapping: a stable code, the place in the operator's own file, what to do next.

use std::fmt;

use super::build::TableColumn;
use crate::config::Entity;
use crate::session;
use crate::target::Prepared;

/// A mistake in a mapping or handler, found before or while events are applied. The operator's, never an event's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingError {
    /// `mapping.column` and the like; all are listed in the operations guide.
    pub code: &'static str,
    /// What the server or we say.
    pub message: String,
    /// Where it says it, if it did.
    pub sqlstate: Option<String>,
    /// The file, as the operator wrote it; `None` where there is none.
    pub file: Option<String>,
    /// Line and column in it, from 1.
    pub place: Option<(usize, usize)>,
    /// The line's text, and the length of the word that is meant.
    pub excerpt: Option<(String, usize)>,
    /// `did you mean "payload"?`
    pub suggestion: Option<String>,
    /// The entity.
    pub entity: String,
    /// Its table, if it has one.
    pub table: Option<String>,
    /// Whether the server could not be asked at all (it is away): not a mistake, ask again.
    pub unreachable: bool,
}

impl MappingError {
    fn new(entity: &Entity, code: &'static str, message: String) -> MappingError {
        MappingError {
            code,
            message,
            sqlstate: None,
            file: entity.mapping.as_ref().map(|f| f.path.display().to_string()),
            place: None,
            excerpt: None,
            suggestion: None,
            entity: entity.name.clone(),
            table: entity.table.as_ref().map(|t| format!("{}.{}", t.schema, t.table)),
            unreachable: false,
        }
    }

    /// As the log may have it: what a server quotes of a row is left out.
    pub(crate) fn logged(&self) -> String {
        format!("mapping of {}: {} {}", self.entity, self.code, self.sqlstate.as_deref().unwrap_or_default())
    }

    /// The server could not be asked.
    pub fn database(entity: &Entity, error: sqlx::Error) -> MappingError {
        let sqlstate = session::sqlstate(&error).map(|code| code.into_owned());
        let unreachable = is_away(&error);
        MappingError {
            sqlstate,
            unreachable,
            ..MappingError::new(entity, "mapping.database", crate::disposition::told(&error))
        }
    }

    pub(super) fn several_statements(entity: &Entity, file: &str) -> MappingError {
        let mut error =
            MappingError::new(entity, "mapping.several", "more than one statement; one is wanted".to_owned());
        error.file = Some(file.to_owned());
        error
    }

    pub(super) fn no_table(entity: &Entity, table: &str) -> MappingError {
        MappingError::new(
            entity,
            "mapping.table",
            format!("table {table} does not exist in the new database, or may not be seen"),
        )
    }

    pub(super) fn no_key_column(entity: &Entity, key: &str, table: &str, columns: &[TableColumn]) -> MappingError {
        let mut error =
            MappingError::new(entity, "mapping.key", format!("key column \"{key}\" does not exist in {table}"));
        error.suggestion = closest(key, columns.iter().map(|c| c.name.as_str()));
        error
    }

    pub(super) fn key_not_yielded(entity: &Entity, file: &str, key: &str) -> MappingError {
        let message = format!("the mapping does not yield key column \"{key}\": add … AS {key}");
        MappingError { file: Some(file.to_owned()), ..MappingError::new(entity, "mapping.key", message) }
    }

    pub(super) fn no_such_target_column(
        entity: &Entity,
        file: &str,
        column: &str,
        table: &str,
        columns: &[TableColumn],
    ) -> MappingError {
        let message = format!("the mapping yields \"{column}\", which {table} has not (or which is generated)");
        let mut error =
            MappingError { file: Some(file.to_owned()), ..MappingError::new(entity, "mapping.column", message) };
        error.suggestion = closest(column, columns.iter().map(|c| c.name.as_str()));
        if let Some(mapping) = &entity.mapping {
            error.point_at(&mapping.text, column);
        }
        error
    }

    /// The server refused a statement made of the operator's text.
    pub(crate) fn refused(entity: &Entity, statement: &Prepared, error: sqlx::Error) -> MappingError {
        if is_away(&error) {
            return MappingError::database(entity, error);
        }
        let Some(database) = error.as_database_error() else { return MappingError::database(entity, error) };
        let postgres = database.try_downcast_ref::<sqlx::postgres::PgDatabaseError>();
        let sqlstate = database.code().map(|c| c.into_owned()).unwrap_or_default();
        let code = match sqlstate.as_str() {
            "42703" => "mapping.column",
            "42P01" => "mapping.table",
            "42883" => "mapping.function",
            "42601" => "mapping.syntax",
            "42804" | "42846" => "mapping.type",
            "42501" => "mapping.grant",
            "42P10" => "mapping.key",
            _ => "mapping.refused",
        };
        let mut message = database.message().to_owned();
        if code == "mapping.key" && message.contains("ON CONFLICT") {
            message = format!("no unique constraint on the key ({}) of the table", entity.key.join(", "));
        }
        let mut found = MappingError::new(entity, code, message);
        found.file.clone_from(&statement.file);
        if let Some(postgres) = postgres {
            if let Some(sqlx::postgres::PgErrorPosition::Original(position)) = postgres.position() {
                found.place = statement.place(position);
            }
            if code == "mapping.type"
                && let Some((column, wanted)) = types_of(postgres.message())
            {
                found.suggestion = Some(format!("write the cast: (…)::{wanted} AS {column}"));
                found.point_at(&statement.user_text, &column);
            }
        }
        if let Some((line, column)) = found.place {
            let text = statement.user_text.lines().nth(line - 1).unwrap_or_default().to_owned();
            let word = word_at(&text, column);
            if code == "mapping.column" {
                found.suggestion = closest(&word, EVENT_COLUMNS.into_iter());
            }
            found.excerpt = Some((text, word.chars().count().max(1)));
        }
        found.sqlstate = Some(sqlstate);
        found
    }

    /// Finds a word in the file, where the server gave no place.
    fn point_at(&mut self, text: &str, word: &str) {
        for (at, line) in text.lines().enumerate() {
            let position = line.match_indices(word).map(|(at, _)| at).filter(|at| stands_alone(line, *at, word)).last();
            if let Some(position) = position {
                self.place = Some((at + 1, line[..position].chars().count() + 1));
                self.excerpt = Some((line.to_owned(), word.chars().count()));
                return;
            }
        }
    }

    /// One line, for logs and `last_error`.
    pub fn one_line(&self) -> String {
        let mut line = format!("{}: {}", self.code, self.message);
        if let Some(sqlstate) = &self.sqlstate {
            line.push_str(&format!(" ({sqlstate})"));
        }
        if let Some(file) = &self.file {
            line.push_str(&format!(" at {file}"));
            if let Some((l, c)) = self.place {
                line.push_str(&format!(":{l}:{c}"));
            }
        }
        line
    }
}

/// Whether the server could not be asked. While a batch is applied, 0A000 is a stale plan and passes by itself; of a statement
/// that is being prepared it says that Postgres cannot do this at all (a data-modifying WITH in a mapping, say).
fn is_away(error: &sqlx::Error) -> bool {
    session::sqlstate(error).as_deref() != Some("0A000") && crate::disposition::is_transient(error)
}

/// Whether the word is not a part of a longer one, nor in a comment.
fn stands_alone(line: &str, at: usize, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let before = &line[..at];
    !before.ends_with(part) && !line[at + word.len()..].starts_with(part) && !before.contains("--")
}

const EVENT_COLUMNS: [&str; 8] =
    ["id", "event_id", "aggregate_type", "aggregate_id", "event_type", "payload", "headers", "created_at"];

/// `column "x" is of type integer but expression is of type jsonb`: the column and its type. Only to say more than the server
/// does; nothing is decided by it.
fn types_of(message: &str) -> Option<(String, String)> {
    let rest = message.strip_prefix("column \"")?;
    let (column, rest) = rest.split_once("\" is of type ")?;
    let (wanted, _) = rest.split_once(" but expression is of type ")?;
    Some((column.to_owned(), wanted.to_owned()))
}

fn word_at(line: &str, column: usize) -> String {
    line.chars().skip(column.saturating_sub(1)).take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn closest<'a>(word: &str, among: impl Iterator<Item = &'a str>) -> Option<String> {
    among
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance * 3 <= candidate.len().max(3))
        .min()
        .map(|(_, candidate)| format!("did you mean \"{candidate}\"?"))
}

impl fmt::Display for MappingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        if let Some(sqlstate) = &self.sqlstate {
            write!(f, " ({sqlstate})")?;
        }
        if let Some(file) = &self.file {
            write!(f, "\n  --> {file}")?;
        }
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
            if let Some((text, length)) = &self.excerpt {
                let suggestion = self.suggestion.as_deref().unwrap_or_default();
                let pad = " ".repeat(column - 1);
                write!(f, "\n{line:2} | {text}\n   | {pad}{} {suggestion}", "^".repeat(*length))?;
            }
        } else if let Some(suggestion) = &self.suggestion {
            write!(f, "\n  {suggestion}")?;
        }
        write!(f, "\n  entity {}", self.entity)?;
        if let Some(table) = &self.table {
            write!(f, ", target table {table}")?;
        }
        Ok(())
    }
}

impl std::error::Error for MappingError {}
