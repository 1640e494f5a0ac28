//! Rows that refer to a row that is not there, within a database or from one to the other.
//!
//! Reads the referring table a page of its primary key at a time, and asks the other end about each page: short transactions, on
//! an index, whatever the size. What is found is looked at once more a little later, all of it together, so that a row whose parent was on
//! its way is none. A key is compared as its own type says, also where that is an extension's. What the server refuses of one reference is
//! told of that one; the others are looked at.

use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::{PgArguments, PgPool, PgRow};
use sqlx::{Arguments as _, Row};

use super::{Columns, Plan, Reference, columns, quoted, reading};
use crate::config::TableName;
use crate::disposition::{is_transient, told};
use crate::init::Side;
use crate::session::sqlstate;
use crate::sql::{beyond, ident, operator, trusted};

/// Rows a page.
const PAGE: usize = 5000;
/// So many rows are held until they are looked at again.
const HELD: usize = 50_000;
/// How many rows are told of each reference.
const SAMPLES: usize = 5;
/// How long a parent may be on its way.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// What one reference leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Orphans {
    /// The constraint, or what would be one.
    pub constraint: String,
    /// The table that refers: database, table, columns.
    pub child: String,
    /// What it refers to.
    pub parent: String,
    /// Rows that refer to nothing.
    pub count: u64,
    /// Some of them.
    pub samples: Vec<Sample>,
    /// Why it could not be looked at, or not to its end, if so.
    pub skipped: Option<String>,
}

/// A row that refers to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Its primary key.
    pub key: Vec<String>,
    /// What it refers to.
    pub refers_to: Vec<String>,
}

/// Looks through all references of a plan.
pub async fn orphans(plan: &Plan, legacy: &PgPool, new: &PgPool) -> sqlx::Result<Vec<Orphans>> {
    let (mut searches, mut suspects) = (Vec::new(), Suspects::default());
    for (nth, reference) in plan.references.iter().enumerate() {
        searches.push(Search::of(reference, legacy, new).await?);
        let mut after: Option<Vec<String>> = None;
        while let Some(search) = searches.get_mut(nth) {
            let Some(page) = search.page(after.as_deref()).await? else { break };
            after = Some(page.last);
            suspects.hold(nth, page.without_parent);
            if suspects.rows >= HELD {
                suspects.settle(&mut searches).await?;
            }
        }
    }
    suspects.settle(&mut searches).await?;
    Ok(searches.into_iter().map(|search| search.found).collect())
}

/// Rows that seemed to refer to nothing, each page with the number of its reference.
#[derive(Default)]
struct Suspects {
    pages: Vec<(usize, Vec<Row_>)>,
    rows: usize,
}

impl Suspects {
    fn hold(&mut self, nth: usize, rows: Vec<Row_>) {
        if !rows.is_empty() {
            self.rows += rows.len();
            self.pages.push((nth, rows));
        }
    }

    /// Waits, once for all, and counts those that still refer to nothing; forgets those of references that were refused.
    async fn settle(&mut self, searches: &mut [Search<'_>]) -> sqlx::Result<()> {
        let mut pages = std::mem::take(self).pages;
        pages.retain(|(nth, _)| searches.get(*nth).is_some_and(|search| search.look.is_some()));
        if pages.is_empty() {
            return Ok(());
        }
        let rows: usize = pages.iter().map(|(_, rows)| rows.len()).sum();
        tracing::info!(rows, "rows seem to refer to nothing: looking again in {AGAIN_AFTER:?}");
        tokio::time::sleep(AGAIN_AFTER).await;
        for (nth, rows) in pages {
            if let Some(search) = searches.get_mut(nth) {
                search.again(rows).await?;
            }
        }
        Ok(())
    }
}

/// A row: its primary key, and what it refers to, which is empty where a column of that is NULL: that refers to nothing, by intent.
type Row_ = (Vec<String>, Vec<String>);

/// What is found of a reference, and how it is looked at.
struct Search<'a> {
    found: Orphans,
    /// `None`: it cannot be, or not any more, as `found` tells.
    look: Option<Look<'a>>,
}

