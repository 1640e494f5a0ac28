//! Lists of events, and one event with all that is known of it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::Row;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Executor, Postgres};
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{AnyOfBuilder, KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{ORDERED, Operator, OperatorError, Result, count};
use crate::event::{Aggregate, EventId, Lane, Status};
use crate::redact::Sight;
use crate::session;
use crate::source::Names;
use crate::sql::{literal, query, query_scalar, render};

/// Which events are meant. Everything that is named must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Where they stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// The outbox's `aggregate_type`, letter by letter, as are the next two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregate_type: Option<String>,
    /// The outbox's `aggregate_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregate_id: Option<String>,
    /// The outbox's `event_type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// As the list of failures names it; only events in retry and failed have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Only these; in a query, numbers with commas between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(style = Form, explode = false, value_type = Option<Vec<i64>>)]
    pub ids: Option<Vec<EventId>>,
    /// At this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_after: Option<DateTime<Utc>>,
    /// Earlier than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_before: Option<DateTime<Utc>>,
}

impl Filter {
    /// Whether it means all events.
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// $1 to $7.
    pub(super) fn bind<'q>(&'q self, query: Query<'q, Postgres, PgArguments>) -> Query<'q, Postgres, PgArguments> {
        query
            .bind(&self.aggregate_type)
            .bind(&self.aggregate_id)
            .bind(&self.event_type)
            .bind(&self.cause)
            .bind(&self.ids)
            .bind(self.created_after)
            .bind(self.created_before)
    }
}

/// An event's name: its id, or its event_id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventRef {
    /// A number.
    Id(EventId),
    /// A uuid.
    EventId(Uuid),
}

impl IntoParams for EventRef {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let number =
            ObjectBuilder::new().schema_type(Type::Integer).format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)));
        let uuid =
            ObjectBuilder::new().schema_type(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)));
        let parameter = ParameterBuilder::new()
            .name("id")
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some("Which event: its id, or its event_id."))
            .schema(Some(AnyOfBuilder::new().item(number).item(uuid)));
        vec![parameter.build()]
    }
}

impl std::str::FromStr for EventRef {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let id = text.parse().map(|id| EventRef::Id(EventId(id)));
        id.or_else(|_| text.parse().map(EventRef::EventId))
            .map_err(|_| format!("{text:?} is neither an id (a number) nor an event_id (a uuid)"))
    }
}

impl std::fmt::Display for EventRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EventRef::Id(id) => id.fmt(f),
            EventRef::EventId(id) => id.fmt(f),
        }
    }
}

/// An event in a list; no payload.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[expect(missing_docs, reason = "the outbox's columns")]
pub struct Listed {
    pub id: EventId,
    pub event_id: Uuid,
    #[serde(flatten)]
    pub aggregate: Aggregate,
    pub event_type: String,
    pub created_at: DateTime<Utc>,
    /// The design's word, or the outbox's own where nobody claims it.
    pub status: String,
    pub attempts: i32,
    pub next_attempt_at: Option<DateTime<Utc>>,
    pub processed_at: Option<DateTime<Utc>>,
    pub last_error: Option<String>,
    /// Why it fails, for retry and failed.
    pub cause: Option<String>,
}

/// A page of events.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Events {
    /// Oldest first.
    pub items: Vec<Listed>,
    /// For the next page.
    pub next_cursor: Option<String>,
}

/// One event.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Event {
    /// As in lists.
    #[serde(flatten)]
    pub event: Listed,
    /// Its lane.
    pub lane: Lane,
    /// As the outbox has it, byte for byte but for what is redacted; a string where that is no JSON.
    #[schema(value_type = serde_json::Value)]
    pub payload: Box<RawValue>,
    /// Likewise.
    #[schema(value_type = serde_json::Value)]
    pub headers: Option<Box<RawValue>>,
    /// Why it is in retry or failed.
    pub failure: Option<Failure>,
    /// Its failed attempts, oldest first, at most the latest hundred.
    pub history: Vec<Attempt>,
    /// The lowest event of its aggregate below it that is in retry, held or failed.
    pub held_behind: Option<EventId>,
    /// Later events of its aggregate that are held (counted up to 100,000).
    pub holds_back: u64,
}

