//! Rows that refer to a row that is not there, within a database or from one to the other.
//!
//! Reads the referring table a page of its primary key at a time, and asks the other end about each page: short transactions, on
//! an index, whatever the size. What is found is looked at once more a little later, all of it together, so that a row whose parent was on
//! its way is none.

use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::PgPool;
use sqlx::{Arguments as _, Row, postgres::PgArguments};

use super::{Columns, Plan, Reference, columns, list, quoted, reading};
use crate::init::Side;
use crate::sql::{ident, trusted};

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
    /// Why it could not be looked at, if so.
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
    let (mut looks, mut suspects) = (Vec::new(), Suspects::default());
    let mut found = Vec::new();
    for (nth, reference) in plan.references.iter().enumerate() {
        let (orphans, look) = of_reference(reference, legacy, new).await?;
        found.push(orphans);
        looks.push(look);
        let mut after: Option<Vec<String>> = None;
        while let Some(Some(look)) = looks.get(nth) {
            let page = look.page(after.as_deref()).await?;
            let Some((last, _)) = page.rows.last() else { break };
            after = Some(last.clone());
            suspects.hold(nth, look.without_parent(page.referring()).await?);
            if suspects.rows >= HELD {
                suspects.settle(&looks, &mut found).await?;
            }
        }
    }
    suspects.settle(&looks, &mut found).await?;
    Ok(found)
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

    /// Waits, once for all, and counts those that still refer to nothing.
    async fn settle(&mut self, looks: &[Option<Look<'_>>], found: &mut [Orphans]) -> sqlx::Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        tracing::info!(rows = self.rows, "rows seem to refer to nothing: looking again in {AGAIN_AFTER:?}");
        tokio::time::sleep(AGAIN_AFTER).await;
        for (nth, rows) in std::mem::take(self).pages {
            let (Some(Some(look)), Some(orphans)) = (looks.get(nth), found.get_mut(nth)) else { continue };
            let real = look.again(rows).await?;
            orphans.count += real.len() as u64;
            let room = SAMPLES - orphans.samples.len();
            let samples = real.into_iter().take(room).map(|(key, refers_to)| Sample { key, refers_to });
            orphans.samples.extend(samples);
        }
        Ok(())
    }
}

/// One page's worth of references.
type Row_ = (Vec<String>, Vec<String>);

struct Look<'a> {
    child: (&'a PgPool, String, &'a [String], Columns),
    parent: (&'a PgPool, String, &'a [String], Columns),
}

/// What is looked at, with nothing found yet; `None`: it cannot be, as is told.
async fn of_reference<'a>(
    reference: &'a Reference,
    legacy: &'a PgPool,
    new: &'a PgPool,
) -> sqlx::Result<(Orphans, Option<Look<'a>>)> {
    let pool = |side: Side| if side == Side::Legacy { legacy } else { new };
    let (child, parent) = (&reference.child, &reference.parent);
    let told = |(side, table, columns): &(Side, crate::config::TableName, Vec<String>)| {
        format!("{side} {table} ({})", columns.join(", "))
    };
    let mut orphans = Orphans {
        constraint: reference.what.clone(),
        child: told(child),
        parent: told(parent),
        count: 0,
        samples: Vec::new(),
        skipped: None,
    };
    let look = Look {
        child: (pool(child.0), quoted(&child.1), &child.2, columns(pool(child.0), &child.1).await?),
        parent: (pool(parent.0), quoted(&parent.1), &parent.2, columns(pool(parent.0), &parent.1).await?),
    };
    let lacks = |(side, table, names): &(Side, crate::config::TableName, Vec<String>), of: &Columns| {
        let missing = of.first_missing(names)?;
        Some(format!("{table} in the {side} database has no column {missing}"))
    };
    let no_key = || {
        let paged = !look.child.3.primary_key.is_empty();
        (!paged).then(|| format!("{} in the {} database has no primary key to page by", child.1, child.0))
    };
    orphans.skipped = lacks(child, &look.child.3).or_else(|| lacks(parent, &look.parent.3)).or_else(no_key);
    let can_be = orphans.skipped.is_none();
    Ok((orphans, can_be.then_some(look)))
}

struct Page {
    /// Keys in order; an empty reference where a column of it is NULL: that refers to nothing, by intent.
    rows: Vec<Row_>,
}

impl Page {
    fn referring(self) -> Vec<Row_> {
        self.rows.into_iter().filter(|(_, refers_to)| !refers_to.is_empty()).collect()
    }
}

