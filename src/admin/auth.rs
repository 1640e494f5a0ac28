//! Who calls, and what they may.
//!
//! With tokens: every path needs one, in a header or as a [`mod@session`], but `/healthz`, `/readyz`, the page's sign-in, and the API's
//! own description, which is the same for everybody and which a browser is to show; reading needs any, changing needs an admin's.
//! Without: whoever reaches the socket may do all, which is why it is a loopback one. Either way nothing changes for a page of
//! another site ([`page::came_from`]), and nothing but what is open to all is served under a name that is not this server's
//! ([`super::names`]), unless a token in the header shows that no browser was tricked. Wrong tokens are counted in [`super::guesses`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::connections::Peer;
use super::guesses::Verdict;
use super::names::Addressed;
use super::problem::Problem;
use super::{Inner, session};
use crate::config::{Role, Token};
use crate::operator::{By, Result as OperatorResult};
use crate::page::{self, CameFrom, Visitor};

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    /// The token's name; `None` where no tokens are configured.
    token: Option<String>,
    role: Role,
    /// Whom the caller says to act for.
    on_behalf: Option<String>,
}

impl Caller {
    /// For the audit: the token's name, and whom its holder says to act for.
    pub(super) fn actor(&self) -> String {
        let token = self.token.as_deref().unwrap_or("local");
        self.on_behalf.as_ref().map_or_else(|| token.to_owned(), |person| format!("{token} ({person})"))
    }

    /// What the caller may do, and so see.
    pub(super) fn role(&self) -> Role {
        self.role
    }

    pub(super) fn by(&self, reason: Option<&str>) -> OperatorResult<By> {
        By::new(self.actor(), reason.unwrap_or_default())
    }
}

/// The address that a request comes from: of the connection, or as the proxy before this server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct From(pub(super) IpAddr);

/// Before every handler.
pub(super) async fn authenticate(State(state): State<Arc<Inner>>, mut request: Request, next: Next) -> Response {
    let from = address(&request, state.behind_proxy);
    request.extensions_mut().insert(From(from));
    let addressed = state.names.addressed(&request);
    if addressed == Addressed::Unclear {
        return Problem::malformed("the request needs one Host").into_response();
    }
    if !is_reading(request.method()) && page::came_from(request.headers()) == CameFrom::Elsewhere {
        return foreign(&request);
    }
    match caller(&state, from, addressed, &request) {
        Ok(caller) => {
            let visitor = Visitor { name: caller.token.clone(), role: caller.role() };
            request.extensions_mut().insert(visitor);
            request.extensions_mut().insert(caller);
        }
        // Codes only: the handler sees that nobody is known.
        Err(refusal) if is_open(request.uri().path(), &refusal) => {}
        // Somebody at a browser is asked, and then goes on to where they wanted.
        Err(Refusal::Unknown { .. }) if is_for_eyes(&request) => {
            return Redirect::to(&session::sign_in_address(request.uri())).into_response();
        }
        Err(Refusal::Name) if is_for_eyes(&request) => return protected(page::not_our_name(NAME)),
        Err(refusal) => return refusal.problem().into_response(),
    }
    next.run(request).await
}

/// Why a request is nobody's.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    /// No token, or one that is not known.
    Unknown { presented: bool },
    /// A reader's, for a change.
    ReadOnly { token: String },
    /// Wrong tokens came too often.
    NotNow { seconds: u64 },
    /// It is addressed to a name that is not this server's.
    Name,
    /// A proxy brought it, and there are no tokens.
    Forwarded,
}

const NAME: &str = "this server is not known by the name that the request is addressed to: list it in admin.hosts, use localhost or an \
                    address, or send a token in the header";

const FORWARDED: &str = "a proxy forwarded this, and no tokens are configured: whoever it lets through would be an administrator; set \
                         OUTBOX_RELAY_ADMIN_TOKEN";

