//! `/healthz` and `/readyz`.
//!
//! Ready means that this process may be sent operators: it stays 200 while things are wrong, for that is when they come.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::Inner;
use super::auth::Caller;
use super::problem::Problem;
use crate::event::Lane;
use crate::health::{Condition, conditions};

/// How long readiness asks the legacy database.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// Alive.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`.
    status: &'static str,
}

/// Whether it flows.
#[derive(Serialize, ToSchema)]
pub(super) struct Readiness {
    status: Ready,
    /// What stands in the way; missing where nothing does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    causes: Vec<Obstacle>,
}

/// Whether something stands in the way.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Ready {
    /// Nothing stands in the way.
    Ok,
    /// Something does.
    Degraded,
}

/// Something that stands in the way. Without a token, where tokens are configured, its code and nothing else.
#[derive(Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Obstacle {
    /// For programs: stable, and listed in docs/operations.md.
    code: &'static str,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<DateTime<Utc>>,
    /// `legacy` or `new`.
    #[serde(skip_serializing_if = "Option::is_none")]
    database: Option<&'static str>,
    /// What does not flow; `null`: everything (`paused`).
    #[serde(skip_serializing_if = "Option::is_none")]
    aggregate_type: Option<Option<String>>,
    /// `stopped`, `unmapped`: the code of the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// How many events.
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<u64>,
    /// `lane_stopped`: which.
    #[serde(skip_serializing_if = "Option::is_none")]
    lane: Option<Lane>,
    /// `slow`: which.
    #[serde(skip_serializing_if = "Option::is_none")]
    lanes: Option<Vec<Lane>>,
    /// `paused`: by whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<String>,
}

impl Obstacle {
    fn new(code: &'static str, message: impl Into<String>) -> Obstacle {
        Obstacle { code, message: Some(message.into()), ..Obstacle::default() }
    }
}

/// Whether the process is alive.
#[utoipa::path(get, path = "/healthz", security((), ("token" = [])), responses((status = OK, body = Health)))]
pub(super) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether events flow, and what stands in the way. It is 503 only while the process starts or stops.
#[utoipa::path(get, path = "/readyz", security((), ("token" = [])), responses((status = OK, body = Readiness)))]
pub(super) async fn readyz(
    State(state): State<Arc<Inner>>,
    caller: Option<Extension<Caller>>,
) -> Result<Json<Readiness>, Problem> {
    if state.shutdown.is_cancelled() {
        return Err(Problem::stopping());
    }
    if state.operator.relay().is_none() {
        let detail = "the relay has not started: it waits for its databases";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "starting", detail));
    }
    let facts = state.health.facts(&state.health.ask(ASK_WITHIN).await);
    let mut causes: Vec<Obstacle> = conditions(&facts).iter().flat_map(obstacles).collect();
    if caller.is_none() {
        causes = codes_only(&causes);
    }
    let status = if causes.is_empty() { Ready::Ok } else { Ready::Degraded };
    Ok(Json(Readiness { status, causes }))
}

/// What a condition tells programs; nothing where it degrades nothing.
fn obstacles(condition: &Condition) -> Vec<Obstacle> {
    let Some(code) = condition.cause() else { return Vec::new() };
    let one = |message: &str| Obstacle::new(code, message);
    let obstacle = match condition {
        Condition::Stopping
        | Condition::Starting(_)
        | Condition::Behind { .. }
        | Condition::Failing { .. }
        | Condition::RowsLeft { .. } => return Vec::new(),
        Condition::LanesStopped(lanes) => {
            return lanes.iter().map(|(lane, why)| Obstacle { lane: Some(*lane), ..one(why) }).collect();
        }
        Condition::SourceAway(why) => Obstacle { database: Some("legacy"), ..one(why) },
        Condition::TargetAway { why, since } => Obstacle { database: Some("new"), since: Some(*since), ..one(why) },
        Condition::Paused(paused) => Obstacle {
            aggregate_type: Some(paused.aggregate_type.clone()),
            actor: Some(paused.actor.clone()),
            since: Some(paused.at),
            ..one(&paused.reason)
        },
        Condition::TypeStopped(report) => Obstacle {
            aggregate_type: Some(Some(report.aggregate_type.clone())),
            error: Some(report.stop.code.to_string()),
            since: Some(report.since),
            ..one(&report.stop.message)
        },
        Condition::EventTypesUnmapped { aggregate_type, events } => Obstacle {
            aggregate_type: Some(Some(aggregate_type.clone())),
            events: Some(*events),
            ..one("events of an event type that no entity names wait; map it or set it to \"ignore\"")
        },
        Condition::LanesSlow(lanes) => Obstacle {
            lanes: Some(lanes.clone()),
            ..one("batches have been in flight for seconds: a database is slow or hangs")
        },
        Condition::Divergent(events) => Obstacle {
            events: Some(*events),
            ..one("the new database knows events that the outbox forgot; their aggregates need a resync")
        },
        Condition::Reload(why) => one(why),
    };
    vec![obstacle]
}

/// Each code once, and nothing else.
fn codes_only(causes: &[Obstacle]) -> Vec<Obstacle> {
    let mut codes: Vec<&str> = causes.iter().map(|cause| cause.code).collect();
    codes.sort_unstable();
    codes.dedup();
    codes.into_iter().map(|code| Obstacle { code, ..Obstacle::default() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_learn_codes_and_nothing_else() {
        let paused = Obstacle { code: "paused", events: Some(1), ..Obstacle::default() };
        let causes = [Obstacle::new("stopped", "secret"), paused, Obstacle::new("stopped", "")];
        let codes = ["paused", "stopped"].map(|code| Obstacle { code, ..Obstacle::default() });
        assert_eq!(codes_only(&causes), codes);
    }
}