impl Look<'_> {
    async fn page(&self, after: Option<&[String]>) -> sqlx::Result<Page> {
        let (_, _, _, of) = &self.child;
        let key = &of.primary_key;
        let (condition, values) = match after {
            None => (String::new(), Vec::new()),
            Some(after) => {
                let placeholders: Vec<String> =
                    key.iter().enumerate().map(|(n, column)| of.cast(&format!("${}", n + 1), column)).collect();
                (format!("WHERE ({}) > ({})", list(key), placeholders.join(", ")), after.to_vec())
            }
        };
        let rest = format!("{condition} ORDER BY {} LIMIT {PAGE}", list(key));
        let mut arguments = PgArguments::default();
        for value in values {
            arguments.add(value).map_err(sqlx::Error::Encode)?;
        }
        Ok(Page { rows: self.children(&rest, arguments).await? })
    }

    /// Rows of the referring table: primary key, and what they refer to.
    async fn children(&self, rest: &str, arguments: PgArguments) -> sqlx::Result<Vec<Row_>> {
        let (pool, table, columns, of) = &self.child;
        let texts =
            |columns: &[String]| columns.iter().map(|c| format!("{}::text", ident(c))).collect::<Vec<_>>().join(", ");
        let any_null = columns.iter().map(|c| format!("{} IS NULL", ident(c))).collect::<Vec<_>>().join(" OR ");
        let sql = format!(
            "SELECT ARRAY[{}] AS key, CASE WHEN {any_null} THEN '{{}}' ELSE ARRAY[{}] END AS refers_to FROM {table} AS c {rest}",
            texts(&of.primary_key),
            texts(columns),
        );
        let mut session = reading(pool).await?;
        let rows = sqlx::query_with(trusted(&sql), arguments).persistent(false).fetch_all(session.connection()).await;
        session.rollback().await;
        rows?.iter().map(|row| Ok((row.try_get("key")?, row.try_get("refers_to")?))).collect()
    }

    async fn without_parent(&self, rows: Vec<Row_>) -> sqlx::Result<Vec<Row_>> {
        if rows.is_empty() {
            return Ok(rows);
        }
        let (pool, table, columns, of) = &self.parent;
        let lists: Vec<String> = (1..=columns.len()).map(|n| format!("${n}::text[]")).collect();
        let names: Vec<String> = (1..=columns.len()).map(|n| format!("v{n}")).collect();
        let same: Vec<String> = columns
            .iter()
            .zip(&names)
            .map(|(column, v)| format!("p.{} = {}", ident(column), of.cast(&format!("v.{v}"), column)))
            .collect();
        let sql = format!(
            "SELECT v.n FROM ROWS FROM (unnest({})) WITH ORDINALITY AS v ({}, n) WHERE NOT EXISTS (SELECT FROM {table} AS p WHERE {})",
            lists.join("), unnest("),
            names.join(", "),
            same.join(" AND "),
        );
        let mut arguments = PgArguments::default();
        for n in 0..columns.len() {
            let values: Vec<&String> = rows.iter().map(|(_, refers_to)| &refers_to[n]).collect();
            arguments.add(values).map_err(sqlx::Error::Encode)?;
        }
        let mut session = reading(pool).await?;
        let missing =
            sqlx::query_with(trusted(&sql), arguments).persistent(false).fetch_all(session.connection()).await;
        session.rollback().await;
        let missing = missing?.iter().map(|row| row.try_get::<i64, _>(0)).collect::<sqlx::Result<Vec<i64>>>()?;
        Ok(missing.into_iter().filter_map(|n| rows.get(usize::try_from(n - 1).ok()?).cloned()).collect())
    }

    /// Of these, those that still refer to nothing.
    async fn again(&self, suspects: Vec<Row_>) -> sqlx::Result<Vec<Row_>> {
        let (_, _, _, of) = &self.child;
        let key = &of.primary_key;
        let lists: Vec<String> = (1..=key.len()).map(|n| format!("${n}::text[]")).collect();
        let names: Vec<String> = (1..=key.len()).map(|n| format!("v{n}")).collect();
        let same: Vec<String> = key
            .iter()
            .zip(&names)
            .map(|(column, v)| format!("c.{} = {}", ident(column), of.cast(&format!("v.{v}"), column)))
            .collect();
        let rest = format!(
            "JOIN ROWS FROM (unnest({})) AS v ({}) ON {}",
            lists.join("), unnest("),
            names.join(", "),
            same.join(" AND ")
        );
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

impl Columns {
    /// A text as a value of this column's type.
    fn cast(&self, value: &str, column: &str) -> String {
        format!("{value}::text::{}", self.type_of(column).unwrap_or("text"))
    }
}
