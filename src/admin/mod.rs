//! The admin server: what operators see and do, over HTTP. The API is here; the page in a browser is `page`.
//!
//! Guarantees: every error is a problem document (RFC 9457); nothing changes without a reason and a row in the audit table; a
//! shutdown ends calls in flight in order. Payloads and Postgres' DETAIL go to whom [`crate::redact`] lets see them, and
//! never to the log.

mod auth;
mod browse;
mod connections;
mod document;
mod guesses;
mod health;
mod limits;
mod migration;
mod names;
mod problem;
mod request;
mod routes;
mod seats;
mod session;
mod tls;
mod tokens;

use std::any::Any;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::{DefaultOnFailure, TraceLayer};

use self::document::Document;
pub use self::document::openapi;
use self::guesses::Guesses;
use self::names::Names;
use self::problem::Problem;
use self::tls::Tls;
use self::tokens::Tokens;
use crate::config::{Admin, Config, Token};
use crate::health::Gatherer;
use crate::metrics::Metrics;
use crate::migration::Jobs;
use crate::operator::Operator;
use crate::operator::backlog::Latest;
use crate::operator::history::History;
use crate::page::{self, Visitor};

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
    tokens: Tokens,
    names: Names,
    guesses: Guesses,
    metrics: Metrics,
    health: Gatherer,
    shutdown: CancellationToken,
    document: Document,
    jobs: Jobs,
    has_tls: bool,
    behind_proxy: bool,
}

/// Why the configured certificate and key cannot be used, if so, with the names of the files; to be told before anything starts.
pub fn check_certificate(admin: &Admin) -> Result<(), String> {
    Tls::of(admin).map(drop)
}

/// Serves until `shutdown`; then requests in flight end, calls for many events between two of their transactions, and what was
/// started of copies, verifications and repairs where it can go on from.
pub async fn serve(listener: TcpListener, state: AdminState, shutdown: CancellationToken) -> std::io::Result<()> {
    let (max_connections, metrics) = (state.config.admin.max_connections, state.metrics.clone());
    let tls = Tls::of(&state.config.admin).map_err(std::io::Error::other)?;
    let jobs = Jobs::new(shutdown.clone());
    let tokens = Tokens::new(state.tokens.clone());
    let kept = tokens.clone().keep(state.config.admin.token_files.clone(), shutdown.clone());
    let app = app(state, tokens, jobs.clone(), shutdown.clone());
    let served = connections::serve(listener, app, tls.clone(), max_connections, metrics, shutdown.clone());
    let renewed = async {
        if let Some(tls) = tls {
            tls.keep(shutdown).await;
        }
    };
    let (served, (), ()) = tokio::join!(served, renewed, kept);
    jobs.ended().await;
    served
}

fn app(state: AdminState, tokens: Tokens, jobs: Jobs, shutdown: CancellationToken) -> Router {
    let AdminState { operator, backlog, tokens: _, metrics, history, config } = state;
    let mut hosts = config.admin.hosts.clone();
    hosts.extend(names::of_url(&config.admin.url));
    let names = Names::new(hosts, tokens.are_needed());
    let (has_tls, behind_proxy) = (config.admin.tls.is_some(), config.admin.behind_proxy);
    let health = Gatherer { operator: operator.clone(), backlog: backlog.clone(), history, shutdown: shutdown.clone() };
    let pages = page::routes(page::Ground { health: health.clone(), metrics: metrics.clone(), config });
    let sign_in = Router::new()
        .route(page::SIGN_IN, get(session::ask).post(session::begin))
        .route(page::SIGN_OUT, post(session::end))
        .layer(from_fn(page::guarded));
    let (router, document) = document::routes().split_for_parts();
    let document = Document::of(document);
    let state = Arc::new(Inner {
        operator,
        backlog,
        tokens,
        names,
        guesses: Guesses::default(),
        metrics,
        health,
        shutdown,
        document,
        jobs,
        has_tls,
        behind_proxy,
    });
    router
        .merge(pages)
        .merge(sign_in)
        .method_not_allowed_fallback(no_method)
        .fallback(no_route)
        .layer(DefaultBodyLimit::max(limits::BODY))
        .layer(from_fn(limits::in_time))
        .layer(from_fn(limits::with_whole_body))
        .layer(from_fn_with_state(state.clone(), auth::authenticate))
        .layer(from_fn(limits::not_too_many))
        .layer(from_fn(with_headers))
        .layer(CatchPanicLayer::custom(panicked))
        // What failed is told by whoever answers so, in its own words; 503 while the process starts is no failure.
        .layer(TraceLayer::new_for_http().on_failure(DefaultOnFailure::new().level(tracing::Level::DEBUG)))
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

/// What every answer has.
async fn with_headers(request: Request, next: Next) -> Response {
    let is_ambiguous = request.headers().contains_key(header::TRANSFER_ENCODING);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    // A proxy may have taken a body with two lengths to end elsewhere: whatever follows is not taken for a request.
    if is_ambiguous {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
