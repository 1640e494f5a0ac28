//! How far copies of whole tables have come: kept here, in the transactions that write the rows, so that the two agree whatever
//! ends the copy, and go back together if this database does.
//!
//! A page is a range of keys. It is noted when it is handed out, its lanes are noted as they are done, and it is forgotten when all
//! are. So whoever comes later finds what was not done, and two that do the same do no harm: each row is written under its
//! lane's lock.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{ReportId, Target, TargetLane};
use crate::config::TableName;
use crate::event::{EventId, Lane};
use crate::session::Session;
use crate::source::RowKey;
use crate::sql::{from_json, ident, literal, query};

/// An entity's copy, from one beginning to the next: what is noted of it is not noted of one that was begun anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyId {
    /// Whose.
    pub entity: String,
    /// Drawn when it was begun.
    pub generation: Uuid,
}

/// A range of keys, handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Its number.
    pub page: i64,
    /// Begins behind this key; `None`: at the very start.
    pub after: Option<RowKey>,
    /// Ends with this key.
    pub until: RowKey,
}

/// Why a row was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// The new table refused it, or it has no aggregate.
    Refused,
    /// An event of its aggregate is pending, and brings it.
    Pending,
    /// An event of its aggregate is in retry, or held behind one that is.
    Waiting,
    /// An event of its aggregate has failed: until somebody replays or skips it, the row does not come.
    Failed,
}

impl Reason {
    /// As it is kept.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Refused => "refused",
            Reason::Pending => "pending",
            Reason::Waiting => "waiting",
            Reason::Failed => "failed",
        }
    }

    /// Whether an event that is on its way settles it, without anybody's help.
    pub fn passes_by_itself(self) -> bool {
        matches!(self, Reason::Pending | Reason::Waiting)
    }
}

/// A row that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftRow {
    /// Which.
    pub key: RowKey,
    /// Its aggregate's lane; 0 if it has none.
    pub lane: Lane,
    /// Why.
    pub reason: Reason,
    /// The event that brings it, for a pending one; `None`: none of those on their way does.
    pub event: Option<EventId>,
    /// SQLSTATE, for a refused one.
    pub code: Option<String>,
    /// What the server said of a refused one; of one behind a failed event, which that is.
    pub message: Option<String>,
}

/// How far an entity's copy has come.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Copied {
    /// Whose.
    pub entity: String,
    /// `running`, `paused`, `interrupted` (nobody copies: begun again, it goes on where it was), `left` (done, but for rows that were
    /// left out) or `done`.
    pub state: String,
    /// Rows copied.
    pub rows: i64,
    /// Rows in the legacy table, about.
    pub estimate: Option<i64>,
    /// Rows a second, lately.
    pub rate: Option<f64>,
    /// Rows that the new table refused.
    pub refused: i64,
    /// Rows left to events that are on their way.
    pub pending: i64,
    /// Rows left to events that are in retry, held or failed.
    pub waiting: i64,
    /// When it began.
    pub began_at: DateTime<Utc>,
    /// When somebody last copied something.
    pub touched_at: DateTime<Utc>,
    /// When all was done: its rows, those that were left out tried again, the sequences set.
    pub ended_at: Option<DateTime<Utc>>,
    /// The sequences behind the table's columns that were set past the highest value at the end.
    pub sequences: Vec<String>,
}

impl Copied {
    /// Rows that were left out.
    pub fn left(&self) -> i64 {
        self.refused + self.pending + self.waiting
    }

    /// How many, why, and what to do about them, for people; nothing of a row is quoted. `None`: none were.
    pub fn what_is_left(&self) -> Option<String> {
        let Copied { entity, refused, pending, waiting, .. } = self;
        let mut why = Vec::new();
        if *refused > 0 {
            why.push(format!("{refused} were refused: mend them or the mapping"));
        }
        if *pending > 0 {
            why.push(format!("{pending} come with events that are pending: let the relay run"));
        }
        if *waiting > 0 {
            why.push(format!("{waiting} are behind events that failed or wait: outbox-relay failures"));
        }
        let why = why.join("; ");
        (self.left() > 0).then(|| format!("{entity}: rows were left out: {why}. Then: outbox-relay backfill {entity}"))
    }

    /// Whether it rests because an operator said so.
    pub fn is_paused(&self) -> bool {
        self.state == "paused"
    }
}

/// Pages of an entity are handed out by one at a time: while this exists.
pub struct HandingOut {
    target: Target,
    session: Session,
    copy: CopyId,
    pages: i64,
    /// Where the next page begins; `None`: at the very start.
    pub after: Option<RowKey>,
    /// Whether there is no page any more.
    pub exhausted: bool,
}

