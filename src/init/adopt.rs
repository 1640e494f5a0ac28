//! An outbox that is there already: what it lacks, and how to add it without a rewrite and without holding the application up.
//!
//! Pure: from what the catalogs say to steps, or to a refusal. Interrupted between any two steps, the next run finds in the
//! catalogs what is left. Decided once, in one transaction with the installation's row: what becomes of the rows that are there.

use chrono::{DateTime, Utc};

use super::catalog::{Column, Outbox, SourceCatalog};
use super::{BUILD_LOCKS, Step, drop_invalid};
use crate::config::Config;
use crate::event::Status;
use crate::source::Names;
use crate::sql::{ident, literal, render};

/// What the rows are that an adopted table brings: of those that are not marked as anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// They are to be applied.
    Pending,
    /// The new database has them already.
    Processed,
    /// The new database has those created before this moment; later ones are to be applied.
    Before(DateTime<Utc>),
}

/// Not a value of `--existing`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--existing is pending, processed or before=TIMESTAMP (as in before=2026-01-31T12:00:00Z)")]
pub struct UnknownExisting;

impl std::str::FromStr for Existing {
    type Err = UnknownExisting;
    fn from_str(text: &str) -> Result<Existing, UnknownExisting> {
        match (text, text.strip_prefix("before=")) {
            ("pending", _) => Ok(Existing::Pending),
            ("processed", _) => Ok(Existing::Processed),
            (_, Some(time)) => DateTime::parse_from_rfc3339(time)
                .map(|time| Existing::Before(time.with_timezone(&Utc)))
                .map_err(|_| UnknownExisting),
            _ => Err(UnknownExisting),
        }
    }
}

/// The comment on columns that `init` added, by which `init --remove` knows them.
pub(super) const ADDED: &str = "added by outbox-relay init";

const MOMENT: &str = "ACCESS EXCLUSIVE for a moment: only the catalogs change, no row is read or written";
const VALIDATE: &str = "SHARE UPDATE EXCLUSIVE while it reads the table: readers and writers go on";
const ROWS: &str =
    "the rows that it changes, which the application does not touch, and in short transactions; inserts go on";

/// A table to be adopted.
pub(super) struct Adopting<'a> {
    pub(super) config: &'a Config,
    pub(super) names: &'a Names,
    pub(super) outbox: &'a Outbox,
    /// Whether it was decided before what its rows are.
    pub(super) installed: bool,
    pub(super) existing: Option<Existing>,
}

/// What the operator should know of an adoption.
pub(super) fn notes(config: &Config, catalog: &SourceCatalog, existing: Option<Existing>) -> Vec<String> {
    let Some(outbox) = &catalog.outbox else { return Vec::new() };
    let mut notes = Vec::new();
    let c = &config.legacy.columns;
    if let Some(created) = outbox.columns.get(&c.created_at)
        && created.base == "timestamp without time zone"
    {
        notes.push(format!("{} has no time zone: the relay reads it as UTC.", created.name));
    }
    if outbox.rows > 0 && !catalog.has_installation {
        let what = match existing {
            Some(Existing::Processed) => "the new database has them: those pending are marked as processed".to_owned(),
            Some(Existing::Before(time)) => {
                format!("those pending and created before {time} are marked as processed, the others will be applied")
            }
            Some(Existing::Pending) | None => "those pending will be applied".to_owned(),
        };
        notes.push(format!("The outbox has {} rows: {what}. Failed ones stay failed, and hold back their aggregates until they are replayed or skipped.", outbox.rows));
    }
    notes
}