impl Refusal {
    fn problem(self) -> Problem {
        match self {
            Refusal::Unknown { presented } => Problem::unauthorized(presented),
            Refusal::ReadOnly { token } => {
                let detail = format!("the token {token} may read, not change");
                Problem::new(StatusCode::FORBIDDEN, "read_only", detail)
            }
            Refusal::NotNow { seconds } => Problem::too_many_guesses(seconds),
            Refusal::Name => Problem::new(StatusCode::FORBIDDEN, "host", NAME),
            Refusal::Forwarded => Problem::new(StatusCode::FORBIDDEN, "forwarded", FORWARDED),
        }
    }
}

/// Whether the path is served all the same, to nobody in particular.
fn is_open(path: &str, refusal: &Refusal) -> bool {
    // Probes address whatever they are told to; and these tell nobody more than codes.
    matches!(path, "/healthz" | "/readyz" | "/v1/openapi.json" | "/v1/docs" | "/v1/docs.css")
        || (page::is_open(path) && (*refusal != Refusal::Name || page::is_asset(path)))
}

/// What a page of another site is answered.
fn foreign(request: &Request) -> Response {
    if accepts_html(request.headers()) {
        return protected(page::not_our_form());
    }
    let detail = "a page of another site sent this, as its Origin or Sec-Fetch-Site says: nothing was done";
    Problem::new(StatusCode::FORBIDDEN, "cross_site", detail).into_response()
}

fn protected(mut response: Response) -> Response {
    page::protect(&mut response);
    response
}

/// Whether a proxy says that it passes on what somebody else sent.
fn is_forwarded(headers: &HeaderMap) -> bool {
    ["forwarded", "x-forwarded-for", "x-real-ip", "via"].iter().any(|name| headers.contains_key(*name))
}

fn address(request: &Request, behind_proxy: bool) -> IpAddr {
    let peer = request.extensions().get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0);
    if behind_proxy { forwarded(request.headers()).unwrap_or(peer) } else { peer }
}

/// What the proxy before this server saw: the last address, for those before it are what it was told.
fn forwarded(headers: &HeaderMap) -> Option<IpAddr> {
    let list = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
    let last = list.rsplit(',').next()?.trim();
    let with_port = || last.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    last.trim_matches(['[', ']']).parse().ok().or_else(with_port)
}

fn caller(state: &Inner, from: IpAddr, addressed: Addressed, request: &Request) -> Result<Caller, Refusal> {
    let (method, headers) = (request.method(), request.headers());
    let is_here = addressed == Addressed::Here;
    if !state.tokens.are_needed() {
        let local = Caller { token: None, role: Role::Admin, on_behalf: on_behalf(headers) };
        return match is_here {
            _ if is_forwarded(headers) => Err(Refusal::Forwarded),
            true => Ok(local),
            false => Err(Refusal::Name),
        };
    }
    let tokens = state.tokens.now();
    let presented = bearer(headers);
    let known = match presented {
        Some(secret) => match known(state, &tokens, from, secret) {
            Ok(token) => token,
            Err(seconds) => return Err(Refusal::NotNow { seconds }),
        },
        None if !is_here => return Err(Refusal::Name),
        // A browser sends its cookie with whatever makes it ask: a change must come from this server's own page.
        None => match session(state, &tokens, from, headers) {
            Ok(token) => token.filter(|_| is_reading(method) || page::is_own_form(headers)),
            Err(seconds) => return Err(Refusal::NotNow { seconds }),
        },
    };
    let Some(token) = known else { return Err(Refusal::Unknown { presented: presented.is_some() }) };
    if token.role < Role::Admin && !is_reading(method) {
        return Err(Refusal::ReadOnly { token: token.name.clone() });
    }
    Ok(Caller { token: Some(token.name.clone()), role: token.role, on_behalf: on_behalf(headers) })
}

/// The token with this secret, unless wrong ones came from there too often: then for how many seconds none is looked at.
pub(super) fn known<'t>(
    state: &Inner,
    tokens: &'t [Token],
    from: IpAddr,
    secret: &str,
) -> Result<Option<&'t Token>, u64> {
    judged(state, from, secret, find(tokens, secret))
}

