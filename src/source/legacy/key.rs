//! Whether an entity's key tells its legacy rows apart. Everything that reads them goes on after the last key, and takes rows by their
//! keys: of two rows with one key, and of a row without a key, it would silently take one, or none.
//!
//! Guarantees: a table whose key no unique index covers, or may be NULL, is refused before it is read, and a query with a row
//! without a key. That two rows of a query have one key is told by whatever reads such a row by its key, and changes nothing then;
//! only [`Source::repeated_key`] reads all rows to find it, at the cost of reading them.

use std::fmt;

use futures_util::{Stream, TryStreamExt as _};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{KeyAt, Legacy, LegacyRow, RowKey};
use crate::config::{Entity, LegacyRows, RowsFrom};
use crate::event::Lane;
use crate::redact::{HIDDEN, Sight};
use crate::source::Source;
use crate::sql::{ident, query, render};

/// Columns of `sql/legacy/rows.sql` before those of the key.
const BEFORE_KEY: usize = 4;

/// Why a key does not tell the rows apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// No unique index of the table is over nothing but columns of it.
    NoUniqueIndex,
    /// This column of it may be NULL.
    MayBeNull(String),
    /// This column of it is NULL in a row that the query yields.
    IsNull(String),
    /// Two rows have this one: its values, as far as they may be shown.
    Twice(Vec<String>),
}

/// An entity's key does not tell its legacy rows apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTrouble {
    /// What it is.
    pub why: Why,
    entity: String,
    /// The table, or the query's file.
    rows: String,
    /// The table, as SQL has it; empty of a query.
    table: String,
    key: Vec<String>,
}

impl KeyTrouble {
    /// The one that an error is, if it is one.
    pub fn of(error: &sqlx::Error) -> Option<&KeyTrouble> {
        match error {
            sqlx::Error::Configuration(error) => error.downcast_ref(),
            _ => None,
        }
    }

    /// Stable; in the operations guide.
    pub fn code(&self) -> &'static str {
        match self.why {
            Why::NoUniqueIndex | Why::MayBeNull(_) => "legacy.key",
            Why::IsNull(_) => "legacy.key_null",
            Why::Twice(_) => "legacy.key_repeated",
        }
    }

    /// What was found, in half a sentence.
    pub fn what(&self) -> String {
        let KeyTrouble { why, entity, rows, key, .. } = self;
        match why {
            Why::NoUniqueIndex => {
                format!("entity {entity}: no unique index on {rows} covers the key {}", key.join(", "))
            }
            Why::MayBeNull(column) => format!("entity {entity}: {column} of the key may be NULL in {rows}"),
            Why::IsNull(column) => format!("entity {entity}: {column} of the key is NULL in a row of {rows}"),
            Why::Twice(values) => {
                let pairs: Vec<String> = key.iter().zip(values).map(|(c, v)| format!("{c} = {v}")).collect();
                format!("entity {entity}: two rows of {rows} have the same key, {}", pairs.join(", "))
            }
        }
    }

    /// What would come of it.
    pub fn consequence(&self) -> &'static str {
        match self.why {
            Why::NoUniqueIndex => {
                "a row whose key another one has may be passed over; and each page would sort the whole table"
            }
            Why::MayBeNull(_) | Why::IsNull(_) => "a row whose key is NULL is passed over",
            Why::Twice(_) => "of rows with one key only one would stand in the new table, and by chance which",
        }
    }

    /// What mends it.
    pub fn remedy(&self) -> String {
        let KeyTrouble { why, table, key, .. } = self;
        let key: Vec<String> = key.iter().map(|column| ident(column)).collect();
        match why {
            Why::NoUniqueIndex => {
                format!("CREATE UNIQUE INDEX CONCURRENTLY ON {table} ({});    (or name another key)", key.join(", "))
            }
            Why::MayBeNull(column) => {
                format!("ALTER TABLE {table} ALTER COLUMN {} SET NOT NULL;    (or name another key)", ident(column))
            }
            Why::IsNull(column) => {
                format!(
                    "let the query leave such rows out: WHERE {} IS NOT NULL    (or name another key)",
                    ident(column)
                )
            }
            Why::Twice(_) => {
                "name all columns that tell the query's rows apart: legacy = { …, key = [\"…\", \"…\"] }, or let \
                              the query yield one row for each key"
                    .to_owned()
            }
        }
    }

    /// As the log may have it: without the key's values.
    pub(crate) fn logged(&self) -> String {
        let hidden = |values: &Vec<String>| values.iter().map(|_| HIDDEN.to_owned()).collect();
        let why = match &self.why {
            Why::Twice(values) => Why::Twice(hidden(values)),
            other => other.clone(),
        };
        KeyTrouble { why, ..self.clone() }.to_string()
    }
}

impl fmt::Display for KeyTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}; then: {}", self.what(), self.code(), self.consequence(), self.remedy())
    }
}

impl std::error::Error for KeyTrouble {}

impl From<KeyTrouble> for sqlx::Error {
    /// Nobody can go on, as with a wrong statement, and whoever asked for rows gets it as they get those.
    fn from(trouble: KeyTrouble) -> sqlx::Error {
        sqlx::Error::Configuration(Box::new(trouble))
    }
}

/// How a key of these rows is told.
#[derive(Debug, Clone)]
pub(super) struct Telling {
    entity: String,
    aggregate_type: String,
    rows: String,
    table: String,
    key: Vec<String>,
    /// `None`: its values are shown to nobody.
    sight: Option<Sight>,
}