/// Why an event fails now.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[expect(missing_docs, reason = "as Postgres names them")]
pub struct Failure {
    pub entity: String,
    pub disposition: String,
    pub code: String,
    pub message: String,
    pub constraint: Option<String>,
    pub column: Option<String>,
    /// Postgres' DETAIL: may hold personal data.
    pub detail: Option<String>,
    /// In the operator's file.
    pub place: Option<String>,
    pub first_at: DateTime<Utc>,
    pub last_at: DateTime<Utc>,
}

/// A failed attempt.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[expect(missing_docs, reason = "the history's columns")]
pub struct Attempt {
    pub at: DateTime<Utc>,
    pub attempts: i32,
    pub disposition: String,
    pub cause: String,
    pub code: String,
    pub message: String,
}

/// How long a list may take: an index serves every status; what else is asked for is looked for among these events.
const LIST_WITHIN: Duration = Duration::from_secs(15);

impl Operator {
    /// Events, oldest first, from the one after `cursor` on.
    pub async fn events(&self, filter: &Filter, limit: u32, cursor: Option<EventId>) -> Result<Events> {
        let sql = statement(self.names(), list_of(filter), &statuses_of_list(filter));
        let mut session = self.reading(LIST_WITHIN).await?;
        session.connection().execute(sqlx::raw_sql(ORDERED)).await?;
        let query = filter.bind(crate::sql::query(&sql, false));
        let rows = query
            .bind(cursor.map_or(i64::MIN, |id| id.0))
            .bind(i64::from(limit) + 1)
            .fetch_all(session.connection())
            .await
            .map_err(too_broad)?;
        session.commit().await?;
        let more = rows.len() > limit as usize;
        let rows = rows.iter().take(limit as usize);
        let items = rows.map(|row| self.listed(row)).collect::<sqlx::Result<Vec<_>>>()?;
        let next_cursor = items.last().filter(|_| more).map(|last| last.id.to_string());
        Ok(Events { items, next_cursor })
    }

    /// One event.
    pub async fn event(&self, event: &EventRef) -> Result<Event> {
        let mut session = self.reading(LIST_WITHIN).await?;
        let id = match event {
            EventRef::Id(id) => *id,
            EventRef::EventId(uuid) => {
                let sql = self.names().render(include_str!("../../sql/operator/event_id.sql"));
                let found = query_scalar(&sql, false).bind(uuid).fetch_optional(session.connection()).await;
                found.map_err(too_broad)?.ok_or_else(|| OperatorError::NotFound(event.to_string()))?
            }
        };
        let sql = statement(self.names(), include_str!("../../sql/operator/event.sql"), &[]);
        let row = query(&sql, false).bind(id).fetch_optional(session.connection()).await?;
        let row = row.ok_or_else(|| OperatorError::NotFound(event.to_string()))?;
        let listed = self.listed(&row)?;
        let lane: Lane = row.try_get("lane")?;
        let sql = self.names().render(include_str!("../../sql/operator/attempts.sql"));
        let history = query(&sql, false).bind(id).fetch_all(session.connection()).await?;
        let sql = self.names().render(include_str!("../../sql/operator/neighbours.sql"));
        let neighbours = query(&sql, false)
            .bind(lane)
            .bind(&listed.aggregate.kind)
            .bind(&listed.aggregate.id)
            .bind(id)
            .fetch_one(session.connection())
            .await?;
        session.commit().await?;
        let waits = [Status::Retry, Status::Held, Status::Failed].iter().any(|status| status.as_str() == listed.status);
        let held_behind: Option<EventId> = neighbours.try_get("held_behind")?;
        let kind = listed.aggregate.kind.clone();
        let payload: String = row.try_get("payload")?;
        let headers: Option<String> = row.try_get("headers")?;
        Ok(Event {
            event: listed,
            lane,
            payload: raw(self.sight.payload(&kind, &payload).into_owned()),
            headers: headers.map(|headers| raw(self.sight.headers(&headers).into_owned())),
            failure: failure(&row, &kind, &self.sight)?,
            history: history.iter().map(|row| attempt(row, &kind, &self.sight)).collect::<sqlx::Result<_>>()?,
            held_behind: held_behind.filter(|_| waits),
            holds_back: if waits { count(&neighbours, "holds_back")? } else { 0 },
        })
    }

