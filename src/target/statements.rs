//! A statement over `event`, and how a batch's events become that relation.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::{PgArguments, PgConnection, Postgres};
use sqlx::query::Query;
use uuid::Uuid;

use crate::event::Event;
use crate::sql::query;

/// Events as the arrays that a statement takes. Payloads go as text, unparsed: the target's own `jsonb` input reads them.
#[derive(Default)]
pub struct Events<'a> {
    ids: Vec<i64>,
    event_ids: Vec<Uuid>,
    aggregate_types: Vec<&'a str>,
    aggregate_ids: Vec<&'a str>,
    event_types: Vec<&'a str>,
    payloads: Vec<&'a str>,
    headers: Vec<Option<&'a str>>,
    created_at: Vec<DateTime<Utc>>,
}

impl Events<'_> {
    /// As the parameters `$1` to `$8`.
    pub(super) fn bind<'q>(&'q self, query: Query<'q, Postgres, PgArguments>) -> Query<'q, Postgres, PgArguments> {
        query
            .bind(&self.ids)
            .bind(&self.event_ids)
            .bind(&self.aggregate_types)
            .bind(&self.aggregate_ids)
            .bind(&self.event_types)
            .bind(&self.payloads)
            .bind(&self.headers)
            .bind(&self.created_at)
    }
}

impl<'a> FromIterator<&'a Event> for Events<'a> {
    fn from_iter<I: IntoIterator<Item = &'a Event>>(events: I) -> Events<'a> {
        let mut all = Events::default();
        for event in events {
            all.ids.push(event.id.0);
            all.event_ids.push(event.event_id);
            all.aggregate_types.push(&event.aggregate.kind);
            all.aggregate_ids.push(&event.aggregate.id);
            all.event_types.push(&event.event_type);
            all.payloads.push(&event.payload);
            all.headers.push(event.headers.as_deref());
            all.created_at.push(event.created_at);
        }
        all
    }
}

/// Rows of a legacy table as the parameters of a statement [over rows](Prepared::over_rows): what all of them have in common is said once.
pub struct Rows<'a> {
    /// The aggregate type of all of them.
    pub aggregate_type: &'a str,
    /// What happened, to all of them.
    pub event_type: &'a str,
    /// Of each.
    pub aggregate_ids: Vec<&'a str>,
    /// Of each, as JSON text.
    pub payloads: Vec<&'a str>,
}

/// A statement whose parameters are [`Events`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The whole statement.
    pub sql: String,
    /// Where the operator's own text begins in it, in characters from 0.
    pub user_text_at: usize,
    /// The operator's own text.
    pub user_text: String,
    /// Its file, as the operator wrote it.
    pub file: Option<String>,
}

/// The relation that mappings and handlers read, made of the parameters `$1` to `$8`. Materialized: the payload is parsed once.
pub const EVENTS: &str = "MATERIALIZED (SELECT e.id, e.event_id, e.aggregate_type, e.aggregate_id, e.event_type, \
     e.payload::pg_catalog.jsonb AS payload, e.headers::pg_catalog.jsonb AS headers, e.created_at \
     FROM ROWS FROM (pg_catalog.unnest($1::bigint[]), pg_catalog.unnest($2::uuid[]), pg_catalog.unnest($3::text[]), \
     pg_catalog.unnest($4::text[]), pg_catalog.unnest($5::text[]), pg_catalog.unnest($6::text[]), \
     pg_catalog.unnest($7::text[]), pg_catalog.unnest($8::timestamptz[])) \
     AS e (id, event_id, aggregate_type, aggregate_id, event_type, payload, headers, created_at))";

/// The same relation of [`Rows`]: events that nobody wrote, with the id 0. Two arrays instead of eight, which is a seventh of what a copy's
/// rows cost the target.
const ROWS: &str = "MATERIALIZED (SELECT 0::bigint AS id, '00000000-0000-0000-0000-000000000000'::uuid AS event_id, \
     $1::text AS aggregate_type, e.aggregate_id, $2::text AS event_type, e.payload::pg_catalog.jsonb AS payload, \
     NULL::pg_catalog.jsonb AS headers, pg_catalog.now() AS created_at \
     FROM ROWS FROM (pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::text[])) AS e (aggregate_id, payload))";

/// A statement whose parameters are [`Rows`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverRows {
    sql: String,
    file: Option<String>,
}

impl OverRows {
    /// Runs it.
    pub(super) async fn execute(
        &self,
        connection: &mut PgConnection,
        rows: &Rows<'_>,
        prepared: bool,
    ) -> sqlx::Result<()> {
        let query = query(&self.sql, prepared).bind(rows.aggregate_type).bind(rows.event_type);
        query.bind(&rows.aggregate_ids).bind(&rows.payloads).execute(connection).await.map(drop)
    }

    /// The operator's file that it was made of.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

impl Prepared {
    /// The same statement with [`Rows`] for its events.
    pub fn over_rows(&self) -> OverRows {
        OverRows { sql: self.sql.replacen(EVENTS, ROWS, 1), file: self.file.clone() }
    }

    /// Runs it; rows affected.
    pub async fn execute(
        &self,
        connection: &mut PgConnection,
        events: &Events<'_>,
        prepared: bool,
    ) -> sqlx::Result<u64> {
        Ok(self.bound(events, prepared).execute(connection).await?.rows_affected())
    }

    /// Runs it; the text in the first column of each row.
    pub async fn texts(&self, connection: &mut PgConnection, events: &Events<'_>) -> sqlx::Result<Vec<String>> {
        let rows = self.bound(events, false).fetch_all(connection).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    fn bound<'q>(&self, events: &'q Events<'_>, prepared: bool) -> Query<'q, Postgres, PgArguments> {
        events.bind(query(&self.sql, prepared))
    }

    /// Line and column, from 1, in the operator's file, of a position (in characters, from 1) in the whole statement.
    pub fn place(&self, position: usize) -> Option<(usize, usize)> {
        let offset = position.checked_sub(1)?.checked_sub(self.user_text_at)?;
        let text: String = self.user_text.chars().take(offset).collect();
        if text.chars().count() < offset {
            return None;
        }
        let line = text.matches('\n').count() + 1;
        let column = text.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Some((line, column))
    }
}
