//! `/healthz` and `/readyz`.
//!
//! Ready means that this process may be sent operators: it stays 200 while things are wrong, for that is when they come.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::Inner;
use super::auth::Caller;
use super::problem::Problem;
use crate::operator::Operator;
use crate::relay::Shared;
use crate::relay::stops::StopCode;

/// How long readiness asks the legacy database.
const ASK_WITHIN: Duration = Duration::from_secs(2);

pub(super) async fn healthz() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

pub(super) async fn readyz(State(state): State<Arc<Inner>>, caller: Option<Extension<Caller>>) -> Response {
    if state.shutdown.is_cancelled() {
        return Problem::stopping().into_response();
    }
    let Some(relay) = state.operator.relay() else {
        let detail = "the relay has not started: it waits for its databases";
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "starting", detail).into_response();
    };
    let mut causes = of_relay(relay);
    if let Some(sample) = state.backlog.peek() {
        causes.extend(sample.unmapped.iter().map(|(kind, n)| {
            json!({"code": "unmapped", "aggregate_type": kind, "events": n,
                   "message": "events of an event type that no entity names wait; map it or set it to \"ignore\""})
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
    let status = if causes.is_empty() { "ok" } else { "degraded" };
    let body = if causes.is_empty() { json!({"status": status}) } else { json!({"status": status, "causes": causes}) };
    Json(body).into_response()
}

fn away(message: String) -> Value {
    json!({"code": "database_away", "database": "legacy", "message": message})
}

fn of_relay(relay: &Shared) -> Vec<Value> {
    let mut causes = Vec::new();
    for report in relay.stops.report() {
        let code = if report.stop.code == StopCode::Unmapped { "unmapped" } else { "stopped" };
        causes.push(json!({"code": code, "aggregate_type": report.aggregate_type, "error": report.stop.code,
                           "message": report.stop.message, "since": report.since}));
    }
    if let Some((why, since)) = relay.breaker.report() {
        causes.push(json!({"code": "breaker_open", "database": "new", "message": why, "since": since}));
    }
    let state = relay.state();
    for (lane, why) in state.stopped_lanes {
        causes.push(json!({"code": "lane_stopped", "lane": lane, "message": why}));
    }
    if !state.slow_lanes.is_empty() {
        causes.push(json!({"code": "slow", "lanes": state.slow_lanes,
                           "message": "batches have been in flight for seconds: a database is slow or hangs"}));
    }
    causes.extend(state.source_away.map(away));
    causes.extend(state.reload_error.map(|why| json!({"code": "reload", "message": why})));
    causes
}

async fn of_source(operator: &Operator) -> crate::operator::Result<Vec<Value>> {
    let mut causes = Vec::new();
    for paused in operator.paused().await? {
        causes.push(json!({"code": "paused", "aggregate_type": paused.aggregate_type, "message": paused.reason,
                           "actor": paused.actor, "since": paused.at}));
    }
    let divergent = operator.divergent().await?;
    if divergent > 0 {
        causes.push(json!({"code": "divergent", "events": divergent,
                           "message": "the new database knows events that the outbox forgot; their aggregates need a resync"}));
    }
    Ok(causes)
}

/// Each code once, and nothing else.
fn codes_only(causes: &[Value]) -> Vec<Value> {
    let mut codes: Vec<&str> = causes.iter().filter_map(|cause| cause["code"].as_str()).collect();
    codes.sort_unstable();
    codes.dedup();
    codes.into_iter().map(|code| json!({"code": code})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_learn_codes_and_nothing_else() {
        let causes =
            [json!({"code": "stopped", "message": "secret"}), json!({"code": "paused"}), json!({"code": "stopped"})];
        assert_eq!(codes_only(&causes), [json!({"code": "paused"}), json!({"code": "stopped"})]);
    }
}
