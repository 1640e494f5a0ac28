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
use crate::operator::Operator;
use crate::relay::Shared;
use crate::relay::stops::StopCode;

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
    let Some(relay) = state.operator.relay() else {
        let detail = "the relay has not started: it waits for its databases";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "starting", detail));
    };
    let mut causes = of_relay(relay);
    if let Some(sample) = state.backlog.peek() {
        let message = "events of an event type that no entity names wait; map it or set it to \"ignore\"";
        causes.extend(sample.unmapped.iter().map(|(kind, n)| Obstacle {
            aggregate_type: Some(Some(kind.clone())),
            events: Some(*n),
            ..Obstacle::new("unmapped", message)
        }));
    }
    match tokio::time::timeout(ASK_WITHIN, of_source(&state.operator)).await {
        Ok(Ok(found)) => causes.extend(found),
        Ok(Err(error)) => causes.push(away(error.to_string())),
        Err(_) => causes.push(away(format!("no answer within {ASK_WITHIN:?}"))),
    }
    if caller.is_none() {
        causes = codes_only(&causes);
    }
    let status = if causes.is_empty() { Ready::Ok } else { Ready::Degraded };
    Ok(Json(Readiness { status, causes }))
}

fn away(message: String) -> Obstacle {
    Obstacle { database: Some("legacy"), ..Obstacle::new("database_away", message) }
}

fn of_relay(relay: &Shared) -> Vec<Obstacle> {
    let mut causes = Vec::new();
    for report in relay.stops.report() {
        let code = if report.stop.code == StopCode::Unmapped { "unmapped" } else { "stopped" };
        causes.push(Obstacle {
            aggregate_type: Some(Some(report.aggregate_type)),
            error: Some(report.stop.code.to_string()),
            since: Some(report.since),
            ..Obstacle::new(code, report.stop.message)
        });
    }
    if let Some((why, since)) = relay.breaker.report() {
        causes.push(Obstacle { database: Some("new"), since: Some(since), ..Obstacle::new("breaker_open", why) });
    }
    let state = relay.state();
    for (lane, why) in state.stopped_lanes {
        causes.push(Obstacle { lane: Some(lane), ..Obstacle::new("lane_stopped", why) });
    }
    if !state.slow_lanes.is_empty() {
        let message = "batches have been in flight for seconds: a database is slow or hangs";
        let lanes = state.slow_lanes.into_iter().collect();
        causes.push(Obstacle { lanes: Some(lanes), ..Obstacle::new("slow", message) });
    }
    causes.extend(state.source_away.map(away));
    causes.extend(state.reload_error.map(|why| Obstacle::new("reload", why)));
    causes
}

async fn of_source(operator: &Operator) -> crate::operator::Result<Vec<Obstacle>> {
    let mut causes = Vec::new();
    for paused in operator.paused().await? {
        causes.push(Obstacle {
            aggregate_type: Some(paused.aggregate_type),
            actor: Some(paused.actor),
            since: Some(paused.at),
            ..Obstacle::new("paused", paused.reason)
        });
    }
    let divergent = operator.divergent().await?;
    if divergent > 0 {
        let message = "the new database knows events that the outbox forgot; their aggregates need a resync";
        causes.push(Obstacle { events: Some(divergent), ..Obstacle::new("divergent", message) });
    }
    Ok(causes)
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
