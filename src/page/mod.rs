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
use crate::disposition;
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
    path == SIGN_IN || path == SIGN_OUT || is_asset(path)
}

/// Whether it is one of the files that pages load.
pub(crate) fn is_asset(path: &str) -> bool {
    assets::ALL.iter().any(|asset| asset.path() == path)
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

/// Where a request comes from, as browsers say and no page can make them say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CameFrom {
    /// A page of this very origin.
    Here,
    /// A page of any other origin, or of none.
    Elsewhere,
    /// It does not say: a program, or somebody who wrote the address.
    Unsaid,
}

/// Where a request comes from.
pub(crate) fn came_from(headers: &HeaderMap) -> CameFrom {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let origin = origins.next();
    if origins.next().is_some() || origin.is_some_and(|origin| origin == "null") {
        return CameFrom::Elsewhere;
    }
    if let Some(site) = headers.get("sec-fetch-site") {
        return match site.as_bytes() {
            b"same-origin" => CameFrom::Here,
            b"none" => CameFrom::Unsaid,
            _ => CameFrom::Elsewhere,
        };
    }
    let Some(origin) = origin else { return CameFrom::Unsaid };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let of = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map_or("", |(_, of)| of);
    if !of.is_empty() && of.eq_ignore_ascii_case(host) { CameFrom::Here } else { CameFrom::Elsewhere }
}

/// Whether a form was sent by a page of this origin; one that does not say is refused.
pub(crate) fn is_own_form(headers: &HeaderMap) -> bool {
    came_from(headers) == CameFrom::Here
}

/// The answer to a form of others.
pub(crate) fn not_our_form() -> Response {
    let nobody = Visitor { name: None, role: Role::Read };
    let why = "This form was not sent by this page. Try again here.";
    layout::sorry(StatusCode::FORBIDDEN, &nobody, "Not done", why)
}

/// The answer under a name that is not this server's.
pub(crate) fn not_our_name(why: &str) -> Response {
    let nobody = Visitor { name: None, role: Role::Read };
    layout::sorry(StatusCode::FORBIDDEN, &nobody, "Not under this name", why)
}

/// Forms of others are refused; every page gets its headers.
pub(crate) async fn guarded(request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = if reads || is_own_form(request.headers()) { next.run(request).await } else { not_our_form() };
    protect(&mut response);
    response
}

/// What a page's answer has.
pub(crate) fn protect(response: &mut Response) {
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
        // A character that this database's texts cannot have, such as NUL.
        OperatorError::Database(inner) if matches!(disposition::said(inner).code.as_str(), "22021" | "22P05") => {
            (StatusCode::UNPROCESSABLE_ENTITY, "That cannot be asked")
        }
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

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs =
            pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
        pairs.collect()
    }

    #[test]
    fn only_this_pages_own_forms_count() {
        let of = |pairs: &[(&'static str, &'static str)]| is_own_form(&headers(pairs));
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
            &[("sec-fetch-site", "same-origin"), ("origin", "null")],
            &[("host", "relay"), ("origin", "http://relay"), ("origin", "http://relay")],
            &[("host", ""), ("origin", "http://")],
        ] {
            assert!(!of(foreign), "{foreign:?}");
        }
    }

    #[test]
    fn a_program_says_nothing_and_a_browser_tells_of_whom_it_acts_for() {
        let of = |pairs: &[(&'static str, &'static str)]| came_from(&headers(pairs));
        assert_eq!(of(&[("host", "relay")]), CameFrom::Unsaid);
        assert_eq!(of(&[("sec-fetch-site", "none")]), CameFrom::Unsaid);
        assert_eq!(of(&[("host", "relay"), ("origin", "null")]), CameFrom::Elsewhere);
        assert_eq!(of(&[("host", "relay"), ("origin", "https://evil.example")]), CameFrom::Elsewhere);
        assert_eq!(of(&[("host", "relay"), ("origin", "https://relay")]), CameFrom::Here);
        for site in ["cross-site", "same-site", "", "Same-Origin"] {
            assert_eq!(of(&[("sec-fetch-site", site)]), CameFrom::Elsewhere, "{site}");
        }
    }
}