impl<'a> Search<'a> {
    /// With nothing found yet.
    async fn of(reference: &'a Reference, legacy: &'a PgPool, new: &'a PgPool) -> sqlx::Result<Search<'a>> {
        let end = |(side, table, columns): &(Side, TableName, Vec<String>)| {
            format!("{side} {table} ({})", columns.join(", "))
        };
        let look = Look {
            child: Place::of(&reference.child, legacy, new).await?,
            parent: Place::of(&reference.parent, legacy, new).await?,
        };
        let found = Orphans {
            constraint: reference.what.clone(),
            child: end(&reference.child),
            parent: end(&reference.parent),
            count: 0,
            samples: Vec::new(),
            skipped: look.child.lacks().or_else(|| look.parent.lacks()).or_else(|| look.child.has_no_key()),
        };
        let can_be = found.skipped.is_none();
        Ok(Search { found, look: can_be.then_some(look) })
    }

    async fn page(&mut self, after: Option<&[String]>) -> sqlx::Result<Option<Page>> {
        let Some(look) = self.look.as_ref().filter(|_| self.found.skipped.is_none()) else { return Ok(None) };
        match look.page(after).await {
            // What was found before is still to be looked at again.
            Err(Trouble::Refused(why)) => {
                self.found.skipped = Some(why);
                Ok(None)
            }
            Err(Trouble::Away(error)) => Err(error),
            Ok(page) => Ok(page),
        }
    }

    /// Counts those of these that still refer to nothing.
    async fn again(&mut self, suspects: Vec<Row_>) -> sqlx::Result<()> {
        let Some(look) = &self.look else { return Ok(()) };
        let still = look.again(suspects).await;
        let Some(real) = self.unless_refused(still)? else { return Ok(()) };
        self.found.count += real.len() as u64;
        let room = SAMPLES - self.found.samples.len();
        let samples = real.into_iter().take(room).map(|(key, refers_to)| Sample { key, refers_to });
        self.found.samples.extend(samples);
        Ok(())
    }

    /// What a look came to; of a reference that was refused nothing, and it is looked at no further.
    fn unless_refused<T>(&mut self, came_to: Result<T, Trouble>) -> sqlx::Result<Option<T>> {
        match came_to {
            Ok(value) => Ok(Some(value)),
            Err(Trouble::Refused(why)) => {
                self.found.skipped = Some(why);
                self.look = None;
                Ok(None)
            }
            Err(Trouble::Away(error)) => Err(error),
        }
    }
}

/// Why a look came to nothing.
enum Trouble {
    /// The server refuses what this reference takes: why, and what mends it.
    Refused(String),
    /// A server is away or busy: no reference can be looked at.
    Away(sqlx::Error),
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Trouble {
        Trouble::Away(error)
    }
}

/// An end of a reference, and where to ask about it.
struct Place<'a> {
    side: Side,
    pool: &'a PgPool,
    table: &'a TableName,
    /// The columns that refer, or are referred to.
    columns: &'a [String],
    /// All that it has.
    of: Columns,
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in the {} database", self.table, self.side)
    }
}

