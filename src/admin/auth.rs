//! Who calls, and what they may.
//!
//! With tokens: every path needs one, in a header or as a [`session`], but `/healthz`, `/readyz`, the page's sign-in, and the API's
//! own description, which is the same for everybody and which a browser is to show; reading needs any, changing needs an admin's.
//! Without: whoever reaches the socket may do all, which is why it is a loopback one; a page in a browser on that machine is kept out by its
//! `Host` (a rebound name) and by the content type that changes need (no page may send that to another origin unasked).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::problem::Problem;
use super::{Inner, session};
use crate::config::{Role, Token};
use crate::operator::{By, Result as OperatorResult};
use crate::page::{self, Visitor};

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

/// Before every handler.
pub(super) async fn authenticate(State(state): State<Arc<Inner>>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let open = matches!(path, "/healthz" | "/readyz" | "/v1/openapi.json" | "/v1/docs" | "/v1/docs.css")
        || page::is_open(path);
    match caller(&state.tokens, request.method(), request.headers()) {
        Ok(caller) => {
            let visitor = Visitor { name: caller.token.clone(), role: caller.role() };
            request.extensions_mut().insert(visitor);
            request.extensions_mut().insert(caller);
        }
        // Codes only: the handler sees that nobody is known.
        Err(refusal) if open && refusal.is_about_tokens => {}
        // Somebody at a browser is asked, and then goes on to where they wanted.
        Err(refusal) if refusal.is_about_tokens && is_for_eyes(&request) => {
            return Redirect::to(&session::sign_in_address(request.uri())).into_response();
        }
        Err(refusal) => return refusal.problem.into_response(),
    }
    next.run(request).await
}

struct Refusal {
    problem: Problem,
    is_about_tokens: bool,
}

fn caller(tokens: &[Token], method: &Method, headers: &HeaderMap) -> Result<Caller, Refusal> {
    if tokens.is_empty() {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if !is_loopback(host) {
            let detail = "without tokens, only requests to localhost are served; configure a token to be reached by another name";
            let problem = Problem::new(StatusCode::FORBIDDEN, "host", detail);
            return Err(Refusal { problem, is_about_tokens: false });
        }
        return Ok(Caller { token: None, role: Role::Admin, on_behalf: on_behalf(headers) });
    }
    let presented = bearer(headers);
    let known = match presented {
        Some(secret) => find(tokens, secret),
        // A browser sends its cookie with whatever makes it ask: a change must come from this server's own page.
        None => session::holder(tokens, headers, SystemTime::now())
            .filter(|_| is_reading(method) || page::is_own_form(headers)),
    };
    let Some(token) = known else {
        return Err(Refusal { problem: Problem::unauthorized(presented.is_some()), is_about_tokens: true });
    };
    if token.role < Role::Admin && !is_reading(method) {
        let detail = format!("the token {} may read, not change", token.name);
        return Err(Refusal {
            problem: Problem::new(StatusCode::FORBIDDEN, "read_only", detail),
            is_about_tokens: true,
        });
    }
    Ok(Caller { token: Some(token.name.clone()), role: token.role, on_behalf: on_behalf(headers) })
}

pub(super) fn is_reading(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Whether a person asks, and not a program.
pub(super) fn is_for_eyes(request: &Request) -> bool {
    let headers = request.headers();
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    is_reading(request.method()) && accepts.contains("text/html") && !headers.contains_key(header::AUTHORIZATION)
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
    let clean: String = said.trim().chars().filter(|c| !c.is_control()).take(200).collect();
    (!clean.is_empty()).then_some(clean)
}

/// `localhost`, `127.0.0.1:8080`, `[::1]:8080`.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
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
    fn only_names_of_this_machine_are_loopback() {
        for host in ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "example.org", "localhost.example.org:80", "10.0.0.1:8080", "[fe80::1]:80", "127.0.0.1.nip.io"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