    fn listed(&self, row: &PgRow) -> sqlx::Result<Listed> {
        let word: String = row.try_get("status")?;
        let aggregate = Aggregate { kind: row.try_get("aggregate_type")?, id: row.try_get("aggregate_id")? };
        let last_error: Option<String> = row.try_get("last_error")?;
        Ok(Listed {
            id: row.try_get("id")?,
            event_id: row.try_get("event_id")?,
            last_error: last_error.map(|line| self.sight.last_error(&aggregate.kind, line)),
            aggregate,
            event_type: row.try_get("event_type")?,
            created_at: row.try_get("created_at")?,
            status: self.names().status(&word).map_or(word, |status| status.as_str().to_owned()),
            attempts: row.try_get("attempts")?,
            next_attempt_at: row.try_get("next_attempt_at")?,
            processed_at: row.try_get("processed_at")?,
            cause: row.try_get("cause")?,
        })
    }
}

fn too_broad(error: sqlx::Error) -> OperatorError {
    if session::is_statement_timeout(&error) {
        let message =
            "no index leads to these events, and looking at every one takes too long: name a status, an id or a cause";
        return OperatorError::Invalid { code: "filter.too_broad", message: message.to_owned() };
    }
    error.into()
}

/// The statement whose index leads to these events.
fn list_of(filter: &Filter) -> &'static str {
    match filter.status {
        _ if filter.cause.is_some() => include_str!("../../sql/operator/events_by_cause.sql"),
        Some(Status::Pending) => include_str!("../../sql/operator/events_pending.sql"),
        Some(Status::Processed) => include_str!("../../sql/operator/events_by_id.sql"),
        Some(_) => include_str!("../../sql/operator/events_by_status.sql"),
        None => include_str!("../../sql/operator/events_any.sql"),
    }
}

fn statuses_of_list(filter: &Filter) -> Vec<Status> {
    match filter.status {
        Some(status) => vec![status],
        None => vec![Status::Retry, Status::Failed],
    }
}

/// Puts the shared parts into a file: the columns of a list, the filter ($1 to $7), the wanted statuses.
pub(super) fn statement(names: &Names, file: &str, wanted: &[Status]) -> String {
    let wanted: Vec<String> = wanted.iter().map(|status| literal(names.word(*status))).collect();
    let parts = [("columns", names.render(COLUMNS)), ("matches", names.render(MATCHES)), ("wanted", wanted.join(", "))];
    render(&names.render(file), &parts)
}

const COLUMNS: &str = "o.{id}::bigint AS id, o.{event_id}::uuid AS event_id, o.{aggregate_type}::text AS aggregate_type, \
    o.{aggregate_id}::text AS aggregate_id, o.{event_type}::text AS event_type, {written_at_of_o} AS created_at, \
    o.{status}::text AS status, o.{attempts}::int AS attempts, {shown_next_attempt_at} AS next_attempt_at, \
    {shown_processed_at} AS processed_at, o.{last_error}::text AS last_error, \
    (SELECT f.cause FROM {relay}.failure f WHERE f.id = o.{id} AND o.{status} IN ({retry}, {failed})) AS cause";

const MATCHES: &str = "($1::text IS NULL OR o.{aggregate_type} = $1::text) \
    AND ($2::text IS NULL OR o.{aggregate_id}::text = $2::text) \
    AND ($3::text IS NULL OR o.{event_type}::text = $3::text) \
    AND ($4::text IS NULL OR (o.{status} IN ({retry}, {failed}) \
         AND EXISTS (SELECT FROM {relay}.failure f WHERE f.id = o.{id} AND f.cause = $4::text))) \
    AND ($5::bigint[] IS NULL OR o.{id} = ANY ($5::bigint[])) \
    AND ($6::timestamptz IS NULL OR o.{created_at} >= $6::timestamptz) \
    AND ($7::timestamptz IS NULL OR o.{created_at} < $7::timestamptz)";

