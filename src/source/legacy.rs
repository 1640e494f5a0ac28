//! The rows of the legacy database that an entity is made of: whole tables, page by page, and single rows under their lane's lock.
//!
//! Guarantees: a page goes on after the key at which the last one ended, whatever the key's types, and skips no key that was there
//! all the time; rows are read whole, as JSON, in the transaction that holds the lane, so they are as of after everything that
//! was applied. What a row looks like does not depend on settings of the role. Text is ordered as its column's collation says, and a
//! key is compared as its own type says, also where that is an extension's.

mod key;
mod queue;

use std::collections::{BTreeMap, HashMap};

use futures_util::TryStreamExt as _;
use sqlx::Row;
use sqlx::postgres::PgRow;

use self::key::Telling;
pub use self::key::{KeyTrouble, Why};
pub use self::queue::KeyQueue;
use super::{Source, SourceLane};
use crate::config::{Entity, LegacyRows, RowsFrom};
use crate::event::{Aggregate, Event, EventId, Lane};
use crate::mapping::text;
use crate::session::{self, Session};
use crate::sql::{beyond, ident, literal, operator, render};

/// What tells a row of the legacy database apart: the text of each column of its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct RowKey(pub Vec<String>);

impl std::fmt::Display for RowKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// What is said of a row whose aggregate is NULL.
pub(crate) const NO_AGGREGATE: &str =
    "entity.legacy.aggregate_id gives NULL for it: let it give a text for every row, such as coalesce(…, its key)";

/// A key, and whose row it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyAt {
    /// The row's.
    pub key: RowKey,
    /// What the configured expression gives; `None` for NULL, which no event can have.
    pub aggregate_id: Option<String>,
    /// The aggregate's lane.
    pub lane: Option<Lane>,
}

/// Keys by their lane, in order.
pub type Lanes = BTreeMap<Lane, KeyQueue>;

/// The keys of a page of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageKeys {
    /// Of each lane. A row without an aggregate is in lane 0: it is left out by whichever lane it is given to.
    pub lanes: Lanes,
    /// The last one of all.
    pub last: Option<RowKey>,
    /// How many.
    pub rows: u32,
}

/// A whole row.
#[derive(Debug, Clone)]
pub struct LegacyRow {
    /// Key, aggregate and lane as they are now.
    pub at: KeyAt,
    /// The row as JSON, which as `jsonb` is `to_jsonb(row)`; `None`: beyond the bytes that were asked for.
    pub payload: Option<String>,
}

/// Which aggregates have events that are not applied yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenAggregates {
    /// Only pending: they are on their way.
    pub pending: HashMap<String, Option<Bringing>>,
    /// With an event in retry, held or failed: the first of these.
    pub waiting: HashMap<String, FirstWaiting>,
    /// There are more pending events than were looked at, so nothing is known of the others.
    pub too_many: bool,
}

/// The first of an aggregate's events in retry, held or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstWaiting {
    /// Which.
    pub event: EventId,
    /// It has failed: it does not move by itself.
    pub failed: bool,
}

/// The newest event on its way that writes a whole row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bringing {
    /// Which.
    pub event: EventId,
    /// What its payload has under the names of the key's columns. An aggregate may have several rows: this is whose.
    pub key: Vec<Option<String>>,
}

impl Bringing {
    /// Whether it brings the row of this key.
    pub fn brings(&self, key: &RowKey) -> bool {
        self.key.iter().map(Option::as_deref).eq(key.0.iter().map(|part| Some(part.as_str())))
    }
}

