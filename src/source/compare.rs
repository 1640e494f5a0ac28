//! The legacy rows of an entity, compared: checksums of ranges, and what the look at single keys needs.
//!
//! Guarantees: every statement is short, in a read-only transaction of its own, and holds no snapshot beyond itself.

use std::collections::HashMap;

use sqlx::Row;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;

use super::legacy::key_at;
use super::{KeyAt, Legacy, LegacyRow, RowKey, Source, SourceLane};
use crate::config::{Entity, RowsFrom};
use crate::mapping::compare::{Ask, CANONICAL, Comparison, Hash, PROBE};
use crate::session::{Session, ask, is_late, sqlstate, within};
use crate::sql::{ident, render};

/// `unnest($1::text[]), …`
pub(super) fn key_arrays(columns: usize) -> String {
    (1..=columns).map(|n| format!("unnest(${n}::text[])")).collect::<Vec<_>>().join(", ")
}

/// Keys that are read as their types at a time.
const AT_ONCE: usize = 1_000;

pub(super) fn bind_keys<'q>(
    mut query: Query<'q, Postgres, PgArguments>,
    legacy: &Legacy,
    keys: &'q [RowKey],
) -> Query<'q, Postgres, PgArguments> {
    for n in 0..legacy.key.len() {
        query = query.bind(keys.iter().filter_map(|key| key.0.get(n).map(String::as_str)).collect::<Vec<_>>());
    }
    query
}

impl RowKey {
    /// Whether an error says that a value, as a part of a key is one, is not what a type, or a domain, takes.
    pub(crate) fn is_not_taken(error: &sqlx::Error) -> bool {
        sqlstate(error).is_some_and(|code| code.starts_with("22") || code == "23514")
    }
}

