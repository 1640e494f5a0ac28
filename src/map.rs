//! `map`: shows the rows that a mapping yields for one event, and what would be written, and writes nothing.
//!
//! Guarantees: the target is only read, in a read-only transaction that is rolled back. What is shown is converted by the same
//! statement as what the relay writes.

use std::fmt::Write as _;

use serde::Serialize;
use sqlx::postgres::PgPool;
use sqlx::{PgConnection, Row};

use crate::config::{Action, Config, Entity, TableName};
use crate::connect::{self, ConnectError};
use crate::event::{Aggregate, Event, EventId};
use crate::mapping::text::{self, With};
use crate::mapping::{self, Mapping, MappingError};
use crate::session::{Limits, Session};
use crate::source::Names;
use crate::sql::{ident, literal, query, query_scalar};
use crate::target::Events;

/// What an event would do to the new database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mapped {
    /// The entity's name.
    pub entity: String,
    /// The event's type.
    pub event_type: String,
    /// What it does.
    pub effect: Effect,
}

/// What an event would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// These rows are written.
    Write(Vec<MappedRow>),
    /// Rows with these keys are deleted.
    Delete(Vec<MappedRow>),
    /// The operator's own statement in this file runs: it is not tried.
    OwnSql(String),
    /// Nothing.
    Ignore,
    /// No entity names this event type: it waits.
    Unmapped,
}

/// A row that the mapping yields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MappedRow {
    /// As JSON text.
    pub row: String,
    /// The row of the same key that stands in the table, as JSON text.
    pub stands: Option<String>,
}

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Nobody is called so.
    #[error("there is no entity \"{name}\"; there are: {known}")]
    NoEntity {
        /// What was asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// Not in the outbox.
    #[error("the outbox has no event {0}")]
    NoEvent(EventId),
    /// None of this entity's aggregate type.
    #[error("the outbox has no event of the aggregate type {0}: write one, or give a payload with --payload FILE")]
    NoEventOf(String),
    /// The mapping is wrong.
    #[error("{0}")]
    Mapping(Box<MappingError>),
    /// A database is away.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// The event is refused, or a database went away.
    #[error("{}", crate::disposition::told(.0))]
    Database(#[from] sqlx::Error),
}

impl From<MappingError> for MapError {
    fn from(error: MappingError) -> MapError {
        MapError::Mapping(Box::new(error))
    }
}

/// An entity by its name.
pub fn entity<'a>(config: &'a Config, name: &str) -> Result<&'a Entity, MapError> {
    config.entities.iter().find(|entity| entity.name == name).ok_or_else(|| MapError::NoEntity {
        name: name.to_owned(),
        known: config.entities.iter().map(|entity| entity.name.as_str()).collect::<Vec<_>>().join(", "),
    })
}

/// The newest event of the entity's aggregate type, whatever its status. Gives up after some seconds where that means to walk
/// over millions of others.
pub async fn newest_event(config: &Config, source: &PgPool, entity: &Entity) -> Result<Event, MapError> {
    let names = Names::new(&config.legacy, config.relay.lanes);
    let sql = names.render(include_str!("../sql/source/newest_event.sql"));
    connect::reached("legacy", source).await?;
    let (mut session, _) = Session::begin(source, &format!("SET TRANSACTION READ ONLY; {}", LIMITS.sql())).await?;
    let id = query_scalar(&sql, false).bind(&entity.aggregate_type).fetch_optional(session.connection()).await;
    session.rollback().await;
    let id: EventId = id?.ok_or_else(|| MapError::NoEventOf(entity.aggregate_type.clone()))?;
    event_by_id(config, source, id).await
}

/// An event of the outbox, whatever its status.
pub async fn event_by_id(config: &Config, source: &PgPool, id: EventId) -> Result<Event, MapError> {
    let names = Names::new(&config.legacy, config.relay.lanes);
    let sql = names.render(include_str!("../sql/source/event.sql"));
    connect::reached("legacy", source).await?;
    let (mut session, _) = Session::begin(source, &format!("SET TRANSACTION READ ONLY; {}", LIMITS.sql())).await?;
    let row = query(&sql, false).bind(id).fetch_optional(session.connection()).await;
    session.rollback().await;
    let row = row?.ok_or(MapError::NoEvent(id))?;
    let aggregate = Aggregate { kind: row.try_get("aggregate_type")?, id: row.try_get("aggregate_id")? };
    let event = Event::made_up(aggregate, row.try_get("event_type")?, row.try_get("payload")?);
    Ok(Event {
        id,
        event_id: row.try_get("event_id")?,
        headers: row.try_get("headers")?,
        created_at: row.try_get("created_at")?,
        ..event
    })
}

/// An event that nobody wrote, of an entity's first `upsert` (or else first) event type.
pub fn event_of_payload(entity: &Entity, payload: String) -> Event {
    let upsert = entity.events.iter().find(|(_, action)| **action == Action::Upsert);
    let event_type = upsert.or_else(|| entity.events.iter().next()).map_or("", |(name, _)| name);
    Event::made_up(Aggregate { kind: entity.aggregate_type.clone(), id: String::new() }, event_type, payload)
}

const LIMITS: Limits = Limits { deadline: std::time::Duration::from_secs(30), lock: std::time::Duration::from_secs(1) };