/// An entity's rows, with the statements that read them.
#[derive(Debug, Clone)]
pub struct Legacy {
    /// The aggregate type of their events.
    pub aggregate_type: String,
    /// The event type that a copied row has: what capture calls an insert.
    pub event_type: String,
    /// The type of each column of the key, without a length: a key is cast to it, and must not be cut.
    pub key_types: Vec<String>,
    pub(super) key: Vec<String>,
    /// The schema of the operators of each of these types.
    key_schemas: Vec<String>,
    pub(super) names: Vec<(&'static str, String)>,
    pub(super) settings: String,
    telling: Telling,
}

/// What is put into the files of `sql/legacy` before the types are known.
fn names(entity: &Entity, rows: &LegacyRows) -> Vec<(&'static str, String)> {
    let each = |template: &dyn Fn(usize, &str) -> String| {
        rows.key.iter().enumerate().map(|(n, column)| template(n + 1, &ident(column))).collect::<Vec<_>>()
    };
    vec![
        ("rows", rows.relation()),
        ("kind", literal(&entity.aggregate_type)),
        ("aggregate_id", rows.aggregate_id.clone()),
        ("key", each(&|_, c| format!("relay_row.{c}")).join(", ")),
        ("key_columns", each(&|n, c| format!("relay_row.{c} AS relay_k{n}")).join(", ")),
        ("key_order", each(&|n, _| format!("k.relay_k{n}")).join(", ")),
        ("key_texts", each(&|n, _| format!("k.relay_k{n}::text")).join(", ")),
        ("key_types", each(&|n, _| format!("format_type(pg_typeof(k.relay_k{n}), -1)")).join(", ")),
        ("key_oids", each(&|n, _| format!("pg_typeof(k.relay_k{n})")).join(", ")),
        ("row_texts", each(&|_, c| format!("relay_row.{c}::text")).join(", ")),
        ("key_parts", each(&|n, c| format!("relay_row.{c}::text AS relay_t{n}")).join(", ")),
        ("key_arrays", each(&|n, _| format!("array_agg(k.relay_t{n})")).join(", ")),
        ("key_nulls", each(&|_, c| format!("relay_row.{c} IS NULL")).join(", ")),
        ("key_is_null", each(&|_, c| format!("relay_row.{c} IS NULL")).join(" OR ")),
    ]
}

/// What `SET LOCAL` pins, so that a row reads the same whoever reads it. Row security would hide rows without a word: it is an
/// error instead.
const AS_WRITTEN: &str = "SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, MDY'; SET LOCAL IntervalStyle = 'postgres'; \
                              SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 1; SET LOCAL row_security = off;";

impl LegacyRows {
    /// What stands in a FROM in their place, to be given a name there.
    pub(crate) fn relation(&self) -> String {
        match &self.from {
            RowsFrom::Table(table) => format!("{}.{}", ident(&table.schema), ident(&table.table)),
            RowsFrom::Query(file) => format!("({}\n)", file.text.trim_end().trim_end_matches(';')),
        }
    }

    /// The aggregate of a row as capture writes it: never NULL.
    pub(crate) fn aggregate_or_key(&self) -> String {
        let texts: Vec<String> = self.key.iter().map(|c| format!("relay_row.{}::text", ident(c))).collect();
        let key = match &texts[..] {
            [one] => one.clone(),
            several => format!("ARRAY[{}]::text", several.join(", ")),
        };
        format!("coalesce(({})::text, {key})", self.aggregate_id)
    }

    /// What unqualified names refer to: what capture's trigger sees, but for a query, which may name tables of `public`.
    pub(crate) fn search_path(&self) -> &'static str {
        match &self.from {
            RowsFrom::Table(_) => "pg_catalog",
            RowsFrom::Query(_) => "pg_catalog, public",
        }
    }
}

impl Source {
    /// Looks at an entity's rows, and refuses a key that does not tell them apart ([`KeyTrouble`]); `None`: it has no `legacy`.
    pub async fn legacy(&self, entity: &Entity) -> sqlx::Result<Option<Legacy>> {
        let Some(legacy) = self.described(entity).await? else { return Ok(None) };
        match self.key_troubles(entity, &legacy).await?.into_iter().next() {
            Some(trouble) => Err(trouble.into()),
            None => Ok(Some(legacy)),
        }
    }

