//! The handlers: a request in, the operator's answer out.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use super::Inner;
use super::auth::Caller;
use super::problem::Problem;
use super::request::{Body, Kind, Many, Paging, Replay, Skip, page};
use crate::event::EventId;
use crate::metrics::CONTENT_TYPE;
use crate::operator::{
    Audits, Backlog, BulkResult, Cause, Changed, Event, EventRef, Events, Filter, Pause, Paused, Verb, What,
};

pub(super) type Answer<T> = Result<Json<T>, Problem>;
pub(super) type Id = Result<Path<String>, PathRejection>;
pub(super) type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;
pub(super) type Who = Extension<Caller>;
pub(super) type Shared = State<Arc<Inner>>;

/// Why events fail.
#[derive(Serialize, ToSchema)]
pub(super) struct Failures {
    /// The most frequent first.
    items: Vec<Cause>,
}

/// What does not flow because somebody said so.
#[derive(Serialize, ToSchema)]
pub(super) struct Pauses {
    /// All that is paused now.
    paused: Vec<Paused>,
}

/// What a resumption did.
#[derive(Serialize, ToSchema)]
pub(super) struct Resumed {
    /// False: it flowed already.
    changed: bool,
    /// All that is still paused.
    paused: Vec<Paused>,
}

/// What the relay counts and measures, for Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = OK, body = String, content_type = CONTENT_TYPE)))]
pub(super) async fn metrics(State(state): Shared) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], state.metrics.encode()).into_response()
}

/// How many events wait, and for what; as of a moment ago.
#[utoipa::path(get, path = "/v1/backlog", responses((status = OK, body = Backlog)))]
pub(super) async fn backlog(State(state): Shared) -> Answer<Backlog> {
    let sample = state.backlog.get().await?;
    Ok(Json(Backlog::clone(&sample)))
}

/// Events, oldest first.
#[utoipa::path(get, path = "/v1/events", params(Filter, Paging), responses((status = OK, body = Events)))]
pub(super) async fn events(State(state): Shared, Extension(who): Who, pairs: Pairs) -> Answer<Events> {
    let page = page(query(pairs)?, true)?;
    Ok(Json(state.operator.seen_by(who.role()).events(&page.filter, page.limit, page.cursor.map(EventId)).await?))
}

/// One event, with its payload, its error and the history of its attempts.
#[utoipa::path(get, path = "/v1/events/{id}", params(EventRef), responses((status = OK, body = Event)))]
pub(super) async fn event(State(state): Shared, Extension(who): Who, id: Id) -> Answer<Event> {
    Ok(Json(state.operator.seen_by(who.role()).event(&named(id)?).await?))
}

/// Why events fail: the causes of what is in retry or failed now.
#[utoipa::path(get, path = "/v1/failures", responses((status = OK, body = Failures)))]
pub(super) async fn failures(State(state): Shared, Extension(who): Who) -> Answer<Failures> {
    let items = state.operator.seen_by(who.role()).failures().await?;
    Ok(Json(Failures { items }))
}

/// Tries one event again as if it had never been tried: a failed one, one in retry, a skipped one.
///
/// Answers the event as it is then. What is pending already is left as it is.
#[utoipa::path(
    post,
    path = "/v1/events/{id}/replay",
    params(EventRef),
    request_body = Replay,
    responses((status = OK, body = Changed))
)]
pub(super) async fn replay(
    State(state): Shared,
    Extension(who): Who,
    id: Id,
    Body(body): Body<Replay>,
) -> Answer<Changed> {
    let by = who.by(body.reason.as_deref())?;
    Ok(Json(state.operator.seen_by(who.role()).replay(&named(id)?, body.force, &by).await?))
}

/// Passes over one event that fails; those held behind it go on.
#[utoipa::path(
    post,
    path = "/v1/events/{id}/skip",
    params(EventRef),
    request_body = Skip,
    responses((status = OK, body = Changed))
)]
pub(super) async fn skip(State(state): Shared, Extension(who): Who, id: Id, Body(body): Body<Skip>) -> Answer<Changed> {
    let by = who.by(body.reason.as_deref())?;
    Ok(Json(state.operator.seen_by(who.role()).skip(&named(id)?, &by).await?))
}

