//! The words of the protocol as types: ids, tokens, lanes, states.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgRow, PgTypeInfo, PgValueRef};
use sqlx::{Postgres, Row};
use utoipa::ToSchema;
use uuid::Uuid;

/// A number under a name of its own; to the database, the number. By hand, because sqlx's derive would have all of sqlx compiled
/// a second time, for the compiler.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident($number:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub $number);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl sqlx::Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                <$number as sqlx::Type<Postgres>>::type_info()
            }
        }
        impl PgHasArrayType for $name {
            fn array_type_info() -> PgTypeInfo {
                <$number as PgHasArrayType>::array_type_info()
            }
        }
        impl sqlx::Encode<'_, Postgres> for $name {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                sqlx::Encode::<Postgres>::encode_by_ref(&self.0, buffer)
            }
        }
        impl sqlx::Decode<'_, Postgres> for $name {
            fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
                sqlx::Decode::<Postgres>::decode(value).map($name)
            }
        }
    };
}

number! {
    /// The outbox row's `id`: order within an aggregate.
    EventId(i64)
}
number! {
    /// A number, ever growing, that a worker draws for each batch; the target refuses an older one.
    Token(i64)
}
number! {
    /// A fixed share of all aggregates, by hash of the aggregate; from 0.
    Lane(i32)
}

impl Lane {
    /// As a script has several: `ARRAY[3,7]::int[]`.
    pub(crate) fn list(lanes: &[Lane]) -> String {
        let numbers: Vec<String> = lanes.iter().map(Lane::to_string).collect();
        format!("ARRAY[{}]::int[]", numbers.join(","))
    }

    /// The lanes that a script says it has locked, a row each with `locked`.
    pub(crate) fn locked(rows: &[PgRow]) -> sqlx::Result<Vec<Lane>> {
        rows.iter().map(|row| Ok(Lane(row.try_get("locked")?))).collect()
    }
}

/// The thing that an event is about; the unit of order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ToSchema)]
pub struct Aggregate {
    /// The outbox's `aggregate_type`.
    #[serde(rename = "aggregate_type")]
    pub kind: String,
    /// The outbox's `aggregate_id`.
    #[serde(rename = "aggregate_id")]
    pub id: String,
}

/// One claimed row of the outbox.
#[derive(Debug, Clone)]
pub struct Event {
    /// Order within the aggregate.
    pub id: EventId,
    /// Identity towards others; tells apart events that got the same id before and after a failover.
    pub event_id: Uuid,
    /// What it is about.
    pub aggregate: Aggregate,
    /// What happened.
    pub event_type: String,
    /// JSON text, exactly as the source gave it: never parsed here.
    pub payload: String,
    /// JSON text; `traceparent` and the like.
    pub headers: Option<String>,
    /// When the writer's transaction inserted it, by the source's clock.
    pub created_at: DateTime<Utc>,
    /// Failed attempts so far.
    pub attempts: i32,
    /// How long ago, by the source's clock, its first failure since it last was pending happened; `None` if it never failed.
    pub failing_for: Option<Duration>,
    /// Where the claim found it: `Pending`, or `Retry` when its time had come.
    pub was: Status,
}

impl Event {
    /// One that nobody wrote: for a look at what a payload would do, a comparison, a test. Never tried, without a name.
    pub fn made_up(aggregate: Aggregate, event_type: &str, payload: String) -> Event {
        Event {
            id: EventId(0),
            event_id: Uuid::nil(),
            aggregate,
            event_type: event_type.to_owned(),
            payload,
            headers: None,
            created_at: Utc::now(),
            attempts: 0,
            failing_for: None,
            was: Status::Pending,
        }
    }
}

/// Where an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Waiting to be claimed.
    Pending,
    /// Failed, and waiting for its next attempt.
    Retry,
    /// Waiting behind an earlier event of its aggregate.
    Held,
    /// Applied.
    Processed,
    /// Given up, until an operator replays or skips it.
    Failed,
    /// Passed over by an operator.
    Skipped,
}

impl Status {
    /// Every status, in the order in which people read them.
    pub const ALL: [Status; 6] =
        [Status::Pending, Status::Retry, Status::Held, Status::Processed, Status::Failed, Status::Skipped];

    /// The design's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Retry => "retry",
            Status::Held => "held",
            Status::Processed => "processed",
            Status::Failed => "failed",
            Status::Skipped => "skipped",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Status {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        Status::ALL.into_iter().find(|s| s.as_str() == word).ok_or(())
    }
}

/// What names an entry of a log: its token, and a nonce that tells it from another history's entry with the same token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct BatchKey {
    /// Grows along a log.
    pub token: Token,
    /// Random.
    pub nonce: Uuid,
}

impl BatchKey {
    /// The columns `token` and `nonce` of a row, the nonce as it comes or as text (a script's rows are text); `None` where they
    /// are NULL: the log is empty.
    pub(crate) fn of_row(row: &PgRow) -> sqlx::Result<Option<BatchKey>> {
        let Some(token) = row.try_get("token")? else { return Ok(None) };
        let nonce = row.try_get("nonce").or_else(|_| {
            let text: String = row.try_get("nonce")?;
            text.parse().map_err(|error: uuid::Error| sqlx::Error::Decode(Box::new(error)))
        })?;
        Ok(Some(BatchKey { token: Token(token), nonce }))
    }
}

/// A database, as the other side's log names it: `system_identifier/database`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Identity(pub String);

impl Identity {
    /// How a server tells its own, as an expression. Both logs keep what it said: it must be the same wherever it is asked.
    pub const SQL: &'static str =
        "(SELECT system_identifier FROM pg_control_system())::text || '/' || current_database()";
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