    /// The same whatever the key is like. An error is the server's: the table, a column, a right that is missing.
    pub async fn described(&self, entity: &Entity) -> sqlx::Result<Option<Legacy>> {
        let Some(rows) = &entity.legacy else { return Ok(None) };
        let mut names = names(entity, rows);
        names.push(("lane_of_key", self.names.render("{lane_of_key}")));
        let settings = format!("{AS_WRITTEN} SET LOCAL search_path = {};", rows.search_path());
        let sql = render(include_str!("../../sql/legacy/describe.sql"), &names);
        if let RowsFrom::Query(file) = &rows.from
            && text::parse(&file.text).several
        {
            let what = format!("{} holds more than one statement", file.path.display());
            return Err(sqlx::Error::Configuration(what.into()));
        }
        let described = self.ask(&settings, crate::sql::query(&sql, false)).await?;
        let row = described.first().ok_or(sqlx::Error::RowNotFound)?;
        let key_types: Vec<String> = row.try_get("key_types")?;
        let key_schemas: Vec<String> = row.try_get("key_schemas")?;
        let equal = |n: usize| operator(key_schemas.get(n).map(String::as_str), "=");
        let given = |n: usize| format!("relay_key.relay_k{n}");
        let columns: Vec<String> = (1..=rows.key.len()).map(|n| format!("relay_k{n}")).collect();
        let arrays: Vec<String> = (1..=rows.key.len()).map(|n| format!("unnest(${}::text[])", n + 1)).collect();
        names.push(("event_type", literal(&rows.capture.insert)));
        names.push((
            "keys_only",
            format!("ROWS FROM ({}) AS relay_key ({})", super::compare::key_arrays(rows.key.len()), columns.join(", ")),
        ));
        let given_columns = rows.key.iter().zip(&key_types).enumerate();
        let given_columns = given_columns.map(|(n, (c, t))| format!("{}::{t} AS {}", given(n + 1), ident(c)));
        names.push(("given_columns", given_columns.collect::<Vec<_>>().join(", ")));
        names.push((
            "keys_given",
            format!(
                "ROWS FROM ({}) WITH ORDINALITY AS relay_key ({}, relay_asked)",
                arrays.join(", "),
                columns.join(", ")
            ),
        ));
        let is_given = rows.key.iter().zip(&key_types).enumerate();
        let is_given = is_given.map(|(n, (c, t))| format!("relay_row.{} {} {}::{t}", ident(c), equal(n), given(n + 1)));
        names.push(("key_is_given", is_given.collect::<Vec<_>>().join(" AND ")));
        let payloads = rows.key.iter().zip(&key_types).enumerate();
        let payloads = payloads
            .map(|(n, (c, t))| format!("relay_row.{} {} (e.relay_payload->>{})::{t}", ident(c), equal(n), literal(c)));
        names.push(("key_is_payloads", payloads.collect::<Vec<_>>().join(" AND ")));
        Ok(Some(Legacy {
            aggregate_type: entity.aggregate_type.clone(),
            event_type: rows.capture.insert.clone(),
            key: rows.key.clone(),
            key_types,
            key_schemas,
            names,
            settings,
            telling: Telling::of(entity, rows),
        }))
    }

    /// Which of these events are seen to be applied, and of which row each is by now. Of one that is gone nobody knows whether it was.
    /// `whole`: event types that write the whole row.
    pub async fn applied(
        &self,
        legacy: &Legacy,
        events: &[EventId],
        whole: &[String],
    ) -> sqlx::Result<HashMap<EventId, Bringing>> {
        let sql = self.names.render(include_str!("../../sql/source/applied.sql"));
        let applied = crate::sql::query(&sql, false).bind(events).bind(&legacy.aggregate_type).bind(whole);
        let rows = self.ask("", applied.bind(&legacy.key)).await?;
        let bringing = |row: &PgRow| {
            let event = row.try_get("id")?;
            Ok((event, Bringing { event, key: row.try_get("key")? }))
        };
        rows.iter().map(bringing).collect()
    }

    /// About how many rows there are; `None` where nobody knows.
    pub async fn estimate(&self, rows: &LegacyRows) -> sqlx::Result<Option<i64>> {
        let RowsFrom::Table(table) = &rows.from else { return Ok(None) };
        let name = format!("{}.{}", ident(&table.schema), ident(&table.table));
        let sql = include_str!("../../sql/legacy/estimate.sql");
        let rows = self.ask("", crate::sql::query(sql, false).bind(name)).await?;
        rows.first().map_or(Ok(None), |row| row.try_get(0))
    }

    /// The next keys after one, up to and including another: fewer than `at_most` are the last ones.
    pub async fn legacy_keys(
        &self,
        legacy: &Legacy,
        after: Option<&RowKey>,
        until: Option<&RowKey>,
        at_most: u32,
    ) -> sqlx::Result<Vec<KeyAt>> {
        let sql = legacy.render_range(include_str!("../../sql/legacy/keys.sql"), after.is_some(), until.is_some());
        let bound = |key: Option<&RowKey>| key.map(|key| key.0.clone());
        let keys = crate::sql::query(&sql, false).bind(i64::from(at_most)).bind(bound(after)).bind(bound(until));
        let rows = self.ask(&legacy.settings, keys).await?;
        rows.iter().map(key_at).collect()
    }