/// The token whose session this is, unless …: a session's MAC is made with the token, so that one made up is a guess like any other.
pub(super) fn session<'t>(
    state: &Inner,
    tokens: &'t [Token],
    from: IpAddr,
    headers: &HeaderMap,
) -> Result<Option<&'t Token>, u64> {
    let now = SystemTime::now();
    match session::presented(headers, now) {
        Some(cookie) => judged(state, from, cookie, session::holder(tokens, cookie, now)),
        None => Ok(None),
    }
}

fn judged<'t>(state: &Inner, from: IpAddr, secret: &str, found: Option<&'t Token>) -> Result<Option<&'t Token>, u64> {
    match state.guesses.judge(from, secret, found.is_some(), &state.metrics) {
        Verdict::NotNow(wait) => Err(wait.as_secs() + 1),
        Verdict::Right | Verdict::Wrong => Ok(found),
    }
}

pub(super) fn is_reading(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Whether a person asks, and not a program.
pub(super) fn is_for_eyes(request: &Request) -> bool {
    let headers = request.headers();
    is_reading(request.method()) && accepts_html(headers) && !headers.contains_key(header::AUTHORIZATION)
}

fn accepts_html(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains("text/html"))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    let secret = secret.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty()).then_some(secret)
}

/// Compares with every token, so that the time taken tells neither which one it was nor how much of it was right.
pub(super) fn find<'t>(tokens: &'t [Token], secret: &str) -> Option<&'t Token> {
    let mut found = u32::MAX;
    for (at, token) in (0u32..).zip(tokens) {
        let same: Choice = token.secret.as_bytes().ct_eq(secret.as_bytes());
        found.conditional_assign(&at, same);
    }
    tokens.get(found as usize)
}

fn on_behalf(headers: &HeaderMap) -> Option<String> {
    let said = headers.get("x-actor").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())?;
    let clean: String = said.trim().chars().filter(|c| !is_invisible(*c)).take(200).collect();
    (!clean.is_empty()).then_some(clean)
}

/// Characters that would change how the text around them looks, on a terminal or a page.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(name: &str, role: Role, secret: &str) -> Token {
        Token { name: name.into(), role, secret: secret.into() }
    }

    #[test]
    fn a_token_is_found_only_by_all_of_its_secret() {
        let tokens =
            [token("a", Role::Admin, "secret-a"), token("b", Role::Read, "secret-b"), token("none", Role::Admin, "")];
        assert_eq!(find(&tokens, "secret-b").map(|t| t.name.as_str()), Some("b"));
        for wrong in ["secret", "secret-aa", "SECRET-A", " "] {
            assert!(find(&tokens, wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_header_names_a_token_or_nothing() {
        for (value, expected) in
            [("Bearer x", Some("x")), ("bearer  x ", Some("x")), ("Basic x", None), ("Bearer ", None), ("x", None)]
        {
            let headers =
                HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap_or_else(|_| unreachable!()))]);
            assert_eq!(bearer(&headers), expected, "{value:?}");
        }
    }

    #[test]
    fn the_proxy_is_believed_and_not_whom_it_repeats() {
        let of = |values: &[&'static str]| {
            let name = header::HeaderName::from_static("x-forwarded-for");
            let pairs = values.iter().map(|value| (name.clone(), axum::http::HeaderValue::from_static(value)));
            forwarded(&pairs.collect()).map(|address| address.to_string())
        };
        for (values, expected) in [
            (&["10.0.0.1"][..], Some("10.0.0.1")),
            (&["127.0.0.1, 10.0.0.1"], Some("10.0.0.1")),
            (&["127.0.0.1", "10.0.0.2"], Some("10.0.0.2")),
            (&["10.0.0.1:5678"], Some("10.0.0.1")),
            (&["[2001:db8::1]:5678"], Some("2001:db8::1")),
            (&["2001:db8::1"], Some("2001:db8::1")),
            (&["unknown"], None),
            (&["10.0.0.1,"], None),
            (&[], None),
        ] {
            assert_eq!(of(values).as_deref(), expected, "{values:?}");
        }
    }
}