fn aggregates_or_none(answer: sqlx::Result<Vec<PgRow>>) -> sqlx::Result<Option<Vec<KeyAt>>> {
    match answer {
        Ok(rows) => rows.iter().map(key_at).collect::<sqlx::Result<_>>().map(Some),
        // No such column; or the expression refuses the key.
        Err(error)
            if RowKey::is_not_taken(&error)
                || sqlstate(&error).is_some_and(|code| matches!(code.as_ref(), "42703" | "42P01")) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A range of keys: after one, up to and including another; an end that is not given is open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    /// `None`: from the lowest.
    pub after: Option<RowKey>,
    /// `None`: to the highest.
    pub until: Option<RowKey>,
}

impl Range {
    /// As parameters.
    pub(crate) fn bounds(&self) -> (Option<Vec<String>>, Option<Vec<String>>) {
        let bound = |key: &Option<RowKey>| key.as_ref().map(|key| key.0.clone());
        (bound(&self.after), bound(&self.until))
    }
}

impl Source {
    pub(super) fn read_only(legacy: &Legacy) -> String {
        format!("SET TRANSACTION READ ONLY; {} {CANONICAL}", legacy.settings)
    }

    /// How this server hashes some texts, and its encoding.
    pub async fn hash_probe(&self) -> sqlx::Result<String> {
        let rows = self.ask("", self.query(PROBE)).await?;
        rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
    }

    /// Whether this server understands an entity's mapping by itself: no table, type or function beyond what every Postgres has.
    pub async fn understands(&self, comparison: &Comparison) -> sqlx::Result<bool> {
        let Some(sql) = comparison.trial() else { return Ok(false) };
        let none: Option<Vec<String>> = None;
        let trial = crate::sql::query(&sql, false).bind(1i64).bind(none.clone()).bind(none).bind(None::<Vec<i64>>);
        let settings = format!("SET TRANSACTION READ ONLY; {CANONICAL} SET LOCAL search_path = pg_catalog;");
        let limits = self.limits;
        let planned = crate::session::within(limits.deadline, async {
            let (mut session, _) = Session::begin(&self.pool, &format!("{} {settings}", limits.sql())).await?;
            let planned = trial.fetch_one(session.connection()).await;
            session.rollback().await;
            planned
        });
        match planned.await {
            Ok(row) => {
                // json, whose text is what is sent.
                let plan: String = row.try_get_unchecked(0)?;
                Ok(!plan.contains("\"Relation Name\""))
            }
            Err(error)
                if sqlstate(&error)
                    .is_some_and(|code| !crate::disposition::is_transient(&error) || code == "0A000") =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The key after so many others in the range, if there is one.
    pub async fn legacy_bound(&self, legacy: &Legacy, range: &Range, rows: u64) -> sqlx::Result<Option<RowKey>> {
        let file = include_str!("../../sql/legacy/bound.sql");
        let sql = legacy.render_range(file, range.after.is_some(), range.until.is_some());
        let (after, until) = range.bounds();
        let found = crate::sql::query(&sql, false).bind(rows.saturating_sub(1).cast_signed()).bind(after).bind(until);
        let found = ask(&self.pool, self.limits, &Self::read_only(legacy), found).await?;
        found.first().map(|row| row.try_get("key").map(RowKey)).transpose()
    }

    /// The columns of the table that an entity's legacy rows are, with the oids of their types; none of a query.
    pub async fn legacy_columns(&self, entity: &Entity) -> sqlx::Result<Vec<(String, u32)>> {
        let Some(RowsFrom::Table(table)) = entity.legacy.as_ref().map(|rows| &rows.from) else { return Ok(Vec::new()) };
        let sql = include_str!("../../sql/legacy/columns.sql");
        let rows = self.ask("", crate::sql::query(sql, false).bind(&table.schema).bind(&table.table)).await?;
        let column = |row: &PgRow| -> sqlx::Result<(String, u32)> {
            Ok((row.try_get("name")?, u32::try_from(row.try_get::<i64, _>("type")?).unwrap_or(0)))
        };
        rows.iter().map(column).collect()
    }

    /// The mapping over the legacy rows of a range, evaluated here; `None`: it cannot be.
    pub async fn legacy_compared(
        &self,
        legacy: &Legacy,
        comparison: &Comparison,
        hash: Hash,
        what: Ask,
        range: &Range,
        buckets: Option<(i64, Option<&[i64]>)>,
    ) -> sqlx::Result<Option<Vec<PgRow>>> {
        let batch = legacy.compared(range.after.is_some(), range.until.is_some(), comparison.plain_columns());
        let Some(sql) = comparison.over_legacy(&batch, hash, what, buckets.is_some()) else { return Ok(None) };
        let (buckets, wanted) = buckets.unwrap_or((1, None));
        let (after, until) = range.bounds();
        let question = crate::sql::query(&sql, false).bind(buckets).bind(after).bind(until).bind(wanted);
        ask(&self.pool, self.limits, &Self::read_only(legacy), question).await.map(Some)
    }

    /// The rows that these keys have now, without a lock. What lies beyond the bytes has no payload. A key that is none of the key's types
    /// has no row.
    pub async fn legacy_rows(
        &self,
        legacy: &Legacy,
        keys: &[RowKey],
        payload_bytes: u64,
    ) -> sqlx::Result<Vec<LegacyRow>> {
        let rows = match self.rows_of_keys(legacy, keys, payload_bytes).await {
            Err(error) if RowKey::is_not_taken(&error) => {
                let possible = self.possible(legacy, keys).await?;
                // Else it is a value of a row: which must not be taken for no row.
                if possible.len() == keys.len() {
                    return Err(error);
                }
                self.rows_of_keys(legacy, &possible, payload_bytes).await?
            }
            rows => rows?,
        };
        legacy.rows_of(futures_util::stream::iter(rows.into_iter().map(Ok))).await
    }

    async fn rows_of_keys(&self, legacy: &Legacy, keys: &[RowKey], payload_bytes: u64) -> sqlx::Result<Vec<PgRow>> {
        let sql = render(include_str!("../../sql/legacy/rows.sql"), &legacy.names);
        let query = crate::sql::query(&sql, false).bind(i64::try_from(payload_bytes).unwrap_or(i64::MAX));
        ask(&self.pool, self.limits, &Self::read_only(legacy), bind_keys(query, legacy, keys)).await
    }

    /// Of these keys, those that are of the key's types: no row can have another one.
    async fn possible(&self, legacy: &Legacy, keys: &[RowKey]) -> sqlx::Result<Vec<RowKey>> {
        let written = self.keys_as_written(legacy, keys).await?;
        Ok(keys.iter().filter(|key| written.contains_key(*key)).cloned().collect())
    }

    /// Each of these keys that is of the key's types, as these write it: `007` is `7`. What is not is found by halves.
    pub async fn keys_as_written(&self, legacy: &Legacy, keys: &[RowKey]) -> sqlx::Result<HashMap<RowKey, RowKey>> {
        let given: Vec<String> = (1..=legacy.key.len()).map(|n| format!("relay_key.relay_k{n}")).collect();
        let sql = format!(
            "SELECT relay_row.relay_given AS given, ARRAY[{{row_texts}}]::text[] AS key \
             FROM (SELECT ARRAY[{}]::text[] AS relay_given, {{given_columns}} FROM {{keys_only}}) AS relay_row",
            given.join(", ")
        );
        let sql = render(&sql, &legacy.names);
        let script = format!("{} {} SAVEPOINT relay;", self.limits.sql(), Self::read_only(legacy));
        let mut written = HashMap::new();
        for some in keys.chunks(AT_ONCE) {
            within(self.limits.deadline, async {
                let (mut session, _) = Session::begin(&self.pool, &script).await?;
                let mut parts = vec![some];
                while let Some(part) = parts.pop() {
                    let query = bind_keys(crate::sql::query(&sql, false), legacy, part);
                    match query.fetch_all(session.connection()).await {
                        Ok(rows) => {
                            for row in &rows {
                                written.insert(RowKey(row.try_get("given")?), RowKey(row.try_get("key")?));
                            }
                        }
                        Err(error) if RowKey::is_not_taken(&error) => {
                            session.script("ROLLBACK TO SAVEPOINT relay").await?;
                            if part.len() > 1 {
                                let (lower, upper) = part.split_at(part.len() / 2);
                                parts.extend([lower, upper]);
                            }
                        }
                        Err(error) => return Err(error),
                    }
                }
                session.commit().await
            })
            .await?;
        }
        Ok(written)
    }

    /// Whose these keys are, where no row has them: `None` if the aggregate's expression needs more than the key. A key that is none of the
    /// key's types is nobody's, and left out.
    pub async fn aggregates_of(&self, legacy: &Legacy, keys: &[RowKey]) -> sqlx::Result<Option<Vec<KeyAt>>> {
        match self.aggregates_of_keys(legacy, keys).await {
            Err(error) if RowKey::is_not_taken(&error) => {
                let possible = self.possible(legacy, keys).await?;
                if possible.len() == keys.len() {
                    return Ok(None);
                }
                aggregates_or_none(self.aggregates_of_keys(legacy, &possible).await)
            }
            answer => aggregates_or_none(answer),
        }
    }

    async fn aggregates_of_keys(&self, legacy: &Legacy, keys: &[RowKey]) -> sqlx::Result<Vec<PgRow>> {
        let sql = render(include_str!("../../sql/legacy/aggregates.sql"), &legacy.names);
        let query = bind_keys(crate::sql::query(&sql, false), legacy, keys);
        ask(&self.pool, self.limits, &Self::read_only(legacy), query).await
    }

    /// Some keys at random.
    pub async fn legacy_sample(&self, legacy: &Legacy, entity: &Entity, rows: u32) -> sqlx::Result<Vec<RowKey>> {
        let Some(of) = &entity.legacy else { return Ok(Vec::new()) };
        let texts: Vec<String> = of.key.iter().map(|c| format!("relay_row.{}::text", ident(c))).collect();
        let from = match &of.from {
            RowsFrom::Table(table) => {
                let name = format!("{}.{}", ident(&table.schema), ident(&table.table));
                let found = self.ask("", crate::sql::query(SAMPLED_ROWS, false).bind(&name)).await?;
                let tuples: f64 = found.first().map_or(Ok(0.0), |row| row.try_get(0))?;
                format!("{name} AS relay_row TABLESAMPLE SYSTEM ({})", percentage(tuples, rows))
            }
            RowsFrom::Query(_) => format!("{} AS relay_row", of.relation()),
        };
        let key = format!("ARRAY[{}]::text[] AS key", texts.join(", "));
        let sql = format!("SELECT {key} FROM {from} ORDER BY random() LIMIT $1");
        let drawn = crate::sql::query(&sql, false).bind(i64::from(rows));
        let mut found = ask(&self.pool, self.limits, &Self::read_only(legacy), drawn).await.map_err(|error| {
            let whole = matches!(of.from, RowsFrom::Query(_)) && is_late(&error);
            if whole { sampled_whole(self.limits.deadline) } else { error }
        })?;
        if found.is_empty() && matches!(of.from, RowsFrom::Table(_)) {
            // By statistics of another time no page may be drawn: then any rows, for none at all would pass for an empty table.
            let sql = format!("SELECT {key} FROM {} AS relay_row LIMIT $1", of.relation());
            let any = crate::sql::query(&sql, false).bind(i64::from(rows));
            found = ask(&self.pool, self.limits, &Self::read_only(legacy), any).await?;
        }
        found.iter().map(|row| row.try_get("key").map(RowKey)).collect()
    }

    /// A mark behind every event that is committed now.
    pub async fn newest_id(&self) -> sqlx::Result<i64> {
        let sql = self.names.render(include_str!("../../sql/source/newest_id.sql"));
        let rows = self.ask("", self.query(&sql)).await?;
        rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
    }

    /// Whether events of a type up to the mark are on their way, or stuck.
    pub async fn open_until(&self, aggregate_type: &str, mark: i64) -> sqlx::Result<(bool, bool)> {
        let sql = self.names.render(include_str!("../../sql/source/open_until.sql"));
        let rows = self.ask("", self.query(&sql).bind(aggregate_type).bind(mark)).await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        Ok((row.try_get("pending")?, row.try_get("stuck")?))
    }
}

/// On either side, about how many rows a table has.
pub(crate) const SAMPLED_ROWS: &str = include_str!("../../sql/legacy/sampled_rows.sql");

fn sampled_whole(deadline: std::time::Duration) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!(
            "no answer within {deadline:?}: all rows of a query are read to take a sample of them. Verify without --sample, which reads them a \
             part at a time; or raise relay.deadline"
        ),
    ))
}

/// Of a table's pages, so that some more than the wanted rows stand on them.
pub(crate) fn percentage(tuples: f64, wanted: u32) -> f64 {
    // A table without statistics, or a small one, is read as a whole.
    let share = f64::from(wanted) * 400.0 / tuples.max(1.0);
    if tuples < 20_000.0 { 100.0 } else { share.clamp(0.01, 100.0) }
}

impl SourceLane {
    /// Which event, and in which state, keeps each of these aggregates from being compared.
    pub async fn waiting_events(
        &mut self,
        aggregate_type: &str,
        ids: &[&str],
    ) -> sqlx::Result<Vec<(String, i64, String)>> {
        let sql = self.source.names.render(include_str!("../../sql/source/waiting_events.sql"));
        let question = self.source.query(&sql).bind(self.lane).bind(aggregate_type).bind(ids);
        let rows = question.fetch_all(self.session.connection()).await?;
        rows.iter()
            .map(|row| {
                let word: String = row.try_get("status")?;
                let status = self.source.names.status(&word).map_or(word, |status| status.to_string());
                Ok((row.try_get("aggregate_id")?, row.try_get("id")?, status))
            })
            .collect()
    }
}
