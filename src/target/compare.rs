//! Rows of the new database, compared with what a mapping yields.
//!
//! Guarantees: without a lane nothing is written, and every statement is a short transaction of its own. Under a lane's lock what
//! is read is as of after everything that the lane applied.

use std::collections::HashMap;

use sqlx::Row;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;

use super::{Events, Target, TargetLane};
use crate::config::Entity;
use crate::event::Event;
use crate::mapping::MappingError;
use crate::mapping::compare::{Ask, CANONICAL, Comparison, Hash, PROBE, comparison};
use crate::session::{Session, within};
use crate::source::{Range, RowKey};
use crate::sql::query;

/// A row that a mapping yields, beside the one that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// Of the legacy row.
    pub from: RowKey,
    /// Of the new row; a part of it may be NULL, which no row can have.
    pub key: Vec<Option<String>>,
    /// The texts of the compared columns, as they should be.
    pub expected: Vec<Option<String>>,
    /// As they are; `None`: there is no row.
    pub found: Option<Vec<Option<String>>>,
}

/// A row that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// With `replace_by`, the texts of the columns that name its owner, in that order; else none.
    pub values: Vec<Option<String>>,
    /// Changes whenever it is written.
    pub version: String,
}

/// Legacy rows with their keys, as the relation that a comparison reads.
pub struct Shipped<'a> {
    events: Events<'a>,
    keys: Vec<String>,
}

impl<'a> Shipped<'a> {
    /// Each with the key that it comes from.
    pub fn new(rows: &'a [(RowKey, Event)]) -> Shipped<'a> {
        Shipped {
            events: rows.iter().map(|(_, event)| event).collect(),
            keys: rows.iter().map(|(key, _)| array_text(&key.0)).collect(),
        }
    }

    fn bind<'q>(&'q self, sql: &str) -> Query<'q, Postgres, PgArguments> {
        self.events.bind(query(sql, false)).bind(&self.keys)
    }
}

/// `{"a","b"}`
fn array_text(parts: &[String]) -> String {
    let quoted = parts.iter().map(|part| format!("\"{}\"", part.replace('\\', "\\\\").replace('"', "\\\"")));
    format!("{{{}}}", quoted.collect::<Vec<_>>().join(","))
}

impl Target {
    fn read_only(&self) -> String {
        format!("SET TRANSACTION READ ONLY; {} {} {CANONICAL}", self.limits.sql(), self.settings_sql())
    }

    async fn read(&self, question: Query<'_, Postgres, PgArguments>) -> sqlx::Result<Vec<PgRow>> {
        within(self.limits.deadline, async {
            let (mut session, _) = Session::begin(&self.pool, &self.read_only()).await?;
            let rows = question.fetch_all(session.connection()).await?;
            session.commit().await?;
            Ok(rows)
        })
        .await
    }

    /// How this server hashes some texts, and its encoding.
    pub async fn hash_probe(&self) -> sqlx::Result<String> {
        let rows = self.read(query(PROBE, false)).await?;
        rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
    }

    /// An entity's comparison; `None`: it has no table.
    pub async fn comparison(&self, entity: &Entity, ignored: &[String]) -> Result<Option<Comparison>, MappingError> {
        let away = |error| MappingError::database(entity, error);
        let (mut session, _) = Session::begin(&self.pool, &self.read_only()).await.map_err(away)?;
        let made = comparison(entity, session.connection(), &self.schema, ignored).await;
        session.rollback().await;
        made
    }

    /// The key after so many others in the range, if there is one.
    pub async fn bound(&self, comparison: &Comparison, range: &Range, rows: u64) -> sqlx::Result<Option<RowKey>> {
        let sql = comparison.bound(range.after.is_some(), range.until.is_some());
        let (after, until) = range.bounds();
        let found =
            self.read(query(&sql, false).bind(rows.saturating_sub(1).cast_signed()).bind(after).bind(until)).await?;
        found.first().map(|row| row.try_get("key").map(RowKey)).transpose()
    }

