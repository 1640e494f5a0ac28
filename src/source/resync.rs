//! What a resync asks: which aggregates, and which rows are theirs.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::Row;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::compare::bind_keys;
use super::{KeyAt, Legacy, RowKey, Source};
use crate::session::ask;
use crate::sql::render;

impl Source {
    /// A type's divergent aggregates, and the events by which they are.
    pub async fn divergent_aggregates(&self, aggregate_type: &str) -> sqlx::Result<(Vec<String>, Vec<Uuid>)> {
        let sql = self.names.render(include_str!("../../sql/source/divergent_aggregates.sql"));
        let rows = self.ask("", self.query(&sql).bind(aggregate_type)).await?;
        let mut ids: Vec<String> = rows.iter().map(|row| row.try_get("aggregate_id")).collect::<sqlx::Result<_>>()?;
        ids.dedup();
        Ok((ids, rows.iter().map(|row| row.try_get("event_id")).collect::<sqlx::Result<_>>()?))
    }

    /// Forgets these divergent events; how many there were.
    pub async fn clear_divergent(&self, events: &[Uuid]) -> sqlx::Result<u64> {
        let sql = self.names.render(include_str!("../../sql/source/clear_divergent.sql"));
        let rows = self.ask("", self.query(&format!("{} RETURNING 1", sql.trim_end())).bind(events)).await?;
        Ok(rows.len() as u64)
    }

    /// A type's aggregates that had an event written in that time, by a walk over the outbox; `None`: it was told to end.
    pub async fn aggregates_between(
        &self,
        aggregate_type: &str,
        since: DateTime<Utc>,
        until: DateTime<Utc>,
        stop: &CancellationToken,
    ) -> sqlx::Result<Option<BTreeSet<String>>> {
        const PAGE: i64 = 50_000;
        let sql = self.names.render(include_str!("../../sql/source/aggregates_between.sql"));
        let (mut found, mut after) = (BTreeSet::new(), i64::MIN);
        while !stop.is_cancelled() {
            let page = self.query(&sql).bind(aggregate_type).bind(since).bind(until).bind(after).bind(PAGE);
            let rows = self.ask("", page).await?;
            let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            let Some(last) = row.try_get::<Option<i64>, _>("last")? else { return Ok(Some(found)) };
            after = last;
            found.extend(row.try_get::<Option<Vec<String>>, _>("aggregate_ids")?.unwrap_or_default());
        }
        Ok(None)
    }

    /// Whether an aggregate's id is the key of its row, as far as these show: then it need not be searched for.
    pub async fn is_its_key(&self, legacy: &Legacy, ids: &[String]) -> sqlx::Result<bool> {
        if legacy.key.len() != 1 {
            return Ok(false);
        }
        let keys: Vec<RowKey> = ids.iter().map(|id| RowKey(vec![id.clone()])).collect();
        let found = self.aggregates_of(legacy, &keys).await?;
        let each = |found: Vec<KeyAt>| {
            // Of an id that no key can be nothing was found.
            found.len() == ids.len() && found.iter().all(|at| at.aggregate_id.as_ref() == at.key.0.first())
        };
        Ok(found.is_some_and(each))
    }

    /// These keys as their rows have them, each once, however they were written; and those that no row has, as the key's types write them, or
    /// as they were given where they are none of these.
    pub async fn keys_of_rows(&self, legacy: &Legacy, keys: &[RowKey]) -> sqlx::Result<(Vec<RowKey>, Vec<RowKey>)> {
        const AT_ONCE: usize = 1_000;
        let written = self.keys_as_written(legacy, keys).await?;
        let possible: Vec<RowKey> = written.values().cloned().collect();
        let given: Vec<String> = (1..=legacy.key.len()).map(|n| format!("relay_key.relay_k{n}")).collect();
        let sql = format!(
            "SELECT ARRAY[{}]::text[] AS given, ARRAY[{{row_texts}}]::text[] AS key \
             FROM {{keys_only}} JOIN {{rows}} AS relay_row ON {{key_is_given}}",
            given.join(", ")
        );
        let sql = render(&sql, &legacy.names);
        let mut of_rows: HashMap<RowKey, RowKey> = HashMap::new();
        for some in possible.chunks(AT_ONCE) {
            let query = bind_keys(crate::sql::query(&sql, false), legacy, some);
            for row in &ask(&self.pool, self.limits, &Self::read_only(legacy), query).await? {
                of_rows.insert(RowKey(row.try_get("given")?), RowKey(row.try_get("key")?));
            }
        }
        let (mut there, mut not, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for key in keys {
            let key = written.get(key).unwrap_or(key);
            let of_row = of_rows.get(key);
            if seen.insert(of_row.unwrap_or(key)) {
                let side = if of_row.is_some() { &mut there } else { &mut not };
                side.push(of_row.unwrap_or(key).clone());
            }
        }
        Ok((there, not))
    }

    /// The keys of the rows of these aggregates, by a walk over all keys; `None`: it was told to end.
    pub async fn keys_of_aggregates(
        &self,
        legacy: &Legacy,
        ids: &[String],
        stop: &CancellationToken,
    ) -> sqlx::Result<Option<Vec<RowKey>>> {
        const PAGE: u32 = 5000;
        let wanted: HashSet<&str> = ids.iter().map(String::as_str).collect();
        let (mut found, mut after) = (Vec::new(), None);
        while !stop.is_cancelled() {
            let keys = self.legacy_keys(legacy, after.as_ref(), None, PAGE).await?;
            let ended = (keys.len() as u32) < PAGE;
            after = keys.last().map(|at| at.key.clone());
            let is_wanted = |id: &Option<String>| id.as_deref().is_some_and(|id| wanted.contains(id));
            found.extend(keys.into_iter().filter(|at| is_wanted(&at.aggregate_id)).map(|at| at.key));
            if ended {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}
