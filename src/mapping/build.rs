//! The statements that are made of a mapping.
//!
//! `batch` is the batch's events. The operator's `SELECT` stands in a lateral subquery, so that it sees one event at a time and
//! each of its rows is known by the event that it came from.

use super::text::{Statement, With};
use super::text_array;
use crate::sql::{ident, literal, operator};
use crate::target::{EVENTS, Prepared};

/// A column of the target table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableColumn {
    pub(super) name: String,
    pub(super) oid: u32,
    /// Without length or precision.
    pub(super) type_name: String,
    /// With them.
    pub(super) full_type: String,
    pub(super) always_identity: bool,
    /// Where its type's own operators are, if its type has any.
    pub(super) operators: Option<String>,
    /// Its collation, quoted, if by that words that differ may be equal.
    pub(super) folding: Option<String>,
}

impl TableColumn {
    /// Whether two values can be equal that are not written alike, as no built-in type of keys has it.
    fn may_be_written_otherwise(&self) -> bool {
        self.folding.is_some() || self.operators.as_deref().is_some_and(|schema| schema != "pg_catalog")
    }

    /// `left.column = right.column`, as its type compares.
    pub(super) fn equal(&self, left: &str, right: &str) -> String {
        format!("{left} {} {right}", operator(self.operators.as_deref(), "="))
    }
}

/// A column that the mapping yields.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub(super) column: TableColumn,
    /// Whether it is text that must be read as the column's type.
    pub(super) convert: bool,
}

/// Whose statement it is.
pub(super) struct Context<'a> {
    pub(super) table: &'a str,
    pub(super) relay: &'a str,
    pub(super) columns: &'a [TableColumn],
    pub(super) key: &'a [String],
    pub(super) owner: &'a [String],
    pub(super) string_payloads: bool,
}

/// The operator's `SELECT`, ready to stand in parentheses with `event` in scope.
pub(super) struct UserText {
    before: String,
    body: String,
    file_text: String,
    body_at: usize,
    file: Option<String>,
}

const ONE_EVENT: &str = "event AS (SELECT b.id, b.event_id, b.aggregate_type, b.aggregate_id, b.event_type, b.payload, \
                         b.headers, b.created_at)";

impl UserText {
    pub(super) fn new(parsed: &Statement<'_>, file_text: &str, file: Option<String>) -> UserText {
        let before = match parsed.with {
            None => format!("WITH {ONE_EVENT} "),
            Some(With::Plain) => format!("WITH {ONE_EVENT}, "),
            Some(With::Recursive) => format!("WITH RECURSIVE {ONE_EVENT}, "),
        };
        UserText {
            before,
            body: parsed.body.to_owned(),
            file_text: file_text.to_owned(),
            body_at: parsed.body_at,
            file,
        }
    }

    /// `prefix ( … ) suffix`, with the place of the operator's text remembered.
    pub(super) fn within(&self, prefix: &str, suffix: &str) -> Prepared {
        let head = format!("{prefix}({}", self.before);
        let at = head.chars().count();
        Prepared {
            sql: format!("{head}{}\n){suffix}", self.body),
            // Counted as if the whole file stood there, so that places are those of the file.
            user_text_at: at.saturating_sub(self.body_at),
            user_text: self.file_text.clone(),
            file: self.file.clone(),
        }
    }

    /// `WITH batch …, mapped AS (…rows with relay_event…)` then `rest`.
    fn mapped(&self, output: &[Output], rest: &str) -> Prepared {
        let columns: String =
            output.iter().map(|o| format!(", {} AS {}", o.converted(), ident(&o.column.name))).collect();
        let prefix = format!(
            "WITH batch AS {EVENTS}, mapped AS (SELECT b.id AS relay_event, \
             pg_catalog.jsonb_typeof(b.payload) AS relay_payload, m.relay_found IS NOT NULL AS relay_found{columns} \
             FROM batch b LEFT JOIN LATERAL (SELECT true AS relay_found, u.* FROM "
        );
        // A left join, for an event without rows must be seen; `relay_found` tells a row of NULLs from none.
        let suffix = format!(" AS u) AS m ON true), {rest}");
        self.within(&prefix, &suffix)
    }
}

impl Output {
    /// Text is read as input would be: by the type's input function, never cut to a length (that is checked on assignment).
    fn converted(&self) -> String {
        let column = format!("m.{}", ident(&self.column.name));
        let type_name = &self.column.type_name;
        match (&self.column.folding, self.convert) {
            (Some(collation), true) => format!("({column}::pg_catalog.text::{type_name}) COLLATE {collation}"),
            // A uuid, say, which is assigned to a text, and has no collation.
            (Some(collation), false) => format!("({column}::{type_name}) COLLATE {collation}"),
            (None, true) => format!("{column}::pg_catalog.text::{type_name}"),
            (None, false) => column,
        }
    }
}