fn to_text(key: &RowKey) -> String {
    serde_json::Value::from(key.0.clone()).to_string()
}

fn page(row: &PgRow) -> sqlx::Result<Page> {
    let after: Option<String> = row.try_get("after")?;
    Ok(Page {
        page: row.try_get("page")?,
        after: after.as_deref().map(from_json).transpose()?,
        until: from_json(&row.try_get::<String, _>("until")?)?,
    })
}

fn left_row(row: &PgRow) -> sqlx::Result<LeftRow> {
    Ok(LeftRow {
        key: from_json(&row.try_get::<String, _>("key")?)?,
        lane: row.try_get("lane")?,
        reason: match row.try_get::<&str, _>("reason")? {
            "pending" => Reason::Pending,
            "waiting" => Reason::Waiting,
            "failed" => Reason::Failed,
            _ => Reason::Refused,
        },
        event: row.try_get("event")?,
        code: row.try_get("code")?,
        message: row.try_get("message")?,
    })
}

fn copied(row: &PgRow) -> sqlx::Result<Copied> {
    let ended_at: Option<DateTime<Utc>> = row.try_get("ended_at")?;
    let mut copied = Copied {
        entity: row.try_get("entity")?,
        state: String::new(),
        rows: row.try_get("rows")?,
        estimate: row.try_get("estimate")?,
        rate: row.try_get("rate")?,
        refused: row.try_get("refused")?,
        pending: row.try_get("pending")?,
        waiting: row.try_get("waiting")?,
        began_at: row.try_get("began_at")?,
        touched_at: row.try_get("touched_at")?,
        ended_at,
        sequences: row.try_get("sequences")?,
    };
    copied.state = match (row.try_get("paused")?, row.try_get("working")?, ended_at) {
        (true, ..) => "paused",
        (false, true, _) => "running",
        (false, false, Some(_)) if copied.left() > 0 => "left",
        (false, false, Some(_)) => "done",
        (false, false, None) => "interrupted",
    }
    .to_owned();
    Ok(copied)
}

impl Target {
    /// Begins an entity's copy, or goes on with it.
    pub async fn begin_copy(&self, entity: &str, estimate: Option<i64>) -> sqlx::Result<CopyId> {
        let sql = self.render(include_str!("../../sql/target/backfill_begin.sql"));
        let rows = self.ask(self.query(&sql).bind(entity).bind(estimate)).await?;
        let generation = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get("generation")?;
        Ok(CopyId { entity: entity.to_owned(), generation })
    }

    /// Forgets how far the copies of these had come, all or none. Whoever copies one still notes nothing any more.
    pub async fn forget_copies(&self, entities: &[String]) -> sqlx::Result<()> {
        let lock = self.render(include_str!("../../sql/target/backfill_forget_lock.sql"));
        let forget = self.render(include_str!("../../sql/target/backfill_forget.sql"));
        crate::session::within(self.limits.deadline, async {
            let (mut session, _) = Session::begin(&self.pool, &self.limits.sql()).await?;
            self.query(&lock).bind(entities).execute(session.connection()).await?;
            self.query(&forget).bind(entities).execute(session.connection()).await?;
            session.commit().await
        })
        .await
    }

    /// How far every copy has come.
    pub async fn copies(&self) -> sqlx::Result<Vec<Copied>> {
        let sql = self.render(include_str!("../../sql/target/backfill_progress.sql"));
        self.ask(self.query(&sql)).await?.iter().map(copied).collect()
    }