    /// The table's rows in a range; by so many buckets, and of them the wanted ones, or all as one.
    pub async fn compared(
        &self,
        comparison: &Comparison,
        hash: Hash,
        what: Ask,
        range: &Range,
        buckets: Option<(i64, Option<&[i64]>)>,
    ) -> sqlx::Result<Vec<PgRow>> {
        let sql = comparison.table(hash, what, range.after.is_some(), range.until.is_some(), buckets.is_some());
        let (buckets, wanted) = buckets.unwrap_or((1, None));
        let (after, until) = range.bounds();
        self.read(query(&sql, false).bind(buckets).bind(after).bind(until).bind(wanted)).await
    }

    /// Legacy rows, mapped here.
    pub async fn compared_shipped(
        &self,
        comparison: &Comparison,
        hash: Hash,
        what: Ask,
        rows: &Shipped<'_>,
        buckets: Option<(i64, Option<&[i64]>)>,
    ) -> sqlx::Result<Vec<PgRow>> {
        let sql = comparison.shipped(hash, what, buckets.is_some());
        let (buckets, wanted) = buckets.unwrap_or((1, None));
        self.read(rows.bind(&sql).bind(buckets).bind(wanted)).await
    }

    /// Legacy rows, mapped, beside what stands; without a lock.
    pub async fn look(&self, comparison: &Comparison, rows: &Shipped<'_>) -> sqlx::Result<Vec<Looked>> {
        self.read(rows.bind(&comparison.look())).await?.iter().map(looked).collect()
    }

    /// The rows that have these keys, without a lock.
    pub async fn found(&self, comparison: &Comparison, keys: &[RowKey]) -> sqlx::Result<HashMap<RowKey, Found>> {
        let sql = comparison.found();
        self.read(bind_keys(&sql, comparison, keys)).await?.iter().map(found).collect()
    }

    /// How many rows of the table have NULL in their key.
    pub async fn without_key(&self, comparison: &Comparison) -> sqlx::Result<u64> {
        let Some(sql) = comparison.without_key() else { return Ok(0) };
        let rows = self.read(query(&sql, false)).await?;
        rows.first().map_or(Ok(0), |row| row.try_get::<i64, _>(0).map(i64::unsigned_abs))
    }

    /// Some keys of the table at random.
    pub async fn sample(&self, comparison: &Comparison, rows: u32) -> sqlx::Result<Vec<RowKey>> {
        let rows_of = query(crate::source::SAMPLED_ROWS, false).bind(comparison.table_name());
        let tuples = self.read(rows_of).await?;
        let tuples: f64 = tuples.first().map_or(Ok(0.0), |row| row.try_get(0))?;
        let share = crate::source::percentage(tuples, rows);
        let mut found = self.read(query(&comparison.sample(), false).bind(i64::from(rows)).bind(share)).await?;
        if found.is_empty() {
            // As with legacy rows: any, where by statistics of another time no page is drawn.
            found = self.read(query(&comparison.some(), false).bind(i64::from(rows))).await?;
        }
        found.iter().map(|row| row.try_get("key").map(RowKey)).collect()
    }
}

impl TargetLane {
    /// Values become text the same way as everywhere, from now on in this transaction.
    pub async fn canonical(&mut self) -> sqlx::Result<()> {
        self.session.script(&format!("RELEASE SAVEPOINT relay; {CANONICAL} SAVEPOINT relay")).await.map(drop)
    }

    /// Legacy rows, mapped, beside what stands.
    pub async fn look(&mut self, comparison: &Comparison, rows: &Shipped<'_>) -> sqlx::Result<Vec<Looked>> {
        rows.bind(&comparison.look()).fetch_all(self.session.connection()).await?.iter().map(looked).collect()
    }