impl<'a> Place<'a> {
    async fn of(
        (side, table, names): &'a (Side, TableName, Vec<String>),
        legacy: &'a PgPool,
        new: &'a PgPool,
    ) -> sqlx::Result<Place<'a>> {
        let pool = if *side == Side::Legacy { legacy } else { new };
        Ok(Place { side: *side, pool, table, columns: names, of: columns(pool, table).await? })
    }

    fn lacks(&self) -> Option<String> {
        let missing = self.of.first_missing(self.columns)?;
        Some(format!("{self} has no column {missing}"))
    }

    fn has_no_key(&self) -> Option<String> {
        self.of.primary_key.is_empty().then(|| format!("{self} has no primary key to page by"))
    }

    /// Asks there, in a transaction of its own.
    async fn ask(&self, sql: &str, arguments: PgArguments) -> Result<Vec<PgRow>, Trouble> {
        let mut session = reading(self.pool).await?;
        let rows = sqlx::query_with(trusted(sql), arguments).persistent(false).fetch_all(session.connection()).await;
        session.rollback().await;
        rows.map_err(|error| {
            let is_refused = sqlstate(&error).is_some() && !is_transient(&error);
            if is_refused { Trouble::Refused(self.refused(&error)) } else { Trouble::Away(error) }
        })
    }

    /// In the server's words, and with the grants that mend it where it is a matter of those.
    fn refused(&self, error: &sqlx::Error) -> String {
        let what = format!("{self}: {}", told(error));
        if sqlstate(error).as_deref() != Some("42501") {
            return what;
        }
        let read = self.columns.iter().chain(&self.of.primary_key).filter_map(|column| self.of.type_of(column));
        let extensions = read.map(|of| &of.operators).filter(|schema| *schema != "pg_catalog");
        let mut schemas: Vec<String> =
            std::iter::once(&self.table.schema).chain(extensions).map(|schema| ident(schema)).collect();
        schemas.sort();
        schemas.dedup();
        let role = ident(self.pool.connect_options().get_username());
        let (schemas, table) = (schemas.join(", "), quoted(self.table));
        format!("{what}: GRANT USAGE ON SCHEMA {schemas} TO {role}; GRANT SELECT ON {table} TO {role};")
    }
}

struct Look<'a> {
    child: Place<'a>,
    parent: Place<'a>,
}

struct Page {
    /// The key of its last row.
    last: Vec<String>,
    /// Its rows that seem to refer to nothing.
    without_parent: Vec<Row_>,
}

