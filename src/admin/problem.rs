//! Every error of the API, as RFC 9457 problem details: `code` is stable, `detail` is for people.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::backfill::BackfillError;
use crate::migration::MigrationError;
use crate::operator::OperatorError;
use crate::verify::VerifyError;
use crate::{connect, disposition};

/// An error on its way to the caller.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    status: StatusCode,
    code: String,
    detail: String,
    counts: Box<Counts>,
    challenge: Option<&'static str>,
    retry_after: Option<u64>,
}

/// What a call for many events counted before it came to nothing, or to an early end.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
struct Counts {
    /// `not_as_expected`: how many events the caller expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<u64>,
    /// `not_as_expected`, `unfinished`: how many matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    matched: Option<u64>,
    /// `unfinished`: how many were changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<u64>,
}

/// Why a call came to nothing (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Document<'a> {
    /// `urn:outbox-relay:problem:` and the code.
    r#type: String,
    /// What the status says.
    title: &'static str,
    /// The status.
    status: u16,
    /// For programs: stable, and listed in docs/operations.md.
    code: &'a str,
    /// For people.
    detail: &'a str,
    #[serde(flatten)]
    counts: Counts,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: impl Into<String>, detail: impl Into<String>) -> Problem {
        let (code, detail) = (code.into(), detail.into());
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(5);
        Problem { status, code, detail, counts: Box::default(), challenge: None, retry_after }
    }

    pub(super) fn malformed(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "malformed", detail)
    }

    pub(super) fn unprocessable(code: &str, detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    pub(super) fn stopping() -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the relay is shutting down: repeat the call")
    }

    pub(super) fn starting() -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "starting", "the relay waits for its databases: repeat the call")
    }

    /// There is none of that name or number.
    pub(super) fn nothing(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// The new database was away, or said no.
    pub(super) fn target(error: &sqlx::Error) -> Problem {
        if connect::is_undefined(error) {
            let detail = "the new database does not have the tables of this version yet: run outbox-relay init";
            return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "init_needed", detail);
        }
        // A character that this database's encoding does not have: what was asked for cannot be in there.
        if matches!(disposition::said(error).code.as_str(), "22021" | "22P05") {
            return Problem::malformed(disposition::told(error));
        }
        let detail = format!("the new database: {}", disposition::told(error));
        tracing::warn!(error = %detail, "an operator's call could not be answered by the new database");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "database_away", detail)
    }

    /// 401 with the challenge that the standard asks for.
    pub(super) fn unauthorized(presented: bool) -> Problem {
        let detail = if presented { "this token is not known" } else { "a token is needed: Authorization: Bearer …" };
        let mut problem = Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
        problem.challenge = Some(match presented {
            true => "Bearer realm=\"outbox-relay\", error=\"invalid_token\"",
            false => "Bearer realm=\"outbox-relay\"",
        });
        problem
    }

    /// Tokens that are not known were presented too often; again after this many seconds.
    pub(super) fn too_many_guesses(seconds: u64) -> Problem {
        let detail = "too many tokens that are not known came from this address: none is looked at for now";
        let mut problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_guesses", detail);
        problem.retry_after = Some(seconds);
        problem
    }

    fn counted(mut self, expected: Option<u64>, matched: u64, changed: Option<u64>) -> Problem {
        *self.counts = Counts { expected, matched: Some(matched), changed };
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = Document {
            r#type: format!("urn:outbox-relay:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            code: &self.code,
            detail: &self.detail,
            counts: *self.counts,
        };
        let mut response = (self.status, Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(challenge) = self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<OperatorError> for Problem {
    fn from(error: OperatorError) -> Problem {
        let detail = error.to_string();
        match error {
            OperatorError::NotFound(_) => Problem::new(StatusCode::NOT_FOUND, "not_found", detail),
            OperatorError::Refused { code, .. } => Problem::new(StatusCode::CONFLICT, code, detail),
            OperatorError::NotAsExpected { expected, matched } => {
                let problem = Problem::new(StatusCode::CONFLICT, "not_as_expected", detail);
                problem.counted(Some(expected), matched, None)
            }
            OperatorError::Invalid { code, .. } => Problem::unprocessable(code, detail),
            OperatorError::Busy(_) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail),
            OperatorError::NotCounted => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_counted", detail),
            OperatorError::Unfinished { matched, changed, .. } => {
                let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unfinished", detail);
                problem.counted(None, matched, Some(changed))
            }
            // A character that this database's encoding does not have: what was asked for cannot be in there.
            OperatorError::Database(ref inner)
                if matches!(disposition::said(inner).code.as_str(), "22021" | "22P05") =>
            {
                Problem::malformed(detail)
            }
            OperatorError::Database(ref inner) if disposition::is_transient(inner) => {
                tracing::warn!(error = %detail, "an operator's call could not reach the legacy database");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "database_away", detail)
            }
            OperatorError::Database(_) => {
                tracing::error!(error = %detail, "an operator's call failed");
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "database", detail)
            }
        }
    }
}

impl From<MigrationError> for Problem {
    fn from(error: MigrationError) -> Problem {
        let detail = error.to_string();
        match error {
            MigrationError::NoEntity(_) => Problem::unprocessable("entity.unknown", detail),
            MigrationError::NoLegacy(_) => Problem::unprocessable("entity.no_legacy", detail),
            MigrationError::Keys { .. } => Problem::unprocessable("resync.keys", detail),
            MigrationError::NoReport(_) | MigrationError::NoJob(_) => Problem::nothing(detail),
            MigrationError::NotBegun(_) => Problem::new(StatusCode::CONFLICT, "not_begun", detail),
            MigrationError::OtherWork(_) => Problem::new(StatusCode::CONFLICT, "other_work", detail),
            MigrationError::TooMany(_) => Problem::new(StatusCode::CONFLICT, "too_many_jobs", detail),
            MigrationError::Source(inner)
            | MigrationError::Backfill(BackfillError::Database { side: "legacy", error: inner }) => {
                OperatorError::Database(inner).into()
            }
            MigrationError::Target(inner) | MigrationError::Backfill(BackfillError::Database { error: inner, .. }) => {
                Problem::target(&inner)
            }
            MigrationError::Verify(VerifyError::NoEntity(_)) | MigrationError::Backfill(BackfillError::Refused(_)) => {
                Problem::unprocessable("entity.no_legacy", detail)
            }
            MigrationError::Backfill(_) | MigrationError::Verify(_) => {
                Problem::new(StatusCode::CONFLICT, "migration", detail)
            }
        }
    }
}