    /// The rows that have these keys.
    pub async fn found(&mut self, comparison: &Comparison, keys: &[RowKey]) -> sqlx::Result<HashMap<RowKey, Found>> {
        let sql = comparison.found();
        bind_keys(&sql, comparison, keys).fetch_all(self.session.connection()).await?.iter().map(found).collect()
    }

    /// The whole rows that have these keys, as JSON.
    pub async fn whole(&mut self, comparison: &Comparison, keys: &[RowKey]) -> sqlx::Result<HashMap<RowKey, String>> {
        let sql = comparison.whole();
        let rows = bind_keys(&sql, comparison, keys).fetch_all(self.session.connection()).await?;
        rows.iter().map(|row| Ok((RowKey(row.try_get("row_key")?), row.try_get("row")?))).collect()
    }

    /// The rows of these owners, as [`Comparison::owned`] has them.
    pub async fn owned(
        &mut self,
        comparison: &Comparison,
        owners: &[Vec<String>],
        at_most: usize,
    ) -> sqlx::Result<HashMap<RowKey, Found>> {
        let sql = comparison.owned(at_most);
        bind_owners(query(&sql, false), comparison, owners)
            .fetch_all(self.session.connection())
            .await?
            .iter()
            .map(found)
            .collect()
    }

    /// Whether any row of these owners has NULL in its key.
    pub async fn owns_nameless(&mut self, comparison: &Comparison, owners: &[Vec<String>]) -> sqlx::Result<bool> {
        let Some(sql) = comparison.owned_nameless() else { return Ok(false) };
        let question = bind_owners(query(&sql, false), comparison, owners);
        // All of at most one: of an answer without columns sqlx gives no optional one.
        Ok(!question.fetch_all(self.session.connection()).await?.is_empty())
    }

    /// Deletes the rows that have these keys and are still of one of these versions; each as it was.
    pub async fn delete_rows(
        &mut self,
        comparison: &Comparison,
        keys: &[RowKey],
        versions: &[String],
    ) -> sqlx::Result<HashMap<RowKey, String>> {
        let sql = comparison.delete();
        let delete = bind_keys(&sql, comparison, keys).bind(versions);
        let rows = delete.fetch_all(self.session.connection()).await?;
        rows.iter().map(|row| Ok((RowKey(row.try_get("row_key")?), row.try_get("before")?))).collect()
    }
}

fn bind_keys<'q>(sql: &str, comparison: &Comparison, keys: &'q [RowKey]) -> Query<'q, Postgres, PgArguments> {
    let mut question = query(sql, false);
    for n in 0..comparison.entity.key.len() {
        question = question.bind(keys.iter().filter_map(|key| key.0.get(n).map(String::as_str)).collect::<Vec<_>>());
    }
    question
}

fn bind_owners<'q>(
    mut question: Query<'q, Postgres, PgArguments>,
    comparison: &Comparison,
    owners: &'q [Vec<String>],
) -> Query<'q, Postgres, PgArguments> {
    for n in 0..comparison.entity.replace_by.len() {
        question = question.bind(owners.iter().filter_map(|of| of.get(n).map(String::as_str)).collect::<Vec<_>>());
    }
    question
}

fn looked(row: &PgRow) -> sqlx::Result<Looked> {
    Ok(Looked {
        from: RowKey(row.try_get("from_key")?),
        key: row.try_get("row_key")?,
        expected: row.try_get("expected")?,
        found: row.try_get("found")?,
    })
}

fn found(row: &PgRow) -> sqlx::Result<(RowKey, Found)> {
    Ok((RowKey(row.try_get("row_key")?), Found { values: row.try_get("found")?, version: row.try_get("version")? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_becomes_the_text_of_an_array() {
        for (parts, text) in
            [(vec!["1"], "{\"1\"}"), (vec!["a\"b\\c", "", "{x,y}"], "{\"a\\\"b\\\\c\",\"\",\"{x,y}\"}")]
        {
            assert_eq!(array_text(&parts.into_iter().map(str::to_owned).collect::<Vec<_>>()), text);
        }
    }
}