impl Adopting<'_> {
    /// Everything that the table lacks, up to the indexes. `installation` inserts the installation's row.
    pub(super) fn steps(&self, installation: &str) -> Result<Vec<Step>, String> {
        self.refuse_what_cannot_be()?;
        let mut steps = self.enum_words();
        let mut decided = self.installed;
        steps.extend(self.add_columns(installation, &mut decided));
        steps.extend(self.number());
        steps.extend(self.fill_event_ids());
        steps.extend(self.checks());
        if !decided {
            steps.push(self.mark_existing(installation));
        }
        steps.extend(self.unique_ids());
        Ok(steps)
    }

    fn get(&self, column: &str) -> Option<&Column> {
        self.outbox.columns.get(column)
    }

    fn render(&self, sql: &str) -> String {
        self.names.render(sql)
    }

    fn has_rows(&self) -> bool {
        self.outbox.rows > 0
    }

    fn refuse_what_cannot_be(&self) -> Result<(), String> {
        let outbox = &self.names.outbox;
        let c = &self.config.legacy.columns;
        match self.outbox.kind.as_str() {
            "r" => {}
            "p" => self.refuse_partitions()?,
            _ => return Err(format!("{outbox} is not a table")),
        }
        for (key, name) in [
            ("aggregate_type", &c.aggregate_type),
            ("aggregate_id", &c.aggregate_id),
            ("event_type", &c.event_type),
            ("payload", &c.payload),
        ] {
            let Some(column) = self.get(name) else {
                let there: Vec<&str> = self.outbox.columns.0.iter().map(|c| c.name.as_str()).collect();
                return Err(format!(
                    "{outbox} has no column \"{name}\" ({key}), and init cannot make that up. It has {}; say which it is:\n  [legacy.columns]\n  {key} = \"…\"",
                    there.join(", ")
                ));
            };
            if key.starts_with("aggregate") && !column.output_immutable {
                return Err(format!(
                    "{outbox}: column {name} ({key}) is {}, whose text may change, so no index can be made over it: ALTER TABLE {outbox} ALTER COLUMN {} TYPE text",
                    column.full_type,
                    ident(name)
                ));
            }
        }
        let time = ["timestamp with time zone", "timestamp without time zone"];
        let text = ["text", "character varying", "character", "name"];
        let json = ["text", "character varying", "json", "jsonb"];
        let number = ["smallint", "integer", "bigint"];
        let ordering = format!(
            "and a random one gives no order. Name it as event_id, and a new column as id:\n  [legacy.columns]\n  event_id = \"{}\"\n  id = \"relay_id\"    # init adds it",
            c.id
        );
        let another = |key: &str, column: &str| {
            format!("name another column for it, which init adds:\n  [legacy.columns]\n  {key} = \"relay_{column}\"")
        };
        let wanted: [(&str, &str, &[&str], String); 9] = [
            ("id", &c.id, &["integer", "bigint"], ordering),
            ("event_id", &c.event_id, &["uuid"], another("event_id", &c.event_id)),
            ("payload", &c.payload, &json, "the payload must be JSON".to_owned()),
            ("headers", &c.headers, &json, another("headers", &c.headers)),
            ("created_at", &c.created_at, &time, another("created_at", &c.created_at)),
            ("attempts", &c.attempts, &number, another("attempts", &c.attempts)),
            ("next_attempt_at", &c.next_attempt_at, &time, another("next_attempt_at", &c.next_attempt_at)),
            ("processed_at", &c.processed_at, &time, another("processed_at", &c.processed_at)),
            ("last_error", &c.last_error, &text, another("last_error", &c.last_error)),
        ];
        for (key, name, types, remedy) in wanted {
            if let Some(column) = self.get(name)
                && !types.contains(&column.base.as_str())
            {
                return Err(format!(
                    "{outbox}: column {} ({key}) is {}, not {}; {remedy}",
                    column.name,
                    column.full_type,
                    types.join(" or ")
                ));
            }
        }
        if let Some(id) = self.get(&c.id).filter(|id| !id.not_null && id.comment.as_deref() != Some(ADDED)) {
            return Err(format!(
                "{outbox}: column {0} (id) may be NULL, and a row without id is never seen: ALTER TABLE {outbox} ALTER COLUMN {1} SET NOT NULL",
                id.name,
                ident(&id.name)
            ));
        }
        self.refuse_status()?;
        self.refuse_undecided()
    }

    /// Of a partitioned outbox, what `init` cannot make.
    fn refuse_partitions(&self) -> Result<(), String> {
        let (outbox, id) = (&self.names.outbox, &self.config.legacy.columns.id);
        if let Some(other) = self.outbox.partitions.iter().find(|partition| partition.kind != "r") {
            return Err(format!(
                "{outbox}: its partition {}.{} is not a plain table; the relay takes one level of partitions",
                ident(&other.schema),
                ident(&other.name)
            ));
        }
        let Some(column) = self.get(id).filter(|column| column.is_identity || column.has_default) else {
            return Err(format!(
                "{outbox} is partitioned, and its column {id} (id) is missing or takes no number by itself: two partitions could hold \
                 the same id. Make it GENERATED ALWAYS AS IDENTITY, or give it a default from one sequence"
            ));
        };
        if !self.outbox.unique_ids {
            return Err(format!(
                "{outbox} is partitioned, and has no primary key or unique index that begins with {0}, by which events are settled: \
                 PRIMARY KEY ({0}, {1})",
                ident(&column.name),
                ident(&self.config.legacy.columns.created_at)
            ));
        }
        Ok(())
    }

    fn refuse_status(&self) -> Result<(), String> {
        let Some(status) = self.get(&self.config.legacy.columns.status) else { return Ok(()) };
        let textual = ["text", "character varying", "character"].contains(&status.base.as_str());
        if !status.is_enum && !textual {
            return Err(format!(
                "{}: column {} (status) is {}, not text or an enum; name another column for it, which init adds:\n  [legacy.columns]\n  status = \"relay_status\"",
                self.names.outbox, status.name, status.full_type
            ));
        }
        Ok(())
    }

    fn refuse_undecided(&self) -> Result<(), String> {
        if self.installed || !self.has_rows() {
            return Ok(());
        }
        let c = &self.config.legacy.columns;
        match self.existing {
            None => {
                let which = match self.get(&c.status) {
                    Some(_) => format!("those whose {} is '{}'", c.status, self.config.legacy.status.pending),
                    None => "all of them".to_owned(),
                };
                Err(format!(
                    "{} has {} rows already. Say what becomes of them ({which}):\n\
                     \x20 --existing pending             they are applied to the new database\n\
                     \x20 --existing processed           the new database has them already\n\
                     \x20 --existing before=TIMESTAMP    it has those created before that moment (as in before=2026-01-31T12:00:00Z)",
                    self.names.outbox, self.outbox.rows
                ))
            }
            Some(Existing::Before(_)) if self.get(&c.created_at).is_none() => Err(format!(
                "--existing before=… needs the time at which each row was created, and {} has no column \"{}\": say which it is with [legacy.columns] created_at",
                self.names.outbox, c.created_at
            )),
            Some(_) => Ok(()),
        }
    }

    /// Words that an enum lacks.
    fn enum_words(&self) -> Vec<Step> {
        let Some(status) = self.get(&self.config.legacy.columns.status).filter(|s| s.is_enum) else {
            return Vec::new();
        };
        let words = Status::ALL.map(|status| self.names.word(status));
        let missing = words.into_iter().filter(|word| !self.outbox.enum_words.iter().any(|known| known == word));
        missing
            .map(|word| {
                Step::alone(
                    format!("the status \"{word}\", which the enum lacks"),
                    "nothing of the table's",
                    format!("ALTER TYPE {} ADD VALUE IF NOT EXISTS {};", status.base, literal(word)),
                )
            })
            .collect()
    }

    /// All missing columns, in one short transaction; room in those that are too narrow; words that a CHECK refuses.
    fn add_columns(&self, installation: &str, decided: &mut bool) -> Option<Step> {
        let c = &self.config.legacy.columns;
        let mut sql = Vec::new();
        let mut added = Vec::new();
        let mut add = |name: &str, definition: &str, then: &str| {
            sql.push(format!("ALTER TABLE {{outbox}} ADD COLUMN {} {definition};", ident(name)));
            if !then.is_empty() {
                sql.push(format!("ALTER TABLE {{outbox}} ALTER COLUMN {} {then};", ident(name)));
            }
            sql.push(format!("COMMENT ON COLUMN {{outbox}}.{} IS {};", ident(name), literal(ADDED)));
            added.push(name.to_owned());
        };
        let missing = |name: &str| self.get(name).is_none();
        let marks_all = self.existing == Some(Existing::Processed) && self.has_rows() && !self.installed;
        if missing(&c.id) && !self.has_rows() {
            add(&c.id, "bigint GENERATED ALWAYS AS IDENTITY", "");
        }
        if missing(&c.event_id) {
            add(&c.event_id, "uuid", "SET DEFAULT gen_random_uuid()");
        }
        if missing(&c.headers) {
            add(&c.headers, "jsonb", "");
        }
        if missing(&c.created_at) {
            add(&c.created_at, "timestamptz NOT NULL DEFAULT now()", "");
        }
        let mut decides = false;
        if missing(&c.status) {
            let pending = format!("SET DEFAULT {}", literal(&self.config.legacy.status.pending));
            if marks_all {
                // What stands in a new column of the old rows is its default at the time: nothing is written.
                add(&c.status, "text NOT NULL DEFAULT {processed}", &pending);
                decides = true;
            } else {
                add(&c.status, "text NOT NULL DEFAULT {pending}", "");
            }
        }
        if missing(&c.attempts) {
            add(&c.attempts, "int NOT NULL DEFAULT 0", "");
        }
        for name in [&c.next_attempt_at, &c.processed_at] {
            if missing(name) {
                add(name, "timestamptz", "");
            }
        }
        if missing(&c.last_error) {
            add(&c.last_error, "text", "");
        }
        if missing(&c.id) && self.has_rows() {
            sql.push(self.numbered_column());
            added.push(c.id.clone());
        }
        sql.extend(self.room());
        sql.extend(self.checks_of_added(&added));
        if sql.is_empty() {
            return None;
        }
        let mut sql = self.render(&sql.join("\n"));
        if decides {
            *decided = true;
            sql.push_str(installation);
        }
        let mut why = "columns that the relay needs and the outbox lacks".to_owned();
        if !added.is_empty() {
            why = format!("{why}: {}", added.join(", "));
        }
        if decides {
            why.push_str("; rows that are there count as processed, and no row is written for that");
        }
        Some(Step::together(why, MOMENT, sql))
    }

    /// The ordering column of a table with rows: a nullable one with a default is added at once, whereas an identity would
    /// rewrite the table under ACCESS EXCLUSIVE. New rows get numbers from here on, above all that the old rows will get.
    fn numbered_column(&self) -> String {
        let mut first = 1000i64;
        while first < self.outbox.rows.saturating_mul(2) {
            first = first.saturating_mul(10);
        }
        let names = [
            ("sequence", self.sequence()),
            ("first", first.to_string()),
            ("sequence_text", literal(&self.sequence())),
            ("added", literal(ADDED)),
        ];
        render(
            "CREATE SEQUENCE {sequence} AS bigint START WITH {first};\n\
             GRANT USAGE ON SEQUENCE {sequence} TO PUBLIC; -- until it is an identity, whose sequence needs no grant\n\
             ALTER TABLE {outbox} ADD COLUMN {id} bigint;\n\
             ALTER TABLE {outbox} ALTER COLUMN {id} SET DEFAULT nextval({sequence_text});\n\
             ALTER SEQUENCE {sequence} OWNED BY {outbox}.{id};\n\
             COMMENT ON COLUMN {outbox}.{id} IS {added};",
            &names,
        )
    }

    /// The sequence that stands in until the ordering column is an identity.
    fn sequence(&self) -> String {
        let outbox = &self.config.legacy.outbox;
        format!("{}.{}", ident(&outbox.schema), ident(&super::catalog::index_name(&outbox.table, "ids")))
    }

    /// A text column that is too narrow for what is written to it.
    fn room(&self) -> Vec<String> {
        let c = &self.config.legacy.columns;
        let longest = Status::ALL.map(|s| self.names.word(s).chars().count()).into_iter().max().unwrap_or(0);
        let narrow = [(&c.status, longest), (&c.last_error, usize::MAX)];
        let mut sql: Vec<String> = narrow
            .into_iter()
            .filter(|(name, needed)| {
                self.get(name).and_then(|c| c.length).is_some_and(|length| (length.unsigned_abs() as usize) < *needed)
            })
            .map(|(name, _)| format!("ALTER TABLE {{outbox}} ALTER COLUMN {} TYPE text;", ident(name)))
            .collect();
        for refusing in &self.outbox.refusing {
            let words: Vec<String> = refusing.words.iter().map(|word| literal(word)).collect();
            let name = ident(&refusing.name);
            sql.push(format!("ALTER TABLE {{outbox}} DROP CONSTRAINT {name};"));
            sql.push(format!(
                "ALTER TABLE {{outbox}} ADD CONSTRAINT {name} CHECK (({}) OR {{status}} IN ({})) NOT VALID;",
                refusing.expression,
                words.join(", ")
            ));
        }
        sql
    }

    /// CHECKs of the contract on columns that are added now; validated later, without a lock that anybody notices.
    fn checks_of_added(&self, added: &[String]) -> Vec<String> {
        let c = &self.config.legacy.columns;
        let [status, attempts] = self.check_names();
        let mut sql = Vec::new();
        if added.contains(&c.status) {
            sql.push(format!(
                "ALTER TABLE {{outbox}} ADD CONSTRAINT {} CHECK ({{status}} IN ({{pending}}, {{retry}}, {{held}}, {{processed}}, {{failed}}, {{skipped}})) NOT VALID;",
                ident(&status)
            ));
        }
        if added.contains(&c.attempts) {
            sql.push(format!(
                "ALTER TABLE {{outbox}} ADD CONSTRAINT {} CHECK ({{attempts}} >= 0) NOT VALID;",
                ident(&attempts)
            ));
        }
        sql
    }

    fn check_names(&self) -> [String; 2] {
        let table = &self.config.legacy.outbox.table;
        ["status", "attempts"].map(|suffix| super::catalog::index_name(table, suffix))
    }

    /// Validates what was added NOT VALID, now or by an earlier run.
    fn checks(&self) -> Vec<Step> {
        let c = &self.config.legacy.columns;
        let mut names: Vec<String> = self.outbox.refusing.iter().map(|refusing| refusing.name.clone()).collect();
        for (name, column) in self.check_names().into_iter().zip([&c.status, &c.attempts]) {
            if self.get(column).is_none() || self.outbox.unvalidated.contains(&name) {
                names.push(name);
            }
        }
        let validate =
            |name: &String| self.render(&format!("ALTER TABLE {{outbox}} VALIDATE CONSTRAINT {};", ident(name)));
        names
            .iter()
            .map(|name| {
                Step::together(format!("checks the rows that are there against {name}"), VALIDATE, validate(name))
            })
            .collect()
    }

    /// How to know a row again while it is given a number: by its primary key, or else by its place.
    fn keys(&self) -> (String, String) {
        if self.outbox.primary_key.is_empty() {
            return ("ctid AS k1".to_owned(), "ctid = place.k1".to_owned());
        }
        let keys = self.outbox.primary_key.iter().enumerate();
        let (select, same): (Vec<String>, Vec<String>) = keys
            .map(|(at, name)| (format!("{} AS k{at}", ident(name)), format!("{} = place.k{at}", ident(name))))
            .unzip();
        (select.join(", "), same.join(" AND "))
    }

    /// Numbers the rows that were there, then makes the column what it is in a new outbox.
    fn number(&self) -> Vec<Step> {
        let c = &self.config.legacy.columns;
        let Some(step) = (match self.get(&c.id) {
            None if self.has_rows() => Some(true),
            Some(id) if id.comment.as_deref() == Some(ADDED) && !id.is_identity => Some(!id.not_null),
            _ => None,
        }) else {
            return Vec::new();
        };
        let mut steps = Vec::new();
        if step {
            let (keys, same) = self.keys();
            let (order, told) = match self.get(&c.created_at) {
                Some(_) => (
                    format!("{} DESC NULLS LAST, ctid DESC", ident(&c.created_at)),
                    format!("in the order of {}", c.created_at),
                ),
                None => (
                    "ctid DESC".to_owned(),
                    "in the order in which the table has them, for no column tells when each was created".to_owned(),
                ),
            };
            let first =
                format!("(SELECT seqstart FROM pg_sequence WHERE seqrelid = {}::regclass)", literal(&self.sequence()));
            let names = [("keys", keys), ("same", same), ("order", order), ("first", first)];
            steps.push(Step::alone(
                format!("numbers the {} rows that are there, {told}", self.outbox.rows),
                ROWS,
                self.render(&render(include_str!("../../sql/adopt/number_rows.sql"), &names)),
            ));
            steps.extend(self.not_null("id", &c.id));
        }
        let alter = literal(
            &self.render("ALTER TABLE {outbox} ALTER COLUMN {id} ADD GENERATED ALWAYS AS IDENTITY (START WITH %s)"),
        );
        let names = [("sequence", self.sequence()), ("sequence_text", literal(&self.sequence())), ("alter", alter)];
        steps.push(Step::together(
            format!("makes {} an identity: nobody needs a grant on its sequence", c.id),
            MOMENT,
            self.render(&render(include_str!("../../sql/adopt/become_identity.sql"), &names)),
        ));
        steps
    }

    fn fill_event_ids(&self) -> Vec<Step> {
        let c = &self.config.legacy.columns;
        let nullable = self.get(&c.event_id).is_none_or(|column| !column.not_null);
        if !nullable {
            return Vec::new();
        }
        let mut steps = Vec::new();
        if self.get(&c.event_id).is_some_and(|column| !column.has_default) {
            let sql = self.render("ALTER TABLE {outbox} ALTER COLUMN {event_id} SET DEFAULT gen_random_uuid();");
            steps.push(Step::together(format!("every event needs its {}", c.event_id), MOMENT, sql));
        }
        if self.has_rows() || self.get(&c.event_id).is_some() {
            let (keys, same) = self.keys();
            let names = [("keys", keys), ("same", same)];
            steps.push(Step::alone(
                format!("gives rows that have no {} one", c.event_id),
                ROWS,
                self.render(&render(include_str!("../../sql/adopt/fill_event_ids.sql"), &names)),
            ));
        }
        steps.extend(self.not_null("event_id", &c.event_id));
        steps
    }

    /// NOT NULL by way of a CHECK, so that no strong lock is held while the table is read.
    fn not_null(&self, key: &str, column: &str) -> Vec<Step> {
        let name = super::catalog::index_name(&self.config.legacy.outbox.table, &format!("{key}_null"));
        let (check, column) = (ident(&name), ident(column));
        let mut steps = Vec::new();
        if !self.outbox.checks.contains(&name) {
            steps.push(Step::together(
                format!("{column} is NOT NULL, for new rows"),
                MOMENT,
                self.render(&format!(
                    "ALTER TABLE {{outbox}} ADD CONSTRAINT {check} CHECK ({column} IS NOT NULL) NOT VALID;"
                )),
            ));
        }
        steps.push(Step::together(
            "… and for those that are there",
            VALIDATE,
            self.render(&format!("ALTER TABLE {{outbox}} VALIDATE CONSTRAINT {check};")),
        ));
        steps.push(Step::together(
            format!("{column} is NOT NULL: by the CHECK that was just validated, without reading the table"),
            MOMENT,
            self.render(&format!("ALTER TABLE {{outbox}} ALTER COLUMN {column} SET NOT NULL;\nALTER TABLE {{outbox}} DROP CONSTRAINT {check};")),
        ));
        steps
    }

    /// Decides, once, what the rows are that were there: with the installation's row, so that a second run does not take rows
    /// that came since for old ones.
    fn mark_existing(&self, installation: &str) -> Step {
        let mark = "UPDATE {outbox} SET {status} = {processed}, {processed_at} = now() WHERE {status} IN ({pending}, {retry}, {held})";
        let (why, locks, sql) = match self.existing {
            Some(Existing::Processed) if self.has_rows() => (
                "rows that are there count as processed; what this installation is".to_owned(),
                "the rows that it changes; inserts go on",
                format!("{};", self.render(mark)),
            ),
            Some(Existing::Before(time)) if self.has_rows() => (
                format!("rows created before {time} count as processed; what this installation is"),
                "the rows that it changes; inserts go on",
                // A column without a time zone is compared as UTC, whoever runs this.
                format!(
                    "SET LOCAL timezone = 'UTC';\n{} AND {} < {}::timestamptz;",
                    self.render(mark),
                    ident(&self.config.legacy.columns.created_at),
                    literal(&time.to_rfc3339())
                ),
            ),
            _ => ("what this installation is".to_owned(), "nothing", String::new()),
        };
        Step::together(why, locks, format!("{sql}{installation}"))
    }

    fn unique_ids(&self) -> Vec<Step> {
        if self.outbox.unique_ids {
            return Vec::new();
        }
        let name = super::catalog::index_name(&self.config.legacy.outbox.table, "id");
        let mut steps = Vec::new();
        if self.outbox.invalid_indexes.contains(&name) {
            steps.push(drop_invalid(&format!("{}.{}", ident(&self.config.legacy.outbox.schema), ident(&name))));
        }
        steps.push(Step::alone(
            format!("a unique index on {}, by which events are settled", self.config.legacy.columns.id),
            BUILD_LOCKS,
            self.render(&format!("CREATE UNIQUE INDEX CONCURRENTLY {} ON {{outbox}} ({{id}});", ident(&name))),
        ));
        steps
    }
}