impl Look<'_> {
    /// The next rows after a key; `None`: there are none.
    async fn page(&self, after: Option<&[String]>) -> Result<Option<Page>, Trouble> {
        let of = &self.child.of;
        let key = of_child(&of.primary_key);
        let condition = after.map_or_else(String::new, |_| {
            let placeholders = of.primary_key.iter().enumerate();
            let values: Vec<String> = placeholders.map(|(n, c)| of.cast(&format!("${}", n + 1), c)).collect();
            let schemas: Vec<String> = of.primary_key.iter().map(|c| of.operators_of(c).to_owned()).collect();
            format!("WHERE {}", beyond(&key, ">", &values, &schemas))
        });
        let rest = format!("{condition} ORDER BY {} LIMIT {PAGE}", key.join(", "));
        let mut arguments = PgArguments::default();
        for value in after.unwrap_or_default() {
            arguments.add(value.clone()).map_err(sqlx::Error::Encode)?;
        }
        let rows = self.children(&rest, arguments).await?;
        let Some(last) = rows.last().map(|(key, _)| key.clone()) else { return Ok(None) };
        let referring = rows.into_iter().filter(|(_, refers_to)| !refers_to.is_empty()).collect();
        Ok(Some(Page { last, without_parent: self.without_parent(referring).await? }))
    }

    /// Rows of the referring table, which is called `c`.
    async fn children(&self, rest: &str, arguments: PgArguments) -> Result<Vec<Row_>, Trouble> {
        let Place { table, columns, of, .. } = &self.child;
        let columns = of_child(columns);
        let texts = |columns: &[String]| columns.iter().map(|c| format!("{c}::text")).collect::<Vec<_>>().join(", ");
        let any_null = columns.iter().map(|c| format!("{c} IS NULL")).collect::<Vec<_>>().join(" OR ");
        let sql = format!(
            "SELECT ARRAY[{}] AS key, CASE WHEN {any_null} THEN '{{}}' ELSE ARRAY[{}] END AS refers_to FROM {} AS c {rest}",
            texts(&of_child(&of.primary_key)),
            texts(&columns),
            quoted(table),
        );
        let rows = self.child.ask(&sql, arguments).await?;
        let row = |row: &PgRow| -> sqlx::Result<Row_> { Ok((row.try_get("key")?, row.try_get("refers_to")?)) };
        Ok(rows.iter().map(row).collect::<sqlx::Result<Vec<Row_>>>()?)
    }

    async fn without_parent(&self, rows: Vec<Row_>) -> Result<Vec<Row_>, Trouble> {
        if rows.is_empty() {
            return Ok(rows);
        }
        let Place { table, columns, of, .. } = &self.parent;
        let sql = format!(
            "SELECT v.n FROM {} WITH ORDINALITY AS v ({}, n) WHERE NOT EXISTS (SELECT FROM {} AS p WHERE {})",
            lists(columns.len()),
            names(columns.len()),
            quoted(table),
            of.same("p", columns),
        );
        let mut arguments = PgArguments::default();
        for n in 0..columns.len() {
            let values: Vec<&String> = rows.iter().map(|(_, refers_to)| &refers_to[n]).collect();
            arguments.add(values).map_err(sqlx::Error::Encode)?;
        }
        let missing = self.parent.ask(&sql, arguments).await?;
        let missing = missing.iter().map(|row| row.try_get::<i64, _>(0)).collect::<sqlx::Result<Vec<i64>>>()?;
        Ok(missing.into_iter().filter_map(|n| rows.get(usize::try_from(n - 1).ok()?).cloned()).collect())
    }

    /// Of these, those that still refer to nothing.
    async fn again(&self, suspects: Vec<Row_>) -> Result<Vec<Row_>, Trouble> {
        let of = &self.child.of;
        let key = &of.primary_key;
        let rest = format!("JOIN {} AS v ({}) ON {}", lists(key.len()), names(key.len()), of.same("c", key));
        let mut arguments = PgArguments::default();
        for n in 0..key.len() {
            let values: Vec<&String> = suspects.iter().map(|(key, _)| &key[n]).collect();
            arguments.add(values).map_err(sqlx::Error::Encode)?;
        }
        let still: Vec<Row_> =
            self.children(&rest, arguments).await?.into_iter().filter(|row| suspects.contains(row)).collect();
        self.without_parent(still).await
    }
}

/// Columns of the referring table: what the statement itself gives a name to is not meant.
fn of_child(columns: &[String]) -> Vec<String> {
    columns.iter().map(|column| format!("c.{}", ident(column))).collect()
}

/// The parameters, each the values of a column, side by side.
fn lists(columns: usize) -> String {
    let lists: Vec<String> = (1..=columns).map(|n| format!("unnest(${n}::text[])")).collect();
    format!("ROWS FROM ({})", lists.join(", "))
}

/// What those are called.
fn names(columns: usize) -> String {
    (1..=columns).map(|n| format!("v{n}")).collect::<Vec<_>>().join(", ")
}

impl Columns {
    /// A text as a value of this column's type.
    fn cast(&self, value: &str, column: &str) -> String {
        format!("{value}::text::{}", self.type_of(column).map_or("text", |of| of.name.as_str()))
    }

    /// The schema of the operators of this column's type.
    fn operators_of(&self, column: &str) -> &str {
        self.type_of(column).map_or("pg_catalog", |of| of.operators.as_str())
    }

    /// That these columns of a row are what `v` has.
    fn same(&self, row: &str, columns: &[String]) -> String {
        let one = |(n, column): (usize, &String)| {
            let equal = operator(Some(self.operators_of(column)), "=");
            format!("{row}.{} {equal} {}", ident(column), self.cast(&format!("v.v{}", n + 1), column))
        };
        columns.iter().enumerate().map(one).collect::<Vec<_>>().join(" AND ")
    }
}
