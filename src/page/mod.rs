//! The operator's page: what the relay does, what fails and why, and what may be pressed, in a browser.
//!
//! Guarantees: every page says what is so without any script; a change needs a signed-in admin, a reason, and a form of this
//! very page; nothing is loaded from anywhere else, and nothing that events or databases say is ever taken for markup.
//! It stands on [`crate::operator`] and the relay's state, as the API does, and can do nothing that the API cannot.

mod actions;
mod assets;
mod audit;
mod charts;
mod checks;
mod event;
mod events;
mod failures;
mod lanes;
mod layout;
mod live;
mod migration;
mod overview;
mod sign_in;
mod snapshot;
mod words;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use tokio::sync::Semaphore;

use self::checks::Checks;
pub(crate) use self::sign_in::{OUT as SIGN_OUT, PATH as SIGN_IN, SignIn, sign_in_page};
use self::snapshot::Snapshots;
use crate::config::{Config, Role};
use crate::health::Gatherer;
use crate::metrics::Metrics;
use crate::operator::backlog::Latest;
use crate::operator::history::History;
use crate::operator::{Operator, OperatorError};

/// Whoever looks at a page; put into each request by the server's authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Visitor {
    /// The token's name; `None` where no tokens are configured.
    pub(crate) name: Option<String>,
    /// What the token may do.
    pub(crate) role: Role,
}

impl Visitor {
    fn may_change(&self) -> bool {
        self.role == Role::Admin
    }
}

/// What pages stand on.
struct Page {
    operator: Operator,
    backlog: Latest,
    metrics: Metrics,
    history: History,
    snapshots: Snapshots,
    checks: Checks,
    lanes: usize,
    /// For [`live`].
    connections: Arc<Semaphore>,
}

/// What the admin server gives to it.
pub(crate) struct Ground {
    pub(crate) health: Gatherer,
    pub(crate) metrics: Metrics,
    pub(crate) config: Config,
}

type State = axum::extract::State<Arc<Page>>;
type Who = axum::Extension<Visitor>;

/// Whether anybody may load it, signed in or not.
pub(crate) fn is_open(path: &str) -> bool {
    path == SIGN_IN || path == SIGN_OUT || assets::ALL.iter().any(|asset| asset.path() == path)
}

/// All pages, for the admin server, which authenticates.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>(ground: Ground) -> Router<S> {
    let Ground { health, metrics, config } = ground;
    let Gatherer { operator, backlog, history, .. } = health.clone();
    let page = Arc::new(Page {
        snapshots: Snapshots::new(health),
        lanes: usize::from(config.relay.lanes),
        checks: Checks::new(config),
        connections: Arc::new(Semaphore::new(live::CONNECTIONS)),
        operator,
        backlog,
        metrics,
        history,
    });
    let mut router = Router::new()
        .route("/", get(overview::show))
        .route("/failures", get(failures::list))
        .route("/failures/{cause}", get(failures::of_cause))
        .route("/failures/{cause}/{verb}", get(actions::ask_many).post(actions::do_many))
        .route("/events", get(events::list))
        .route("/events/{id}", get(event::show))
        .route("/events/{id}/{verb}", get(actions::ask_one).post(actions::do_one))
        .route("/pause", get(actions::ask_pause).post(actions::do_pause))
        .route("/resume", get(actions::ask_resume).post(actions::do_resume))
        .route("/audit", get(audit::list))
        .route("/check", get(checks::show))
        .route("/updates", get(live::updates))
        .with_state(page);
    for asset in assets::ALL {
        router = router.route(asset.path(), asset.serve());
    }
    router.layer(from_fn(guarded))
}

/// Nothing but what this server itself sends, and in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Whether a form was sent by a page of this origin. Browsers say where a form comes from; one that says nothing is refused.
pub(crate) fn is_own_form(headers: &HeaderMap) -> bool {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin";
    }
    let (Some(origin), Some(host)) = (text(header::ORIGIN), text(header::HOST)) else { return false };
    origin.split_once("://").is_some_and(|(_, of)| of.eq_ignore_ascii_case(host))
}

/// Forms of others are refused; every page gets its headers.
pub(crate) async fn guarded(request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = if reads || is_own_form(request.headers()) {
        next.run(request).await
    } else {
        let nobody = Visitor { name: None, role: Role::Read };
        layout::sorry(
            StatusCode::FORBIDDEN,
            &nobody,
            "Not done",
            "This form was not sent by this page. Try again here.",
        )
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // Not `no-referrer`: browsers then hide the origin of forms too, by which they are known to be this page's.
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// For an address that leads nowhere.
pub(crate) fn nothing_here(visitor: &Visitor) -> Response {
    layout::sorry(
        StatusCode::NOT_FOUND,
        visitor,
        "There is nothing at this address",
        "Perhaps it was cut off when it was copied.",
    )
}

/// Why an operator's answer cannot be shown, as a page.
fn refused(visitor: &Visitor, error: &OperatorError) -> Response {
    let (status, what) = match error {
        OperatorError::NotFound(_) => (StatusCode::NOT_FOUND, "There is no such event"),
        OperatorError::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "That cannot be asked"),
        OperatorError::Refused { .. } | OperatorError::NotAsExpected { .. } => (StatusCode::CONFLICT, "Not done"),
        OperatorError::Unfinished { .. } => (StatusCode::SERVICE_UNAVAILABLE, "Not finished"),
        OperatorError::Busy(_) | OperatorError::NotCounted => (StatusCode::SERVICE_UNAVAILABLE, "Not just now"),
        OperatorError::Database(_) => (StatusCode::SERVICE_UNAVAILABLE, "The legacy database did not answer"),
    };
    layout::sorry(status, visitor, what, &error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_pages_own_forms_count() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs
                .iter()
                .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
            is_own_form(&pairs.collect())
        };
        assert!(of(&[("sec-fetch-site", "same-origin")]));
        assert!(of(&[("host", "relay:8080"), ("origin", "http://relay:8080")]));
        assert!(of(&[("host", "relay"), ("origin", "https://RELAY")]));
        for foreign in [
            &[][..],
            &[("host", "relay:8080")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site"), ("host", "relay"), ("origin", "http://relay")],
            &[("sec-fetch-site", "none")],
            &[("host", "relay:8080"), ("origin", "null")],
            &[("host", "relay:8080"), ("origin", "http://relay:8081")],
            &[("host", "relay"), ("origin", "http://relay.example.org")],
        ] {
            assert!(!of(foreign), "{foreign:?}");
        }
    }
}