impl Telling {
    pub(super) fn of(entity: &Entity, rows: &LegacyRows) -> Telling {
        let (shown, table) = match &rows.from {
            RowsFrom::Table(table) => (table.to_string(), format!("{}.{}", ident(&table.schema), ident(&table.table))),
            RowsFrom::Query(file) => (file.path.display().to_string(), String::new()),
        };
        let (name, aggregate_type) = (entity.name.clone(), entity.aggregate_type.clone());
        Telling { entity: name, aggregate_type, rows: shown, table, key: rows.key.clone(), sight: None }
    }

    fn trouble(&self, why: Why) -> KeyTrouble {
        let Telling { entity, rows, table, key, .. } = self.clone();
        KeyTrouble { why, entity, rows, table, key }
    }

    /// Whoever hides a value of the payload hides it here: a key is a part of the row.
    pub(super) fn twice(&self, key: &RowKey) -> KeyTrouble {
        let value = |(column, value): (&String, &String)| {
            let member = serde_json::json!({ column: value }).to_string();
            let shown = self.sight.as_ref().is_some_and(|sight| sight.payload(&self.aggregate_type, &member) == member);
            if shown { value.clone() } else { HIDDEN.to_owned() }
        };
        self.trouble(Why::Twice(self.key.iter().zip(&key.0).map(value).collect()))
    }
}

impl Legacy {
    /// With a repeated key told to somebody who sees so much; else its values are hidden.
    pub fn shown_to(mut self, sight: Sight) -> Legacy {
        self.telling.sight = Some(sight);
        self
    }

    /// The rows of an answer of `sql/legacy/rows.sql`. Taken as they come, so that no more than some hundred are held twice.
    pub(in crate::source) async fn rows_of(
        &self,
        mut answer: impl Stream<Item = sqlx::Result<PgRow>> + Unpin,
    ) -> sqlx::Result<Vec<LegacyRow>> {
        let (mut rows, mut seen) = (Vec::new(), std::collections::HashSet::new());
        while let Some(some) = answer.try_next().await? {
            let asked: Vec<i32> = some.try_get("asked")?;
            let aggregates: Vec<Option<String>> = some.try_get("aggregate_id")?;
            let lanes: Vec<Option<Lane>> = some.try_get("lane")?;
            let payloads: Vec<Option<String>> = some.try_get("payload")?;
            let columns = BEFORE_KEY..BEFORE_KEY + self.key.len();
            let parts: Vec<Vec<String>> = columns.map(|column| some.try_get(column)).collect::<sqlx::Result<_>>()?;
            let mut parts: Vec<_> = parts.into_iter().map(Vec::into_iter).collect();
            for (((asked, aggregate_id), lane), payload) in asked.into_iter().zip(aggregates).zip(lanes).zip(payloads) {
                let key = RowKey(parts.iter_mut().filter_map(Iterator::next).collect());
                if !seen.insert(asked) {
                    return Err(self.telling.twice(&key).into());
                }
                let lane = lane.filter(|_| aggregate_id.is_some());
                rows.push(LegacyRow { at: KeyAt { key, aggregate_id, lane }, payload });
            }
        }
        Ok(rows)
    }
}

impl Source {
    /// What can be told at once about an entity's key, from the catalog or, of a query, by the index that its pages need.
    pub async fn key_troubles(&self, entity: &Entity, legacy: &Legacy) -> sqlx::Result<Vec<KeyTrouble>> {
        let Some(rows) = &entity.legacy else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        match &rows.from {
            RowsFrom::Table(table) => {
                let sql = include_str!("../../../sql/legacy/key.sql");
                let ask = query(sql, false).bind(&table.schema).bind(&table.table).bind(&rows.key);
                let answer = self.ask("", ask).await?;
                let row = answer.first().ok_or(sqlx::Error::RowNotFound)?;
                if !row.try_get::<bool, _>("is_unique")? {
                    found.push(Why::NoUniqueIndex);
                }
                found.extend(row.try_get::<Option<String>, _>("nullable")?.map(Why::MayBeNull));
            }
            RowsFrom::Query(_) => {
                let sql = render(include_str!("../../../sql/legacy/key_null.sql"), &legacy.names);
                let answer = self.ask(&legacy.settings, query(&sql, false)).await?;
                for row in &answer {
                    let column = usize::try_from(row.try_get::<i32, _>("part")?).unwrap_or_default();
                    found.extend(rows.key.get(column).cloned().map(Why::IsNull));
                }
            }
        }
        Ok(found.into_iter().map(|why| legacy.telling.trouble(why)).collect())
    }

    /// A key that two rows of a query have, if there is one: reads all of them. Of a table its index tells.
    pub async fn repeated_key(&self, entity: &Entity, legacy: &Legacy) -> sqlx::Result<Option<KeyTrouble>> {
        let is_query = entity.legacy.as_ref().is_some_and(|rows| matches!(rows.from, RowsFrom::Query(_)));
        if !is_query {
            return Ok(None);
        }
        let sql = render(include_str!("../../../sql/legacy/key_repeated.sql"), &legacy.names);
        let answer = self.ask(&legacy.settings, query(&sql, false)).await?;
        answer.first().map(|row| Ok(legacy.telling.twice(&RowKey(row.try_get("key")?)))).transpose()
    }
}