/// Replays all that match: failed and retry events, and skipped ones where the filter's status says so.
///
/// Lane by lane, in short transactions: a call that ended early is repeated.
#[utoipa::path(post, path = "/v1/events/replay", request_body = Many, responses((status = OK, body = BulkResult)))]
pub(super) async fn replay_many(
    State(state): Shared,
    Extension(who): Who,
    Body(body): Body<Many>,
) -> Answer<BulkResult> {
    many(&state, &who, Verb::Replay, &body).await
}

/// Skips all that match: failed and retry events.
///
/// Lane by lane, in short transactions: a call that ended early is repeated.
#[utoipa::path(post, path = "/v1/events/skip", request_body = Many, responses((status = OK, body = BulkResult)))]
pub(super) async fn skip_many(State(state): Shared, Extension(who): Who, Body(body): Body<Many>) -> Answer<BulkResult> {
    many(&state, &who, Verb::Skip, &body).await
}

async fn many(state: &Inner, who: &Caller, verb: Verb, body: &Many) -> Answer<BulkResult> {
    let bulk = body.bulk()?;
    // Nothing to be explained where nothing is changed.
    let reason = if bulk.dry_run { Some("dry run") } else { body.reason.as_deref() };
    let by = who.by(reason)?;
    Ok(Json(state.operator.bulk(verb, &bulk, &by, &state.shutdown).await?))
}

/// What is paused.
#[utoipa::path(get, path = "/v1/pause", responses((status = OK, body = Pauses)))]
pub(super) async fn paused(State(state): Shared) -> Answer<Pauses> {
    let paused = state.operator.paused().await?;
    Ok(Json(Pauses { paused }))
}

/// Pauses an aggregate type, or everything, for every instance and across restarts.
///
/// Answers when no batch of the kind is in flight any more; 202 if one still is after longer than a batch may take: it is
/// paused then as well, and the same call again waits again.
#[utoipa::path(
    post,
    path = "/v1/pause",
    request_body = Kind,
    responses((status = OK, body = Pause), (status = ACCEPTED, body = Pause))
)]

pub(super) async fn pause(
    State(state): Shared,
    Extension(who): Who,
    Body(body): Body<Kind>,
) -> Result<Response, Problem> {
    let by = who.by(body.reason.as_deref())?;
    let what = what(body)?;
    let done = tokio::select! {
        () = state.shutdown.cancelled() => return Err(Problem::stopping()),
        done = state.operator.pause(&what, &by, None) => done?,
    };
    // It is paused, but a batch is still on its way: the same call again waits again.
    let status = if done.in_flight.is_empty() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(done)).into_response())
}

/// Lets flow again what was paused.
#[utoipa::path(post, path = "/v1/resume", request_body = Kind, responses((status = OK, body = Resumed)))]
pub(super) async fn resume(State(state): Shared, Extension(who): Who, Body(body): Body<Kind>) -> Answer<Resumed> {
    let by = who.by(body.reason.as_deref())?;
    let done = state.operator.resume(&what(body)?, &by).await?;
    Ok(Json(Resumed { changed: done.changed, paused: done.paused }))
}

/// What was done, by whom and why; newest first.
#[utoipa::path(get, path = "/v1/audit", params(Paging), responses((status = OK, body = Audits)))]
pub(super) async fn audits(State(state): Shared, pairs: Pairs) -> Answer<Audits> {
    let page = page(query(pairs)?, false)?;
    Ok(Json(state.operator.audits(page.limit, page.cursor).await?))
}

pub(super) fn query(pairs: Pairs) -> Result<Vec<(String, String)>, Problem> {
    pairs.map(|Query(pairs)| pairs).map_err(|rejection| Problem::malformed(rejection.body_text()))
}

fn named(id: Id) -> Result<EventRef, Problem> {
    let Path(id) = id.map_err(|rejection| Problem::malformed(rejection.body_text()))?;
    id.parse().map_err(Problem::malformed)
}

fn what(body: Kind) -> Result<What, Problem> {
    match body.aggregate_type {
        Some(_) if body.all => Err(Problem::malformed("either \"all\" or an \"aggregate_type\", not both")),
        Some(kind) if kind.is_empty() => Err(Problem::malformed("aggregate_type: it is empty")),
        Some(kind) => Ok(What::AggregateType(kind)),
        None => Ok(What::All),
    }
}
