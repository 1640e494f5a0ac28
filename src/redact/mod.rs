//! What of a row may be shown to whom. Pure: text in, text out.
//!
//! Guarantees: what is not hidden comes out byte for byte (no number is rounded, no duplicate key is lost); where it cannot be told
//! whether a text holds what is to be hidden, it is hidden. Hides nothing of an aggregate's type and id, for these are what an
//! operator names an event by, and nothing of what a mapping writes: that is the new database's own affair.

mod json;
mod path;
mod said;

use std::borrow::Cow;
use std::sync::Arc;

pub use self::path::Path;
use self::said::reason_without_values;
pub use self::said::{loggable, without_values};
use crate::config::{Entity, TableName};

/// What stands in the place of what is hidden.
pub const HIDDEN: &str = "[redacted]";
/// The same as JSON.
const HIDDEN_JSON: &str = "\"[redacted]\"";

/// `[redact]`: what is hidden from everybody, and from whom all of a payload is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// Values of payloads that nobody is shown.
    pub paths: Vec<Path>,
    /// Columns of the new database's tables that nobody is shown.
    pub columns: Vec<Column>,
    /// Whether who may only read is shown payloads at all.
    pub payloads_for_readers: bool,
}

/// A column of a table, or all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The table's schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// `None`: all of its columns.
    pub column: Option<String>,
}

/// The rules, as they are for one who looks.
#[derive(Debug, Clone)]
pub struct Sight {
    rules: Arc<Rules>,
    values: bool,
}

/// How much of what a server says of rows may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quoting {
    /// All of it.
    Values,
    /// What is known not to quote a row.
    NoValues,
}

impl Quoting {
    /// Why work failed, which was kept with its code. `None`: it may quote a row wherever it stands.
    pub fn reason(self, code: &str, message: String) -> Option<String> {
        match self {
            Quoting::Values => Some(message),
            Quoting::NoValues => reason_without_values(code, &message),
        }
    }
}

impl Rules {
    /// For one who may do everything.
    pub fn for_admins(self: &Arc<Self>) -> Sight {
        Sight { rules: self.clone(), values: true }
    }

    /// For one who may only read.
    pub fn for_readers(self: &Arc<Self>) -> Sight {
        Sight { rules: self.clone(), values: self.payloads_for_readers }
    }

    /// A server's message as the log may have it: what it quotes of a payload is never logged, and of an aggregate type with
    /// hidden paths nothing that may hold a value.
    pub fn logged(&self, aggregate_type: &str, code: &str, message: &str) -> String {
        match self.of(aggregate_type).next() {
            Some(_) => said::without_values(code, message),
            None => loggable(code, message),
        }
    }

    fn of<'r>(&'r self, aggregate_type: &'r str) -> impl Iterator<Item = &'r Path> {
        self.paths.iter().filter(move |path| path.is_of(aggregate_type))
    }
}

impl Sight {
    /// Whether anything is hidden of this type's payloads, and so of whatever may quote them.
    pub fn is_limited(&self, aggregate_type: &str) -> bool {
        !self.values || self.rules.of(aggregate_type).next().is_some()
    }

    /// Whether anything at all is hidden: of some type's payloads, or of some table's rows.
    pub fn is_limited_anywhere(&self) -> bool {
        !self.values || !self.rules.paths.is_empty() || !self.rules.columns.is_empty()
    }

    /// What is shown of a server's words on work with these entities, by name; none named: with all that there are. One that is not among
    /// them may have anything to hide.
    pub fn quoting(&self, all: &[Entity], names: &[String]) -> Quoting {
        let is_limited = |of: &Entity| {
            let hides_columns = |table: &TableName| self.columns_of(&table.schema, &table.table).next().is_some();
            self.is_limited(&of.aggregate_type) || of.table.as_ref().is_some_and(hides_columns)
        };
        let of = |name: &String| all.iter().find(|of| of.name == *name);
        let limited = match names {
            [] => !self.values || all.iter().any(is_limited),
            names => names.iter().any(|name| of(name).map_or_else(|| self.is_limited_anywhere(), is_limited)),
        };
        if limited { Quoting::NoValues } else { Quoting::Values }
    }

