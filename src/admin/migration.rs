//! The handlers about the migration around the relay: capture, first copy, verification, repair.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::Inner;
use super::auth::Caller;
use super::problem::Problem;
use super::request::{Because, Body, Paging, RepairRows, ResyncRows, StartCopies, StartCopy, StartVerify, words};
use super::routes::{Answer, Id, Pairs, Shared, Who, query};
use crate::job::{Via, Who as Asking};
use crate::migration::{self, Migration, MigrationError, Page, ReportPage, Started, Work};
use crate::plan::Plan;
use crate::redact::Sight;
use crate::relay;
use crate::target::{Copied, History, Job, JobId, RepairedRow, ReportId};

/// How far copies have come.
#[derive(Serialize, ToSchema)]
pub(super) struct Copies {
    /// The first that began first.
    items: Vec<Copied>,
}

/// Verifications.
#[derive(Serialize, ToSchema)]
pub(super) struct Reports {
    /// Newest first.
    items: Vec<History>,
    /// For the next page.
    next_cursor: Option<String>,
}

/// Rows that were repaired.
#[derive(Serialize, ToSchema)]
pub(super) struct Repairs {
    /// Newest first.
    items: Vec<RepairedRow>,
    /// For the next page.
    next_cursor: Option<String>,
}

/// Copies, verifications and repairs.
#[derive(Serialize, ToSchema)]
pub(super) struct Jobs {
    /// Newest first.
    items: Vec<Job>,
    /// For the next page.
    next_cursor: Option<String>,
}

/// What came of starting or stopping work.
#[derive(Serialize, ToSchema)]
pub(super) struct Asked {
    /// False: it was so already; of starting: somebody does the same already (however fast, and whyever), and this is their job.
    changed: bool,
    /// The job.
    job: Job,
}

/// What came of a copy's pause, or its end.
#[derive(Serialize, ToSchema)]
pub(super) struct Rested {
    /// False: it was so already.
    changed: bool,
    /// The copy.
    copy: Copied,
}

/// An entity.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "documents what is taken apart by hand")]
pub(super) struct Named {
    /// Its name.
    entity: String,
}

/// The number of a report, or of a job.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "documents what is taken apart by hand")]
pub(super) struct Number {
    /// Its number.
    #[param(minimum = 1)]
    id: i64,
}

/// Which repaired rows.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what is taken apart by hand, to refuse unknown words and repeated ones")]
pub(super) struct OfEntity {
    /// Only this entity's.
    entity: Option<String>,
}

/// The relay of this process, and what the caller may see.
pub(super) fn ground<'s>(state: &'s Inner, who: &Caller) -> Result<(&'s Arc<relay::Shared>, Sight), Problem> {
    let relay = state.operator.relay().ok_or_else(Problem::starting)?;
    Ok((relay, state.operator.seen_by(who.role()).sight().clone()))
}

pub(super) fn number(id: Id) -> Result<i64, Problem> {
    let said = id.map_err(|rejection| Problem::malformed(rejection.body_text()))?;
    said.0.parse().map_err(|_| Problem::malformed("the address ends with a number"))
}

/// A list's page, and an entity's name where that is taken.
fn page(pairs: Pairs, with_entity: bool) -> Result<(Page, Option<String>), Problem> {
    let mut said = words(query(pairs)?)?;
    let entity = if with_entity { said.remove("entity") } else { None };
    let page = super::request::page(said.into_iter().collect(), false)?;
    Ok((Page { cursor: page.cursor, limit: page.limit }, entity))
}

/// How far the migration has come: of each entity its capture, first copy, last verification and last repair; and what is under way.
#[utoipa::path(get, path = "/v1/migration", responses((status = OK, body = Migration)))]
pub(super) async fn migration(State(state): Shared, Extension(who): Who) -> Answer<Migration> {
    let (relay, sight) = ground(&state, &who)?;
    Ok(Json(migration::state(relay, &sight).await.map_err(|error| Problem::target(&error))?))
}

