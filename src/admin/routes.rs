//! The handlers: a request in, the operator's answer out.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::Inner;
use super::auth::Caller;
use super::problem::Problem;
use super::request::{Body, Kind, Many, One, page};
use crate::event::EventId;
use crate::metrics::CONTENT_TYPE;
use crate::operator::{Audits, Backlog, BulkResult, Changed, Event, EventRef, Events, Verb, What};

type Answer<T> = Result<Json<T>, Problem>;
type Id = Result<Path<String>, PathRejection>;
type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;
type Who = Extension<Caller>;
type Shared = State<Arc<Inner>>;

pub(super) async fn metrics(State(state): Shared) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], state.metrics.encode()).into_response()
}

pub(super) async fn backlog(State(state): Shared) -> Answer<Backlog> {
    let sample = state.backlog.get().await?;
    Ok(Json(Backlog::clone(&sample)))
}

pub(super) async fn events(State(state): Shared, pairs: Pairs) -> Answer<Events> {
    let page = page(query(pairs)?, true)?;
    Ok(Json(state.operator.events(&page.filter, page.limit, page.cursor.map(EventId)).await?))
}

pub(super) async fn event(State(state): Shared, id: Id) -> Answer<Event> {
    Ok(Json(state.operator.event(&named(id)?).await?))
}

pub(super) async fn failures(State(state): Shared) -> Answer<Value> {
    let items = state.operator.failures().await?;
    Ok(Json(json!({"items": items})))
}

pub(super) async fn replay(
    State(state): Shared,
    Extension(who): Who,
    id: Id,
    Body(body): Body<One>,
) -> Answer<Changed> {
    let by = who.by(body.reason.as_deref())?;
    Ok(Json(state.operator.replay(&named(id)?, body.force, &by).await?))
}

pub(super) async fn skip(State(state): Shared, Extension(who): Who, id: Id, Body(body): Body<One>) -> Answer<Changed> {
    let by = who.by(body.reason.as_deref())?;
    if body.force {
        return Err(Problem::malformed("force: a skip does not know it"));
    }
    Ok(Json(state.operator.skip(&named(id)?, &by).await?))
}

pub(super) async fn replay_many(
    State(state): Shared,
    Extension(who): Who,
    Body(body): Body<Many>,
) -> Answer<BulkResult> {
    many(&state, &who, Verb::Replay, &body).await
}

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

pub(super) async fn paused(State(state): Shared) -> Answer<Value> {
    let paused = state.operator.paused().await?;
    Ok(Json(json!({"paused": paused})))
}

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

pub(super) async fn resume(State(state): Shared, Extension(who): Who, Body(body): Body<Kind>) -> Answer<Value> {
    let by = who.by(body.reason.as_deref())?;
    let done = state.operator.resume(&what(body)?, &by).await?;
    Ok(Json(json!({"changed": done.changed, "paused": done.paused})))
}

pub(super) async fn audits(State(state): Shared, pairs: Pairs) -> Answer<Audits> {
    let page = page(query(pairs)?, false)?;
    Ok(Json(state.operator.audits(page.limit, page.cursor).await?))
}

fn query(pairs: Pairs) -> Result<Vec<(String, String)>, Problem> {
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