    /// A payload: JSON text in, JSON text out. What is no JSON is hidden where anything is to be.
    pub fn payload<'t>(&self, aggregate_type: &str, text: &'t str) -> Cow<'t, str> {
        if !self.values {
            return Cow::Borrowed(HIDDEN_JSON);
        }
        let paths: Vec<&Path> = self.rules.of(aggregate_type).collect();
        json::cut(text, &paths)
    }

    /// An event's headers, JSON text: all or nothing.
    pub fn headers<'t>(&self, text: &'t str) -> Cow<'t, str> {
        Cow::Borrowed(if self.values { text } else { HIDDEN_JSON })
    }

    /// A server's message, with its SQLSTATE or the relay's own code.
    pub fn message(&self, aggregate_type: &str, code: &str, message: String) -> String {
        if self.is_limited(aggregate_type) { said::without_values(code, &message) } else { message }
    }

    /// `last_error`, which begins with the code.
    pub fn last_error(&self, aggregate_type: &str, line: String) -> String {
        if self.is_limited(aggregate_type) { said::line_without_values(&line) } else { line }
    }

    /// Postgres' DETAIL, which shows the values of a row.
    pub fn detail(&self, aggregate_type: &str, detail: String) -> String {
        if self.is_limited(aggregate_type) { HIDDEN.to_owned() } else { detail }
    }

    /// A row of a table of the new database, as a JSON object.
    pub fn row<'t>(&self, schema: &str, table: &str, text: &'t str) -> Cow<'t, str> {
        if !self.values {
            return Cow::Borrowed(HIDDEN_JSON);
        }
        let columns: Vec<Path> =
            self.columns_of(schema, table).map(|column| Path::member(column.column.as_deref())).collect();
        json::cut(text, &columns.iter().collect::<Vec<_>>())
    }

    /// What a server says of a row of a table, made of such a payload: it may quote either.
    pub fn message_of_row(&self, aggregate_type: &str, table: &TableName, code: &str, message: String) -> String {
        if self.columns_of(&table.schema, &table.table).next().is_some() {
            return said::without_values(code, &message);
        }
        self.message(aggregate_type, code, message)
    }

    /// Whether values of any of a table's columns may not be shown.
    pub fn hides_any_of(&self, schema: &str, table: &str) -> bool {
        !self.values || self.columns_of(schema, table).next().is_some()
    }

    /// Whether a column's values may not be shown.
    pub fn hides(&self, schema: &str, table: &str, column: &str) -> bool {
        !self.values
            || self.columns_of(schema, table).any(|hidden| hidden.column.as_deref().is_none_or(|name| name == column))
    }

    fn columns_of(&self, schema: &str, table: &str) -> impl Iterator<Item = &Column> {
        self.rules.columns.iter().filter(move |column| column.schema == schema && column.table == table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(paths: &[&str]) -> Arc<Rules> {
        let column = |name: Option<&str>| Column {
            schema: "public".into(),
            table: "users".into(),
            column: name.map(str::to_owned),
        };
        let paths = paths.iter().map(|path| path.parse().unwrap()).collect();
        Arc::new(Rules { paths, columns: vec![column(Some("email"))], payloads_for_readers: false })
    }

    #[test]
    fn a_reader_sees_no_value_and_an_admin_all_but_what_is_configured() {
        let rules = rules(&["User: $.email"]);
        let (admin, reader) = (rules.for_admins(), rules.for_readers());
        let payload = r#"{"email": "a@b.c", "n": 1}"#;
        assert_eq!(reader.payload("Order", payload), HIDDEN_JSON);
        assert_eq!(reader.headers("{}"), HIDDEN_JSON);
        assert_eq!(admin.headers("{}"), "{}");
        assert_eq!(admin.payload("Order", payload), payload);
        assert_eq!(admin.payload("User", payload), r#"{"email": "[redacted]", "n": 1}"#);
        let told = "invalid input syntax for type integer: \"a@b.c\"";
        assert_eq!(admin.message("Order", "22P02", told.into()), told);
        for sight in [&admin, &reader] {
            assert_eq!(sight.message("User", "22P02", told.into()), "invalid input syntax for type integer: \"…\"");
            assert_eq!(sight.detail("User", "Key (email)=(a@b.c) already exists.".into()), HIDDEN);
            assert_eq!(sight.last_error("User", format!("P0001: {told}")), "P0001: [redacted]");
        }
        let allowed = Arc::new(Rules { payloads_for_readers: true, ..Rules::clone(&rules) }).for_readers();
        assert_eq!(allowed.payload("Order", payload), payload);
        assert_eq!(allowed.payload("User", payload), r#"{"email": "[redacted]", "n": 1}"#);
    }

    #[test]
    fn of_work_it_is_told_what_may_be_seen_of_all_its_entities() {
        let entity = |kind: &str, table: &str| {
            let table = TableName { schema: "public".into(), table: table.into() };
            Entity { name: table.table.clone(), ..Entity::new(kind, table, &["id"]) }
        };
        let all = [entity("User", "people"), entity("Account", "users"), entity("Order", "orders")];
        let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (some, none) = (rules(&["User: $.email"]), Arc::new(Rules::default()));
        for (rules, names, quoting) in [
            (&some, &["people"][..], Quoting::NoValues),
            (&some, &["users"], Quoting::NoValues),
            (&some, &["orders"], Quoting::Values),
            (&some, &["orders", "users"], Quoting::NoValues),
            (&some, &["gone"], Quoting::NoValues),
            (&some, &[], Quoting::NoValues),
            (&none, &["people", "gone"], Quoting::Values),
            (&none, &[], Quoting::Values),
        ] {
            assert_eq!(rules.for_admins().quoting(&all, &named(names)), quoting, "{names:?}");
            assert_eq!(rules.for_readers().quoting(&all, &named(names)), Quoting::NoValues, "{names:?}");
        }
    }

    #[test]
    fn a_column_is_hidden_in_rows_of_its_table_alone() {
        let sight = rules(&[]).for_admins();
        let row = r#"{"id":1,"email":"a@b.c"}"#;
        assert_eq!(sight.row("public", "users", row), r#"{"id":1,"email":"[redacted]"}"#);
        assert_eq!(sight.row("public", "orders", row), row);
        assert!(sight.hides("public", "users", "email") && !sight.hides("public", "users", "id"));
        assert!(!sight.hides("other", "users", "email"));
        assert!(rules(&[]).for_readers().hides("public", "users", "id"));
    }

    #[test]
    fn the_log_has_no_value_of_a_type_with_hidden_paths() {
        let rules = rules(&["User: $.email"]);
        assert_eq!(rules.logged("Order", "P0001", "no a@b.c here"), "no a@b.c here");
        assert_eq!(rules.logged("User", "P0001", "no a@b.c here"), HIDDEN);
    }
}