pub(super) fn statements(names: &Names) -> Vec<(&'static str, String)> {
    let files = [
        ("events_by_id", include_str!("../../sql/operator/events_by_id.sql")),
        ("events_any", include_str!("../../sql/operator/events_any.sql")),
        ("events_by_status", include_str!("../../sql/operator/events_by_status.sql")),
        ("events_pending", include_str!("../../sql/operator/events_pending.sql")),
        ("events_by_cause", include_str!("../../sql/operator/events_by_cause.sql")),
        ("event", include_str!("../../sql/operator/event.sql")),
        ("collect", include_str!("../../sql/operator/collect.sql")),
        ("still_match", include_str!("../../sql/operator/still_match.sql")),
    ];
    files.into_iter().map(|(name, file)| (name, statement(names, file, &[Status::Failed]))).collect()
}

/// As it stands there; as a string where that is no JSON, as in an adopted table with a text payload, or where it is, but many a
/// client could not read the answer.
pub(super) fn raw(text: String) -> Box<RawValue> {
    let is_json = serde_json::from_str::<&RawValue>(&text).is_ok() && !has_half_a_character(&text);
    let raw = if is_json { RawValue::from_string(text) } else { serde_json::value::to_raw_value(&text) };
    raw.unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// Whether JSON has an escape for one half of a surrogate pair without the other: `json` takes that, `jsonb` does not.
fn has_half_a_character(json: &str) -> bool {
    let unit = |text: &str| u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok();
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        rest = &rest[at..];
        let length = match unit(rest) {
            Some(0xd800..0xdc00) if unit(&rest[6..]).is_some_and(|low| (0xdc00..0xe000).contains(&low)) => 12,
            Some(0xd800..0xe000) => return true,
            Some(_) => 6,
            None => 2,
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    false
}

fn failure(row: &PgRow, kind: &str, sight: &Sight) -> sqlx::Result<Option<Failure>> {
    let Some(entity) = row.try_get("entity")? else { return Ok(None) };
    let code: String = row.try_get("code")?;
    let detail: Option<String> = row.try_get("detail")?;
    Ok(Some(Failure {
        entity,
        disposition: row.try_get("disposition")?,
        message: sight.message(kind, &code, row.try_get("message")?),
        code,
        constraint: row.try_get("constraint_name")?,
        column: row.try_get("column_name")?,
        detail: detail.map(|detail| sight.detail(kind, detail)),
        place: row.try_get("place")?,
        first_at: row.try_get("first_at")?,
        last_at: row.try_get("last_at")?,
    }))
}

fn attempt(row: &PgRow, kind: &str, sight: &Sight) -> sqlx::Result<Attempt> {
    let code: String = row.try_get("code")?;
    Ok(Attempt {
        at: row.try_get("at")?,
        attempts: row.try_get("attempts")?,
        disposition: row.try_get("disposition")?,
        cause: row.try_get("cause")?,
        message: sight.message(kind, &code, row.try_get("message")?),
        code,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_event_is_named_by_its_number_or_its_uuid_and_by_nothing_else(
            id in any::<i64>(), uuid in any::<u128>(), text in "[-+0-9a-fA-F{}urn: é]{0,40}"
        ) {
            for named in [EventRef::Id(EventId(id)), EventRef::EventId(Uuid::from_u128(uuid))] {
                prop_assert_eq!(named.to_string().parse::<EventRef>(), Ok(named));
            }
            if let Err(why) = text.parse::<EventRef>() {
                prop_assert!(why.contains("neither an id"));
            }
        }

        #[test]
        fn whatever_the_payload_the_answer_can_be_read(text in "\"(\\\\\\\\|\\\\u[d0][89abcdef0][0-9a-f]{2}|\\\\n|a|é){0,8}\"") {
            let shown = raw(text.clone());
            prop_assert!(serde_json::from_str::<String>(shown.get()).is_ok(), "{text}");
            prop_assert_eq!(shown.get() == text, serde_json::from_str::<String>(&text).is_ok());
        }

        #[test]
        fn what_the_outbox_holds_is_shown_as_it_is_or_as_a_string(text in "\\PC{0,40}") {
            let shown = raw(text.clone());
            let as_it_is = shown.get() == text;
            prop_assert!(as_it_is || serde_json::from_str::<String>(shown.get()).unwrap() == text);
        }
    }
}