/// What the split does to foreign keys, and in which order to fill the new tables.
///
/// Both catalogs are read, and nothing is changed. Rows that refer to nothing are looked for by the command alone: that reads whole tables.
#[utoipa::path(get, path = "/v1/migration/plan", responses((status = OK, body = Plan)))]
pub(super) async fn plan(State(state): Shared) -> Answer<Plan> {
    let relay = state.operator.relay().ok_or_else(Problem::starting)?;
    Ok(Json(migration::plan(relay).await?))
}

/// How far the first copies of whole tables have come, whoever makes them.
#[utoipa::path(get, path = "/v1/backfill", responses((status = OK, body = Copies)))]
pub(super) async fn copies(State(state): Shared) -> Answer<Copies> {
    let relay = state.operator.relay().ok_or_else(Problem::starting)?;
    let items = relay.target.copies().await.map_err(|error| Problem::target(&error))?;
    Ok(Json(Copies { items }))
}

/// Verifications that were made, or are under way.
#[utoipa::path(get, path = "/v1/verify/reports", params(Paging), responses((status = OK, body = Reports)))]
pub(super) async fn reports(State(state): Shared, Extension(who): Who, pairs: Pairs) -> Answer<Reports> {
    let (page, _) = page(pairs, false)?;
    let (relay, _) = ground(&state, &who)?;
    let read = migration::reports(&relay.target, page).await;
    let (items, next_cursor) = read.map_err(|error| Problem::target(&error))?;
    Ok(Json(Reports { items, next_cursor }))
}

/// One verification: what it says of each entity, and what differs, in the order in which it was found.
#[utoipa::path(
    get,
    path = "/v1/verify/reports/{id}",
    params(Number, Paging),
    responses((status = OK, body = ReportPage))
)]
pub(super) async fn report(State(state): Shared, Extension(who): Who, id: Id, pairs: Pairs) -> Answer<ReportPage> {
    let (id, (page, _)) = (number(id)?, page(pairs, false)?);
    let (relay, sight) = ground(&state, &who)?;
    let read = migration::report(&relay.target, &relay.entities(), ReportId(id), page, &sight).await;
    let found = read.map_err(|error| Problem::target(&error))?;
    found.map(Json).ok_or_else(|| Problem::nothing(format!("there is no report {id}")))
}

/// Rows of the new database that repair and resync changed: before, after, by whom and why.
#[utoipa::path(get, path = "/v1/repairs", params(OfEntity, Paging), responses((status = OK, body = Repairs)))]
pub(super) async fn repairs(State(state): Shared, Extension(who): Who, pairs: Pairs) -> Answer<Repairs> {
    let (page, entity) = page(pairs, true)?;
    let (relay, sight) = ground(&state, &who)?;
    let read = migration::repairs(&relay.target, &relay.entities(), entity.as_deref(), page, &sight).await;
    let (items, next_cursor) = read.map_err(|error| Problem::target(&error))?;
    Ok(Json(Repairs { items, next_cursor }))
}

/// Copies, verifications and repairs, whoever does them.
#[utoipa::path(get, path = "/v1/jobs", params(Paging), responses((status = OK, body = Jobs)))]
pub(super) async fn jobs(State(state): Shared, Extension(who): Who, pairs: Pairs) -> Answer<Jobs> {
    let (page, _) = page(pairs, false)?;
    let (relay, sight) = ground(&state, &who)?;
    let read = migration::jobs(relay, page, &sight).await;
    let (items, next_cursor) = read.map_err(|error| Problem::target(&error))?;
    Ok(Json(Jobs { items, next_cursor }))
}

/// One of them: how far it is, or what came of it.
#[utoipa::path(get, path = "/v1/jobs/{id}", params(Number), responses((status = OK, body = Job)))]
pub(super) async fn job(State(state): Shared, Extension(who): Who, id: Id) -> Answer<Job> {
    let id = number(id)?;
    let (relay, sight) = ground(&state, &who)?;
    let found = migration::job(relay, JobId(id), &sight).await.map_err(|error| Problem::target(&error))?;
    found.map(Json).ok_or_else(|| Problem::nothing(format!("there is no job {id}")))
}