    /// The same, by lane: what a page of a copy needs. Keys are taken as they come, so that of a large page no more than they is held.
    pub async fn legacy_lanes(
        &self,
        legacy: &Legacy,
        after: Option<&RowKey>,
        until: Option<&RowKey>,
        at_most: u32,
    ) -> sqlx::Result<PageKeys> {
        let sql = legacy.render_range(include_str!("../../sql/legacy/keys.sql"), after.is_some(), until.is_some());
        let bound = |key: Option<&RowKey>| key.map(|key| key.0.clone());
        let keys = crate::sql::query(&sql, false).bind(i64::from(at_most)).bind(bound(after)).bind(bound(until));
        session::within(self.limits.deadline, async {
            let script = format!("{} {}", self.limits.sql(), legacy.settings);
            let (mut session, _) = Session::begin(&self.pool, &script).await?;
            let mut page = PageKeys::default();
            let mut rows = keys.fetch(session.connection());
            while let Some(row) = rows.try_next().await? {
                let lane = row.try_get::<Option<Lane>, _>("lane")?.unwrap_or(Lane(0));
                let key = RowKey(row.try_get("key")?);
                // In order, so one that comes again comes at once.
                if page.last.as_ref() == Some(&key) {
                    return Err(legacy.telling.twice(&key).into());
                }
                page.lanes.entry(lane).or_default().push(&key);
                page.last = Some(key);
                page.rows += 1;
            }
            drop(rows);
            session.commit().await?;
            Ok(page)
        })
        .await
    }
}

impl SourceLane {
    /// The rows that these keys have now, in this lane's transaction, which must hold both locks: keys without a row are left out.
    /// A row whose aggregate is in another lane by now is not this lane's to change.
    pub async fn legacy_rows(
        &mut self,
        legacy: &Legacy,
        keys: &[RowKey],
        payload_bytes: u64,
    ) -> sqlx::Result<Vec<LegacyRow>> {
        self.session.script(&legacy.settings).await?;
        let sql = render(include_str!("../../sql/legacy/rows.sql"), &legacy.names);
        let mut query = self.source.query(&sql).bind(i64::try_from(payload_bytes).unwrap_or(i64::MAX));
        for n in 0..legacy.key.len() {
            query = query.bind(keys.iter().filter_map(|key| key.0.get(n).map(String::as_str)).collect::<Vec<_>>());
        }
        legacy.rows_of(query.fetch(self.session.connection())).await
    }

    /// Which of these aggregates have events that are not applied yet. To be asked after the rows were read: what was committed in
    /// between is seen as an open event, never as a row that is newer than the events.
    /// `whole`: event types that write the whole row.
    pub async fn open_aggregates(
        &mut self,
        legacy: &Legacy,
        ids: &[&str],
        whole: &[String],
    ) -> sqlx::Result<OpenAggregates> {
        const LOOKED_AT: i64 = 20_000;
        let sql = self.source.names.render(include_str!("../../sql/source/open_aggregates.sql"));
        let rows = self
            .source
            .query(&sql)
            .bind(self.lane)
            .bind(&legacy.aggregate_type)
            .bind(ids)
            .bind(LOOKED_AT)
            .bind(whole)
            .bind(&legacy.key)
            .fetch_all(self.session.connection())
            .await?;
        let mut open = OpenAggregates::default();
        for row in &rows {
            match row.try_get::<Option<String>, _>("aggregate_id")? {
                None => open.too_many = row.try_get::<i64, _>("pending")? >= LOOKED_AT,
                Some(id) => {
                    if let Some(event) = row.try_get("waits_for")? {
                        open.waiting.insert(id, FirstWaiting { event, failed: row.try_get("failed")? });
                        continue;
                    }
                    let event: Option<EventId> = row.try_get("brings")?;
                    let key: Option<Vec<Option<String>>> = row.try_get("brings_key")?;
                    open.pending.insert(id, event.zip(key).map(|(event, key)| Bringing { event, key }));
                }
            }
        }
        Ok(open)
    }
}

