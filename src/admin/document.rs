//! The API's own description: OpenAPI 3.1, made of the handlers and types that serve it.
//!
//! Guarantees: a route of the API is documented and a documented route is served, for both come from [`routes()`]; every
//! operation lists the errors that it can answer.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi as Api, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Inner, browse, health, migration, problem, routes};

/// All that is served.
pub(super) fn routes() -> OpenApiRouter<Arc<Inner>> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(routes::metrics))
        .routes(routes!(routes::backlog))
        .routes(routes!(routes::events))
        .routes(routes!(routes::event))
        .routes(routes!(routes::replay))
        .routes(routes!(routes::skip))
        .routes(routes!(routes::replay_many))
        .routes(routes!(routes::skip_many))
        .routes(routes!(routes::failures))
        .routes(routes!(routes::paused, routes::pause))
        .routes(routes!(routes::resume))
        .routes(routes!(routes::audits))
        .routes(routes!(migration::migration))
        .routes(routes!(migration::plan))
        .routes(routes!(migration::copies, migration::start_copies))
        .routes(routes!(migration::reports))
        .routes(routes!(migration::report))
        .routes(routes!(migration::repairs))
        .routes(routes!(migration::jobs))
        .routes(routes!(migration::job))
        .routes(routes!(migration::stop_job))
        .routes(routes!(migration::start_copy))
        .routes(routes!(migration::pause_copy))
        .routes(routes!(migration::resume_copy))
        .routes(routes!(migration::start_verify))
        .routes(routes!(migration::repair))
        .routes(routes!(migration::resync))
        .routes(routes!(document))
        .routes(routes!(browse::page))
        .routes(routes!(browse::style))
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "outbox-relay",
        description = "What operators see and do. Every error is a problem document (RFC 9457); every change takes a reason, and is kept in the audit table; repeating a call is harmless."
    ),
    components(schemas(problem::Document)),
    security(("token" = [])),
)]
struct Description;

/// What the handlers' own descriptions leave out because it is the same for many.
struct Common;

impl Modify for Common {
    fn modify(&self, api: &mut Api) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
            "A token of the configuration. A reading one may call what begins with GET, an admin's everything. \
             Where no tokens are configured, none is needed, and only this machine is served.",
        ));
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme.build()));
        for (path, item) in &mut api.paths.paths {
            let PathItem { get, post, .. } = item;
            for operation in get.iter_mut().chain(post) {
                add_problems(path, operation);
            }
        }
    }
}

/// The errors that an operation can answer: those of its kind, and those of all.
fn add_problems(path: &str, operation: &mut Operation) {
    let is_open = operation.security.is_some();
    let takes_body = operation.request_body.is_some();
    let takes_words = takes_body || operation.parameters.is_some();
    let names_one = path.contains('{');
    let may_conflict = takes_body && !matches!(path, "/v1/pause" | "/v1/resume");
    let names_one = names_one || path == "/v1/repair";
    let problems = [
        (takes_words, 400, "malformed"),
        (!is_open, 401, "a token is needed, and this is none"),
        (
            true,
            403,
            "the token may read, not change; or a page of another site sent it, or it is addressed to another name",
        ),
        (takes_body, 408, "the body did not come within 20 s"),
        (names_one, 404, "there is no such event, report, job or entity"),
        (may_conflict, 409, "as things stand, it must not be done"),
        (takes_body, 413, "the body is larger than 1 MiB"),
        (takes_body, 415, "the body is not application/json"),
        (takes_words, 422, "a filter that nobody knows or that is too broad, or a reason is missing"),
        (!is_open, 429, "too many tokens that are not known came from this address"),
        (true, 500, "a bug, or an error of the database"),
        (true, 503, "starting, stopping, busy, or the database is away: repeat the call"),
    ];
    for (_, status, description) in problems.into_iter().filter(|(answers, ..)| *answers) {
        let document = ContentBuilder::new().schema(Some(RefOr::Ref(Ref::from_schema_name("Problem")))).build();
        let response =
            ResponseBuilder::new().description(description).content("application/problem+json", document).build();
        operation.responses.responses.entry(status.to_string()).or_insert(RefOr::T(response));
    }
}

/// The API's description: OpenAPI 3.1, as `GET /v1/openapi.json` answers it.
pub fn openapi() -> Value {
    complete(routes().into_openapi())
}

fn complete(mut api: Api) -> Value {
    Common.modify(&mut api);
    serde_json::to_value(&api).unwrap_or_default()
}

/// The document as it is served, and as a page.
pub(super) struct Document {
    json: Bytes,
    pub(super) page: Bytes,
}

impl Document {
    /// Completes what the handlers say.
    pub(super) fn of(api: Api) -> Document {
        let json = complete(api);
        Document { page: browse::render(&json).into(), json: json.to_string().into() }
    }
}

/// This document.
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    security((), ("token" = [])),
    responses((status = OK, body = serde_json::Value))
)]
pub(super) async fn document(State(state): State<Arc<Inner>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], state.document.json.clone()).into_response()
}
