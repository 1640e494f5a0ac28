//! What a single request may cost: its body's size and time, and the time until its answer.
//!
//! Guarantees: a body is in memory whole before a handler runs, and is read for nobody but those who may call (a sign-in's, which
//! anybody may send, is small). Headers and connections are bounded in [`super::connections`].

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::auth::is_reading;
use super::problem::Problem;
use super::seats::Kind;
use crate::page;

/// The largest body.
pub(super) const BODY: usize = 1 << 20;
/// The largest of a form that anybody may send.
const SIGN_IN_BODY: usize = 16 << 10;
/// From a body's beginning to its end.
const BODY_TIME: Duration = Duration::from_secs(20);
/// For one request, but those that wait for lanes: see [`waits_for_lanes`].
const REQUEST: Duration = Duration::from_secs(30);

/// Calls for many events, and pauses, take as long as they take: each of their waits has a limit of its own.
fn waits_for_lanes(path: &str) -> bool {
    matches!(path, "/v1/events/replay" | "/v1/events/skip" | "/v1/pause" | "/pause") || path.starts_with("/failures/")
}

/// The time until an answer begins.
pub(super) async fn in_time(request: Request, next: Next) -> Response {
    if waits_for_lanes(request.uri().path()) {
        return next.run(request).await;
    }
    tokio::time::timeout(REQUEST, next.run(request)).await.unwrap_or_else(|_| {
        let detail =
            format!("not done within {REQUEST:?}: nothing was changed, or it was and a repeated call will say so");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", detail).into_response()
    })
}

/// Reads the body, before what it asks for begins.
pub(super) async fn with_whole_body(request: Request, next: Next) -> Response {
    if is_reading(request.method()) {
        return next.run(request).await;
    }
    let limit = if page::is_open(request.uri().path()) { SIGN_IN_BODY } else { BODY };
    let (parts, body) = request.into_parts();
    let problem = match tokio::time::timeout(BODY_TIME, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => return next.run(Request::from_parts(parts, Body::from(body.to_bytes()))).await,
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let detail = format!("the body is larger than {} KiB", limit >> 10);
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
        }
        Ok(Err(error)) => Problem::malformed(format!("the body: {error}")),
        Err(_) => {
            let detail = format!("the body was not here within {BODY_TIME:?}");
            Problem::new(StatusCode::REQUEST_TIMEOUT, "too_slow", detail)
        }
    };
    // What is left of the body is not read any more.
    let mut response = problem.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// On a spare connection only probes are answered.
pub(super) async fn not_too_many(request: Request, next: Next) -> Response {
    let spare = request.extensions().get::<Kind>() == Some(&Kind::Spare);
    if spare && !matches!(request.uri().path(), "/healthz" | "/readyz") {
        let detail =
            "too many connections are open, in all or from this address (admin.max_connections): repeat the call";
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", detail).into_response();
    }
    next.run(request).await
}