/// What the mapping yields, for a look at its columns.
pub(super) fn describe(user: &UserText) -> Prepared {
    user.within(&format!("WITH batch AS {EVENTS} SELECT m.* FROM batch b CROSS JOIN LATERAL "), " AS m")
}

/// The converted rows as JSON.
pub(super) fn preview(user: &UserText, output: &[Output]) -> Prepared {
    let columns: Vec<String> = output.iter().map(|o| ident(&o.column.name)).collect();
    user.mapped(
        output,
        &format!(
            "written AS (SELECT relay_event, {} FROM mapped WHERE relay_found) \
             SELECT (pg_catalog.to_jsonb(written) - 'relay_event')::pg_catalog.text AS row FROM written ORDER BY relay_event",
            columns.join(", ")
        ),
    )
}

/// Writes the rows, the last one for each key, in key order (two lanes that write the same rows must not deadlock).
pub(super) fn upsert(context: &Context<'_>, user: &UserText, output: &[Output]) -> Prepared {
    let columns = output.iter().map(|o| ident(&o.column.name)).collect::<Vec<_>>().join(", ");
    let key = list(context.key);
    let overriding = if output.iter().any(|o| o.column.always_identity) { " OVERRIDING SYSTEM VALUE" } else { "" };
    let set: Vec<String> = output
        .iter()
        .filter(|o| !context.key.contains(&o.column.name) || o.column.may_be_written_otherwise())
        .map(|o| format!("{0} = excluded.{0}", ident(&o.column.name)))
        .collect();
    let conflict = if set.is_empty() { "DO NOTHING".to_owned() } else { format!("DO UPDATE SET {}", set.join(", ")) };
    let table = context.table;
    if context.owner.is_empty() {
        return user.mapped(
            output,
            &format!(
                "keyed AS (SELECT * FROM mapped WHERE {}) \
                 INSERT INTO {table} ({columns}){overriding} SELECT DISTINCT ON ({key}) {columns} FROM keyed \
                 ORDER BY {key}, relay_event DESC ON CONFLICT ({key}) {conflict}",
                context.whole(&context.key_or_refuse())
            ),
        );
    }
    let owner = list(context.owner);
    let rest: Vec<&String> = context.key.iter().filter(|k| !context.owner.contains(k)).collect();
    let names_only_the_owner = if rest.is_empty() {
        "false".to_owned()
    } else {
        rest.iter().map(|k| format!("m.{} IS NULL", ident(k))).collect::<Vec<_>>().join(" AND ")
    };
    user.mapped(
        output,
        &format!(
            "owner AS MATERIALIZED (SELECT DISTINCT ON ({owner}) {owner}, relay_event FROM mapped WHERE {} \
               ORDER BY {owner}, relay_event DESC), \
             latest AS MATERIALIZED (SELECT m.* FROM mapped m JOIN owner o ON {} AND m.relay_event = o.relay_event \
               WHERE NOT ({names_only_the_owner})), \
             gone AS (DELETE FROM {table} AS t USING owner o WHERE {} \
               AND NOT EXISTS (SELECT FROM latest l WHERE {})) \
             INSERT INTO {table} ({columns}){overriding} SELECT DISTINCT ON ({key}) {columns} FROM latest m \
             ORDER BY {key}, relay_event DESC ON CONFLICT ({key}) {conflict}",
            context.whole(&context.owner_or_refuse()),
            context.equal(context.owner, "m", "o"),
            context.equal(context.owner, "t", "o"),
            context.equal(context.key, "l", "t"),
        ),
    )
}

/// Deletes the rows whose key (whose owner, with `replace_by`) the mapping yields.
pub(super) fn delete(context: &Context<'_>, user: &UserText, output: &[Output]) -> Prepared {
    let by = if context.owner.is_empty() { context.key } else { context.owner };
    let needed: Vec<Output> = output.iter().filter(|o| by.contains(&o.column.name)).cloned().collect();
    let check = if context.owner.is_empty() { context.key_or_refuse() } else { context.owner_or_refuse() };
    user.mapped(
        &needed,
        &format!(
            "keyed AS (SELECT DISTINCT {} FROM mapped WHERE {check}) DELETE FROM {} AS t USING keyed k WHERE {}",
            list(by),
            context.table,
            context.equal(by, "t", "k"),
        ),
    )
}

/// The operator's own statement, with `event` in scope at its top.
pub(super) fn handler(parsed: &Statement<'_>, file_text: &str, file: &str) -> Prepared {
    let event = format!("event AS {EVENTS}");
    let head = match parsed.with {
        None => format!("WITH {event} "),
        Some(With::Plain) => format!("WITH {event}, "),
        Some(With::Recursive) => format!("WITH RECURSIVE {event}, "),
    };
    Prepared {
        user_text_at: head.chars().count().saturating_sub(parsed.body_at),
        sql: format!("{head}{}", parsed.body),
        user_text: file_text.to_owned(),
        file: Some(file.to_owned()),
    }
}