/// What this event would do by this entity.
pub async fn map(config: &Config, entity: &Entity, target: &PgPool, event: &Event) -> Result<Mapped, MapError> {
    connect::reached("new", target).await?;
    let (mut session, _) = Session::begin(target, &format!("SET TRANSACTION READ ONLY; {}", LIMITS.sql())).await?;
    let effect = effect(config, entity, session.connection(), event).await;
    session.rollback().await;
    Ok(Mapped { entity: entity.name.clone(), event_type: event.event_type.clone(), effect: effect? })
}

async fn effect(
    config: &Config,
    entity: &Entity,
    connection: &mut PgConnection,
    event: &Event,
) -> Result<Effect, MapError> {
    let Some(action) = entity.events.get(&event.event_type) else { return Ok(Effect::Unmapped) };
    let deletes = match action {
        Action::Ignore => return Ok(Effect::Ignore),
        Action::Sql(file) => return Ok(Effect::OwnSql(file.path.display().to_string())),
        Action::Upsert => false,
        Action::Delete => true,
    };
    let search_path = search_path(config);
    let Mapping { preview, preview_delete, .. } =
        mapping::compile(entity, connection, &search_path, &config.new.schema).await?;
    let (Some(preview), Some(table)) = (if deletes { preview_delete } else { preview }, &entity.table) else {
        return Ok(Effect::Ignore);
    };
    let events: Events<'_> = std::iter::once(event).collect();
    let key = if deletes && !entity.replace_by.is_empty() { &entity.replace_by } else { &entity.key };
    let mut rows = Vec::new();
    for row in preview.texts(connection, &events).await? {
        let stands = stands(connection, table, key, &row).await?;
        rows.push(MappedRow { row, stands });
    }
    Ok(if deletes { Effect::Delete(rows) } else { Effect::Write(rows) })
}

fn search_path(config: &Config) -> String {
    format!("SET LOCAL search_path = pg_catalog, {};", ident(&config.new.search_path))
}

/// The row of the same key that the table has.
async fn stands(
    connection: &mut PgConnection,
    table: &TableName,
    key: &[String],
    row: &str,
) -> sqlx::Result<Option<String>> {
    let table = format!("{}.{}", ident(&table.schema), ident(&table.table));
    let same = key.iter().map(|k| format!("t.{0} = r.{0}", ident(k))).collect::<Vec<_>>().join(" AND ");
    let sql = format!(
        "SELECT to_jsonb(t)::text FROM {table} AS t, jsonb_populate_record(NULL::{table}, $1::jsonb) AS r WHERE {same} LIMIT 1"
    );
    query_scalar(&sql, false).bind(row).fetch_optional(connection).await
}

/// For a terminal.
pub fn render(mapped: &Mapped) -> String {
    let mut out = String::new();
    let (rows, verb) = match &mapped.effect {
        Effect::Write(rows) => (rows, "write"),
        Effect::Delete(rows) => (rows, "delete"),
        Effect::OwnSql(file) => {
            return format!(
                "{} of entity {} runs {file}, which is not tried here.\n",
                mapped.event_type, mapped.entity
            );
        }
        Effect::Ignore => return format!("{} is ignored by entity {}.\n", mapped.event_type, mapped.entity),
        Effect::Unmapped => {
            return format!(
                "Entity {} does not name the event type {}: such events wait.\n",
                mapped.entity, mapped.event_type
            );
        }
    };
    let _ = writeln!(out, "{} of entity {} would {verb} {} row(s):", mapped.event_type, mapped.entity, rows.len());
    for row in rows {
        let _ = writeln!(out, "  {}", row.row);
        let _ = match (&row.stands, verb) {
            (None, "write") => writeln!(out, "    new: no row has this key"),
            (None, _) => writeln!(out, "    no row has this key: nothing happens"),
            (Some(stands), "write") => writeln!(out, "    over {stands}"),
            (Some(stands), _) => writeln!(out, "    gone: {stands}"),
        };
    }
    out.push_str("Nothing was written.\n");
    out
}

/// A script that runs in psql as it is: the mapping as the operator wrote it, over this event.
pub fn psql(config: &Config, entity: &Entity, event: &Event) -> String {
    let headers = event.headers.as_deref().map_or("NULL".to_owned(), literal);
    let columns = [
        format!("{}::bigint AS id", event.id),
        format!("{}::uuid AS event_id", literal(&event.event_id.to_string())),
        format!("{}::text AS aggregate_type", literal(&event.aggregate.kind)),
        format!("{}::text AS aggregate_id", literal(&event.aggregate.id)),
        format!("{}::text AS event_type", literal(&event.event_type)),
        format!("{}::jsonb AS payload", literal(&event.payload)),
        format!("{headers}::jsonb AS headers"),
        format!("{}::timestamptz AS created_at", literal(&event.created_at.to_rfc3339())),
    ];
    let relation = format!("event AS (\n  SELECT {}\n)", columns.join(",\n         "));
    let statement = match &entity.mapping {
        Some(file) => {
            let parsed = text::parse(&file.text);
            let head = match parsed.with {
                None => format!("WITH {relation}\n"),
                Some(With::Plain) => format!("WITH {relation},\n"),
                Some(With::Recursive) => format!("WITH RECURSIVE {relation},\n"),
            };
            format!("{head}-- {}\n{}", file.path.display(), parsed.body.trim_end())
        }
        None => format!(
            "WITH {relation}\n-- no mapping: the payload's keys are the columns\nSELECT k.key, k.value FROM event, jsonb_each(payload) AS k"
        ),
    };
    // The semicolon on a line of its own: the mapping may end in a comment.
    format!("BEGIN READ ONLY;\n{}\nSET LOCAL timezone = 'UTC';\n{statement}\n;\nROLLBACK;\n", search_path(config))
}