/// Copies several entities, or all, one after the other, those first to which others refer; or goes on with them, in this process. Lifts a
/// pause of any of them.
///
/// 200 if it ended within some seconds, else 202: how it goes on is told by `GET /v1/jobs/{id}`. If somebody does the same already, their
/// job is the answer; if somebody copies any of them otherwise (another `restart`, other entities besides), it is 409 with the code
/// `other_work`, and nothing was changed.
#[utoipa::path(
    post,
    path = "/v1/backfill",
    request_body = StartCopies,
    responses((status = OK, body = Asked), (status = ACCEPTED, body = Asked))
)]
pub(super) async fn start_copies(
    State(state): Shared,
    Extension(who): Who,
    Body(body): Body<StartCopies>,
) -> Result<Response, Problem> {
    let asking = asking(&who, body.reason.as_deref())?;
    start(&state, &who, body.work()?, asking).await
}

/// Copies an entity, or goes on with it, in this process; lifts a pause of it.
///
/// 200 if it ended within some seconds, else 202: how it goes on is told by `GET /v1/jobs/{id}`. If somebody does the same already, their
/// job is the answer, and a pause of it is lifted; if somebody copies it otherwise (another `restart`, other entities besides), it is 409
/// with the code `other_work`, and nothing was changed.
#[utoipa::path(
    post,
    path = "/v1/backfill/{entity}/start",
    params(Named),
    request_body = StartCopy,
    responses((status = OK, body = Asked), (status = ACCEPTED, body = Asked))
)]
pub(super) async fn start_copy(
    State(state): Shared,
    Extension(who): Who,
    entity: Id,
    Body(body): Body<StartCopy>,
) -> Result<Response, Problem> {
    let asking = asking(&who, body.reason.as_deref())?;
    let entity = entity_named(&state, entity)?;
    start(&state, &who, body.work(entity)?, asking).await
}

/// Lets the copy of an entity rest, whoever makes it, until it is resumed or started.
#[utoipa::path(
    post,
    path = "/v1/backfill/{entity}/pause",
    params(Named),
    request_body = Because,
    responses((status = OK, body = Rested))
)]
pub(super) async fn pause_copy(
    State(state): Shared,
    Extension(who): Who,
    entity: Id,
    Body(body): Body<Because>,
) -> Answer<Rested> {
    rest(&state, &who, entity, &body, true).await
}

/// Lets the copy of an entity go on, whoever makes it. Starts none.
#[utoipa::path(
    post,
    path = "/v1/backfill/{entity}/resume",
    params(Named),
    request_body = Because,
    responses((status = OK, body = Rested))
)]
pub(super) async fn resume_copy(
    State(state): Shared,
    Extension(who): Who,
    entity: Id,
    Body(body): Body<Because>,
) -> Answer<Rested> {
    rest(&state, &who, entity, &body, false).await
}

async fn rest(state: &Inner, who: &Caller, entity: Id, body: &Because, rest: bool) -> Answer<Rested> {
    let asking = asking(who, body.reason.as_deref())?;
    let entity = entity_named(state, entity)?;
    let (relay, _) = ground(state, who)?;
    let (changed, copy) = migration::pause_copy(relay, &entity, rest, &asking).await?;
    Ok(Json(Rested { changed, copy }))
}

/// Compares both databases through the mapping, in this process.
///
/// 200 if it ended within some seconds, else 202: how it goes on is told by `GET /v1/jobs/{id}`. It changes nothing, so a reason is not
/// needed. If somebody does the same already, their job is the answer; another verification of one of these entities is 409 with the
/// code `other_work`.
#[utoipa::path(
    post,
    path = "/v1/verify",
    request_body = StartVerify,
    responses((status = OK, body = Asked), (status = ACCEPTED, body = Asked))
)]
pub(super) async fn start_verify(
    State(state): Shared,
    Extension(who): Who,
    Body(body): Body<StartVerify>,
) -> Result<Response, Problem> {
    let asking = looking(&who, body.reason.as_deref());
    start(&state, &who, body.work()?, asking).await
}