/// Where no mapping is given: the payload's keys of the same names. A missing key is the event's error, JSON null is NULL.
pub(super) fn same_names(columns: &[TableColumn], relay: &str) -> UserText {
    let names = text_array(columns.iter().map(|c| c.name.as_str()));
    let record: Vec<String> = columns.iter().map(|c| format!("{} {}", ident(&c.name), c.full_type)).collect();
    let list: Vec<String> = columns.iter().map(|c| format!("r.{}", ident(&c.name))).collect();
    let body = format!(
        "SELECT {} FROM event CROSS JOIN LATERAL pg_catalog.jsonb_to_record(CASE \
         WHEN pg_catalog.jsonb_typeof(event.payload) <> 'object' THEN CASE WHEN {relay}.refuse('22023', {}) THEN event.payload END \
         WHEN event.payload ?& {names} THEN event.payload \
         WHEN {relay}.refuse('22023', 'the payload has no key ' || (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(k), ', ') \
         FROM pg_catalog.unnest({names}) AS k WHERE NOT event.payload ? k)) THEN event.payload END) AS r({})",
        list.join(", "),
        not_an_object("pg_catalog.jsonb_typeof(event.payload)"),
        record.join(", "),
        relay = ident(relay),
    );
    UserText { before: format!("WITH {ONE_EVENT} "), body, file_text: String::new(), body_at: 0, file: None }
}

/// The same over legacy rows: a column that the row does not have is NULL there, and the target's to refuse. (column, type)
pub(super) fn same_names_unchecked(columns: &[(String, String)]) -> UserText {
    let record: Vec<String> = columns.iter().map(|(name, of)| format!("{} {of}", ident(name))).collect();
    let body = format!(
        "SELECT r.* FROM event CROSS JOIN LATERAL pg_catalog.jsonb_to_record(event.payload) AS r({})",
        record.join(", ")
    );
    UserText { before: format!("WITH {ONE_EVENT} "), body, file_text: String::new(), body_at: 0, file: None }
}

impl Context<'_> {
    /// `left.a = right.a AND …` of these columns.
    fn equal(&self, columns: &[String], left: &str, right: &str) -> String {
        let columns = columns.iter().filter_map(|name| self.columns.iter().find(|c| c.name == *name));
        let equal =
            columns.map(|c| c.equal(&format!("{left}.{}", ident(&c.name)), &format!("{right}.{}", ident(&c.name))));
        equal.collect::<Vec<_>>().join(" AND ")
    }

    /// `check`, for payloads that are what a mapping reads. Of a JSON string every `->>` yields NULL: where the key is not taken
    /// from the payload, a row would lose all that it holds.
    fn whole(&self, check: &str) -> String {
        if self.string_payloads {
            return check.to_owned();
        }
        let refused = not_an_object("relay_payload");
        format!(
            "CASE relay_payload WHEN 'string' THEN {}.refuse('22023', {refused}) ELSE {check} END",
            ident(self.relay)
        )
    }

    /// True for a row with a whole key, false where the mapping yielded no row at all, an error for a NULL in the key.
    fn key_or_refuse(&self) -> String {
        let any_null = self.key.iter().map(|k| format!("{} IS NULL", ident(k))).collect::<Vec<_>>().join(" OR ");
        let message = format!("the mapping yields NULL for key column {}", self.key.join(", "));
        format!(
            "CASE WHEN NOT ({any_null}) THEN true WHEN NOT relay_found THEN false ELSE {}.refuse('23502', {}) END",
            ident(self.relay),
            twice_or(&message),
        )
    }

    /// With `replace_by`: whose rows these are must be known, even when there are none.
    fn owner_or_refuse(&self) -> String {
        let any_null = self.owner.iter().map(|k| format!("{} IS NULL", ident(k))).collect::<Vec<_>>().join(" OR ");
        let message = format!(
            "the mapping does not name the owner ({}): for an owner without rows it must yield one row with the owner and NULL in the rest of the key",
            self.owner.join(", ")
        );
        format!(
            "CASE WHEN NOT ({any_null}) THEN true ELSE {}.refuse('23502', {}) END",
            ident(self.relay),
            twice_or(&message)
        )
    }
}

/// A message as an expression; a payload that was serialised twice gets its own.
fn twice_or(message: &str) -> String {
    format!("CASE relay_payload WHEN 'object' THEN {} ELSE {} END", literal(message), not_an_object("relay_payload"))
}

fn not_an_object(type_of: &str) -> String {
    format!(
        "CASE {type_of} WHEN 'string' THEN 'the payload is a JSON string, not an object: it was serialised twice' \
         ELSE 'the payload is not a JSON object but ' || {type_of} END"
    )
}

fn list(columns: &[String]) -> String {
    columns.iter().map(|c| ident(c)).collect::<Vec<_>>().join(", ")
}