impl Legacy {
    pub(super) fn render_range(&self, file: &str, after: bool, until: bool) -> String {
        let bound = |given: bool, n: usize, comparison: &str| {
            if !given {
                return format!("${n}::text[] IS NULL");
            }
            let types = self.key_types.iter().enumerate();
            let values: Vec<String> = types.map(|(at, t)| format!("(${n}::text[])[{}]::{t}", at + 1)).collect();
            let key: Vec<String> = self.key.iter().map(|c| format!("relay_row.{}", ident(c))).collect();
            beyond(&key, comparison, &values, &self.key_schemas)
        };
        let range = format!("{} AND {}", bound(after, 2, ">"), bound(until, 3, "<="));
        let mut names = self.names.clone();
        names.push(("range", range));
        render(file, &names)
    }

    /// The rows of a range as a comparison reads them: as events, or these columns.
    pub(super) fn compared(&self, after: bool, until: bool, plain: Option<String>) -> String {
        let Some(columns) = plain else {
            return self.render_range(include_str!("../../sql/legacy/compared.sql"), after, until);
        };
        let sql = self.render_range(include_str!("../../sql/legacy/compared_plain.sql"), after, until);
        render(&sql, &[("columns", columns)])
    }

    /// What a row is to the mapping: an event that nobody wrote. Its id is 0, before every event's; its event type is what capture
    /// calls an insert; it has no headers, and no name (the nil uuid).
    pub fn event(&self, aggregate_id: &str, payload: String) -> Event {
        let aggregate = Aggregate { kind: self.aggregate_type.clone(), id: aggregate_id.to_owned() };
        Event::made_up(aggregate, &self.event_type, payload)
    }

    /// Every statement of `sql/legacy`, as it is sent; for a test that prepares them all.
    pub fn statements(&self, outbox: &super::Names) -> Vec<(&'static str, String)> {
        let disagreeing = self.disagreeing(outbox);
        let keys = self.render_range(include_str!("../../sql/legacy/keys.sql"), true, true);
        let plain = [
            ("describe", include_str!("../../sql/legacy/describe.sql")),
            ("rows", include_str!("../../sql/legacy/rows.sql")),
        ];
        let mut all: Vec<_> = plain.into_iter().map(|(name, file)| (name, render(file, &self.names))).collect();
        let ranged = |file| self.render_range(file, true, true);
        all.extend([("keys", keys), ("disagreeing", disagreeing)]);
        all.extend([
            ("key_null", render(include_str!("../../sql/legacy/key_null.sql"), &self.names)),
            ("key_repeated", render(include_str!("../../sql/legacy/key_repeated.sql"), &self.names)),
            ("bound", ranged(include_str!("../../sql/legacy/bound.sql"))),
            ("compared", self.compared(true, true, None)),
            ("compared_plain", self.compared(true, true, Some("1 AS one".to_owned()))),
            ("columns", include_str!("../../sql/legacy/columns.sql").to_owned()),
            ("sampled_rows", super::compare::SAMPLED_ROWS.to_owned()),
            ("aggregates", render(include_str!("../../sql/legacy/aggregates.sql"), &self.names)),
        ]);
        all
    }

    /// Finds an event of the outbox whose aggregate is not the one that the configured expression gives for its row.
    pub(crate) fn disagreeing(&self, outbox: &super::Names) -> String {
        let file = include_str!("../../sql/legacy/disagreeing.sql");
        let column = outbox.render("{aggregate_id}");
        let mut names: HashMap<&'static str, String> = self.names.iter().cloned().collect();
        names.insert("aggregate_id_column", column);
        let own: Vec<(&'static str, String)> = names.into_iter().collect();
        outbox.render_with(file, &own)
    }

    /// `SET LOCAL …;` for whoever reads these rows.
    pub fn settings(&self) -> &str {
        &self.settings
    }
}

pub(super) fn key_at(row: &PgRow) -> sqlx::Result<KeyAt> {
    let aggregate_id: Option<String> = row.try_get("aggregate_id")?;
    let lane = if aggregate_id.is_some() { row.try_get("lane")? } else { None };
    Ok(KeyAt { key: RowKey(row.try_get("key")?), aggregate_id, lane })
}