    /// Lets copies rest, or go on; those that changed.
    pub async fn pause_copies(&self, entities: &[String], rest: bool) -> sqlx::Result<Vec<String>> {
        let sql = self.render(include_str!("../../sql/target/backfill_pause.sql"));
        let rows = self.ask(self.query(&sql).bind(entities).bind(rest)).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// Keeps others from handing out pages of a copy until [`HandingOut::hand_out`], or a drop. `None`: it was begun anew meanwhile.
    pub async fn handing_out(&self, copy: &CopyId) -> sqlx::Result<Option<HandingOut>> {
        let (mut session, _) = Session::begin(&self.pool, &self.limits.sql()).await?;
        let sql = self.render(include_str!("../../sql/target/backfill_lock.sql"));
        let locked = self.query(&sql).bind(&copy.entity).bind(copy.generation);
        let Some(row) = locked.fetch_optional(session.connection()).await? else {
            session.rollback().await;
            return Ok(None);
        };
        let after: Option<String> = row.try_get("after")?;
        Ok(Some(HandingOut {
            target: self.clone(),
            copy: copy.clone(),
            pages: row.try_get("pages")?,
            after: after.as_deref().map(from_json).transpose()?,
            exhausted: row.try_get("exhausted")?,
            session,
        }))
    }

    /// Pages that were handed out and are not done.
    pub async fn open_pages(&self, entity: &str) -> sqlx::Result<Vec<Page>> {
        let sql = self.render(include_str!("../../sql/target/backfill_pages.sql"));
        self.ask(self.query(&sql).bind(entity)).await?.iter().map(page).collect()
    }

    /// The lanes of a page that are done.
    pub async fn lanes_done(&self, entity: &str, page: i64) -> sqlx::Result<HashSet<Lane>> {
        let sql = self.render(include_str!("../../sql/target/backfill_lanes.sql"));
        let rows = self.ask(self.query(&sql).bind(entity).bind(page)).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// All lanes of a page are done; `rate` in rows a second. Does nothing if the copy was begun anew meanwhile.
    pub async fn page_done(&self, copy: &CopyId, page: i64, rate: f64) -> sqlx::Result<()> {
        let sql = self.render(include_str!("../../sql/target/backfill_page_done.sql"));
        let done = self.query(&sql).bind(&copy.entity).bind(copy.generation).bind(page).bind(rate);
        self.ask(done).await.map(drop)
    }

    /// Notes that a copy has ended, if no page is left. False: it was begun anew meanwhile.
    pub async fn copy_ended(&self, copy: &CopyId) -> sqlx::Result<bool> {
        let sql = self.render(include_str!("../../sql/target/backfill_ended.sql"));
        Ok(!self.ask(self.query(&sql).bind(&copy.entity).bind(copy.generation)).await?.is_empty())
    }

    /// These are no longer left out: their events have brought them. False: the copy was begun anew meanwhile.
    pub async fn brought(&self, copy: &CopyId, keys: &[&RowKey]) -> sqlx::Result<bool> {
        if keys.is_empty() {
            return Ok(true);
        }
        let sql = self.render(include_str!("../../sql/target/backfill_came.sql"));
        let keys: Vec<String> = keys.iter().map(|key| to_text(key)).collect();
        let rows = keys.len() as i64;
        let came = self.query(&sql).bind(&copy.entity).bind(copy.generation).bind(keys).bind(rows);
        Ok(!self.ask(came).await?.is_empty())
    }

    /// Rows that were left out, in order of their keys' text.
    pub async fn left_rows(&self, entity: &str, after: Option<&RowKey>, at_most: i64) -> sqlx::Result<Vec<LeftRow>> {
        let sql = self.render(include_str!("../../sql/target/backfill_left.sql"));
        let rows = self.ask(self.query(&sql).bind(entity).bind(after.map(to_text)).bind(at_most)).await?;
        rows.iter().map(left_row).collect()
    }

    /// Rows of these entities that were left out before this report was begun, which found both databases equal, no longer are.
    pub(super) async fn agreed(&self, report: ReportId, entities: &[&str]) -> sqlx::Result<()> {
        let sql = self.render(include_str!("../../sql/target/backfill_agreed.sql"));
        self.ask(self.query(&sql).bind(report.0).bind(entities)).await.map(drop)
    }

    /// Whether rows of a table may refer to others of it.
    pub async fn refers_to_itself(&self, table: &TableName) -> sqlx::Result<bool> {
        let quoted = format!("{}.{}", ident(&table.schema), ident(&table.table));
        let sql = include_str!("../../sql/target/refers_to_itself.sql");
        self.ask(query(sql, false).bind(quoted)).await?.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
    }

    /// Notes the sequences that were set at the end of a copy.
    pub async fn note_sequences(&self, copy: &CopyId, sequences: &[String]) -> sqlx::Result<()> {
        let sql = self.render(include_str!("../../sql/target/backfill_sequences.sql"));
        self.ask(self.query(&sql).bind(&copy.entity).bind(copy.generation).bind(sequences)).await.map(drop)
    }

    /// The sequences behind a table's columns of numbers: a column and its sequence, each.
    pub async fn sequences(&self, table: &TableName) -> sqlx::Result<Vec<(String, String)>> {
        let quoted = format!("{}.{}", ident(&table.schema), ident(&table.table));
        let rows = self.ask(query(include_str!("../../sql/target/sequences.sql"), false).bind(&quoted)).await?;
        rows.iter().map(|row| Ok((row.try_get("name")?, row.try_get("sequence")?))).collect()
    }

    /// Sets a sequence past the highest value of its column, never back; what no sequence can reach (NaN, an infinite or a larger numeric) does not
    /// count. Reads the whole table unless an index begins with the column, and so has twice as long as others. False: it was past that already.
    pub async fn raise_sequence(&self, table: &TableName, column: &str, sequence: &str) -> sqlx::Result<bool> {
        let quoted = format!("{}.{}", ident(&table.schema), ident(&table.table));
        let (column, name) = (ident(column), literal(sequence));
        let sql = format!(
            "SELECT setval({name}::regclass, m.highest) FROM (SELECT max({column})::bigint AS highest FROM {quoted} \
             WHERE {column} BETWEEN '-9223372036854775808'::bigint AND 9223372036854775807) AS m, {sequence} AS s \
             WHERE m.highest > s.last_value OR (m.highest = s.last_value AND NOT s.is_called)"
        );
        let limits = crate::session::Limits { deadline: self.limits.deadline * 2, ..self.limits };
        Ok(!crate::session::ask(&self.pool, limits, "", query(&sql, false)).await?.is_empty())
    }
}

impl HandingOut {
    /// Hands out the page that ends with `until`; `None`: there is none. `exhausted`: none comes after it.
    pub async fn hand_out(mut self, until: Option<&RowKey>, exhausted: bool) -> sqlx::Result<Option<Page>> {
        let sql = self.target.render(include_str!("../../sql/target/backfill_hand_out.sql"));
        let number = if until.is_some() { self.pages + 1 } else { self.pages };
        self.target
            .query(&sql)
            .bind(&self.copy.entity)
            .bind(number)
            .bind(self.after.as_ref().map(to_text))
            .bind(until.map(to_text))
            .bind(exhausted)
            .execute(self.session.connection())
            .await?;
        self.session.commit().await?;
        Ok(until.map(|until| Page { page: number, after: self.after, until: until.clone() }))
    }

    /// Hands out nothing.
    pub async fn abandon(self) {
        self.session.rollback().await;
    }
}

impl TargetLane {
    /// A lane of a page is done with this transaction. False: the copy was begun anew meanwhile, and nothing must be committed.
    pub async fn lane_done(&mut self, copy: &CopyId, page: i64, rows: u64) -> sqlx::Result<bool> {
        let sql = self.target.render(include_str!("../../sql/target/backfill_lane_done.sql"));
        let rows = i64::try_from(rows).unwrap_or(i64::MAX);
        let done =
            self.target.query(&sql).bind(&copy.entity).bind(copy.generation).bind(page).bind(self.lane).bind(rows);
        Ok(done.fetch_optional(self.session.connection()).await?.is_some())
    }

    /// These rows are left out for now. False: as of [`TargetLane::lane_done`].
    pub async fn leave_out(&mut self, copy: &CopyId, rows: &[LeftRow]) -> sqlx::Result<bool> {
        if rows.is_empty() {
            return Ok(true);
        }
        let sql = self.target.render(include_str!("../../sql/target/backfill_leave.sql"));
        let left = self
            .target
            .query(&sql)
            .bind(&copy.entity)
            .bind(copy.generation)
            .bind(rows.iter().map(|row| to_text(&row.key)).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.lane).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.reason.as_str()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.code.as_deref()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.message.as_deref()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.event).collect::<Vec<_>>());
        Ok(left.fetch_optional(self.session.connection()).await?.is_some())
    }

    /// The rows of these legacy keys stand as they should: no copy has left them out any longer.
    pub async fn stand(&mut self, entity: &str, keys: &[&RowKey]) -> sqlx::Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let sql = self.target.render(include_str!("../../sql/target/backfill_repaired.sql"));
        let keys: Vec<String> = keys.iter().map(|key| to_text(key)).collect();
        self.target.query(&sql).bind(entity).bind(keys).execute(self.session.connection()).await.map(drop)
    }

    /// These are no longer left out: so many were copied, the others are gone. False: as of [`TargetLane::lane_done`].
    pub async fn came(&mut self, copy: &CopyId, keys: &[&RowKey], copied: u64) -> sqlx::Result<bool> {
        if keys.is_empty() {
            return Ok(true);
        }
        let sql = self.target.render(include_str!("../../sql/target/backfill_came.sql"));
        let keys: Vec<String> = keys.iter().map(|key| to_text(key)).collect();
        let rows = i64::try_from(copied).unwrap_or(i64::MAX);
        let came = self.target.query(&sql).bind(&copy.entity).bind(copy.generation).bind(keys).bind(rows);
        Ok(came.fetch_optional(self.session.connection()).await?.is_some())
    }
}
