//! The admin server: what operators see and do, over HTTP. The API is here; the page in a browser is `page`.
//!
//! Guarantees: every error is a problem document (RFC 9457); nothing changes without a reason and a row in the audit table; a
//! shutdown ends calls in flight in order. Payloads and Postgres' DETAIL go to whom [`crate::redact`] lets see them, and
//! never to the log.

mod auth;
mod browse;
mod document;
mod health;
mod problem;
mod request;
mod routes;
mod session;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;

use self::document::Document;
pub use self::document::openapi;
use self::problem::Problem;
use crate::config::{Config, Token};
use crate::health::Gatherer;
use crate::metrics::Metrics;
use crate::operator::Operator;
use crate::operator::backlog::Latest;
use crate::operator::history::History;
use crate::page::{self, Visitor};

/// The largest body.
const BODY: usize = 1 << 20;
/// For one request, but those that wait for lanes: see [`waits_for_lanes`].
const REQUEST: Duration = Duration::from_secs(30);
/// How long a shutdown waits for requests in flight.
const DRAIN: Duration = Duration::from_secs(7);

/// What the API stands on.
#[derive(Clone)]
pub struct AdminState {
    /// Knows the relay of this process once [`Operator::attach`] was called: until then the API is `starting`.
    pub operator: Operator,
    /// What a running [`crate::operator::backlog::Sampler`] counts.
    pub backlog: Latest,
    /// Without any, whoever reaches the socket may do all: the caller refuses addresses other than loopback then.
    pub tokens: Vec<Token>,
    /// For `/metrics`.
    pub metrics: Metrics,
    /// The page's last hour, which somebody keeps: [`History::keep`].
    pub history: History,
    /// What the page's check checks.
    pub config: Config,
}

struct Inner {
    operator: Operator,
    backlog: Latest,
    tokens: Vec<Token>,
    metrics: Metrics,
    health: Gatherer,
    shutdown: CancellationToken,
    document: Document,
}

/// Serves until `shutdown`; then requests in flight end, calls for many events between two of their transactions.
pub async fn serve(listener: TcpListener, state: AdminState, shutdown: CancellationToken) -> std::io::Result<()> {
    let app = app(state, shutdown.clone());
    let drained = {
        let shutdown = shutdown.clone();
        async move {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        }
    };
    let server = axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned());
    tokio::select! {
        ended = server.into_future() => ended,
        () = drained => {
            tracing::warn!("requests were still in flight {DRAIN:?} after the shutdown: cut off");
            Ok(())
        }
    }
}

fn app(state: AdminState, shutdown: CancellationToken) -> Router {
    let AdminState { operator, backlog, mut tokens, metrics, history, config } = state;
    // An empty secret is no secret.
    tokens.retain(|token| {
        let usable = !token.secret.is_empty();
        if !usable {
            tracing::error!(token = %token.name, "this token is empty, and is not used");
        }
        usable
    });
    let health = Gatherer { operator: operator.clone(), backlog: backlog.clone(), history, shutdown: shutdown.clone() };
    let pages = page::routes(page::Ground { health: health.clone(), metrics: metrics.clone(), config });
    let sign_in = Router::new()
        .route(page::SIGN_IN, get(session::ask).post(session::begin))
        .route(page::SIGN_OUT, post(session::end))
        .layer(from_fn(page::guarded));
    let (router, document) = document::routes().split_for_parts();
    let document = Document::of(document);
    let state = Arc::new(Inner { operator, backlog, tokens, metrics, health, shutdown, document });
    router
        .merge(pages)
        .merge(sign_in)
        .method_not_allowed_fallback(no_method)
        .fallback(no_route)
        .layer(DefaultBodyLimit::max(BODY))
        .layer(from_fn(in_time))
        .layer(from_fn_with_state(state.clone(), auth::authenticate))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(TraceLayer::new_for_http())
        .with_state(state)
}

async fn no_route(visitor: Option<Extension<Visitor>>, request: Request) -> Response {
    match visitor {
        Some(Extension(visitor)) if auth::is_for_eyes(&request) => page::nothing_here(&visitor),
        _ => Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address").into_response(),
    }
}

async fn no_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", "this address does not take that method")
}

fn panicked(_: Box<dyn Any + Send>) -> Response {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", "this is a bug in outbox-relay; the log says more")
        .into_response()
}

/// Calls for many events, and pauses, take as long as they take: each of their waits has a limit of its own.
fn waits_for_lanes(path: &str) -> bool {
    matches!(path, "/v1/events/replay" | "/v1/events/skip" | "/v1/pause" | "/pause") || path.starts_with("/failures/")
}

async fn in_time(request: Request, next: Next) -> Response {
    let mut response = if waits_for_lanes(request.uri().path()) {
        next.run(request).await
    } else {
        tokio::time::timeout(REQUEST, next.run(request)).await.unwrap_or_else(|_| {
            let detail =
                format!("not done within {REQUEST:?}: nothing was changed, or it was and a repeated call will say so");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", detail).into_response()
        })
    };
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