/// Makes right what a verification found, from the legacy database; as a dry run, unless told otherwise: `"dry_run": false`.
///
/// 200 if it ended within some seconds, else 202: how it goes on is told by `GET /v1/jobs/{id}`. If somebody does the same
/// already, their job is the answer; while other rows of one of these entities are repaired or resynced, it is 409 with the code
/// `other_work`.
#[utoipa::path(
    post,
    path = "/v1/repair",
    request_body = RepairRows,
    responses((status = OK, body = Asked), (status = ACCEPTED, body = Asked))
)]
pub(super) async fn repair(
    State(state): Shared,
    Extension(who): Who,
    Body(body): Body<RepairRows>,
) -> Result<Response, Problem> {
    let asking = acting(&who, body.applies(), body.reason.as_deref())?;
    start(&state, &who, body.work()?, asking).await
}

/// Writes rows of the new database anew from the legacy one; as a dry run, unless told otherwise: `"dry_run": false`.
///
/// 200 if it ended within some seconds, else 202: how it goes on is told by `GET /v1/jobs/{id}`. If somebody does the same
/// already, their job is the answer; while other rows of one of these entities are repaired or resynced, it is 409 with the code
/// `other_work`.
#[utoipa::path(
    post,
    path = "/v1/resync",
    request_body = ResyncRows,
    responses((status = OK, body = Asked), (status = ACCEPTED, body = Asked))
)]
pub(super) async fn resync(
    State(state): Shared,
    Extension(who): Who,
    Body(body): Body<ResyncRows>,
) -> Result<Response, Problem> {
    let asking = acting(&who, body.applies(), body.reason.as_deref())?;
    start(&state, &who, body.work()?, asking).await
}

/// Asks for the end of a copy, a verification or a repair, whoever does it: it ends within seconds, where it can go on from.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/stop",
    params(Number),
    request_body = Because,
    responses((status = OK, body = Asked))
)]
pub(super) async fn stop_job(
    State(state): Shared,
    Extension(who): Who,
    id: Id,
    Body(body): Body<Because>,
) -> Answer<Asked> {
    let asking = asking(&who, body.reason.as_deref())?;
    let id = number(id)?;
    let (relay, sight) = ground(&state, &who)?;
    let (changed, job) = migration::stop_job(relay, JobId(id), &asking, &sight).await?;
    Ok(Json(Asked { changed, job }))
}

async fn start(state: &Inner, who: &Caller, work: Work, asking: Asking) -> Result<Response, Problem> {
    let (relay, sight) = ground(state, who)?;
    let Started { job: id, began } = state.jobs.start(relay, work, asking).await?;
    let job = migration::job(relay, id, &sight).await.map_err(|error| Problem::target(&error))?;
    let job = job.ok_or_else(|| Problem::nothing(format!("there is no job {} any more", id.0)))?;
    if began && job.code.as_deref() == Some("not_as_expected") {
        return Err(Problem::new(StatusCode::CONFLICT, "not_as_expected", job.message.unwrap_or_default()));
    }
    let status = if job.ended_at.is_some() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(Asked { changed: began, job })).into_response())
}

fn entity_named(state: &Inner, entity: Id) -> Result<String, Problem> {
    let Path(entity) = entity.map_err(|rejection| Problem::malformed(rejection.body_text()))?;
    let relay = state.operator.relay().ok_or_else(Problem::starting)?;
    let known = relay.entities().iter().any(|known| known.name == entity);
    if known { Ok(entity) } else { Err(Problem::nothing(MigrationError::NoEntity(entity).to_string())) }
}

fn asking(who: &Caller, reason: Option<&str>) -> Result<Asking, Problem> {
    let by = who.by(reason)?;
    Ok(Asking { actor: by.actor, reason: by.reason, via: Via::Api })
}

/// Nothing to be explained where nothing is changed.
fn looking(who: &Caller, reason: Option<&str>) -> Asking {
    Asking { actor: who.actor(), reason: reason.unwrap_or_default().trim().to_owned(), via: Via::Api }
}

fn acting(who: &Caller, applies: bool, reason: Option<&str>) -> Result<Asking, Problem> {
    if applies { asking(who, reason) } else { Ok(looking(who, reason)) }
}
