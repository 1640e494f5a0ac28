//! A browser's session: another way to show a token.
//!
//! The cookie holds the token's name and until when it is good, under a MAC made with that token's secret. So nothing is kept
//! here: a session survives restarts, is good at every replica, and ends with its token. The secret itself is in no cookie.
//! Browsers send it to this site only (`SameSite=Strict`), scripts do not see it (`HttpOnly`), and a form that changes anything
//! must come from a page of this very origin: see [`page::is_own_form`].
//!
//! Does not end the other sessions of a token: for that the token is replaced.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Form};
use ring::hmac;
use serde::Deserialize;

use super::{Inner, auth, names};
use crate::config::Token;
use crate::page::{self, SignIn};

const COOKIE: &str = "outbox_relay_session";
/// A working day and some.
pub(super) const LASTS: Duration = Duration::from_secs(12 * 3600);
/// So that no other use of a token's secret ever makes the same MAC.
const PURPOSE: &str = "outbox-relay session 1";

/// What the form of the sign-in says.
#[derive(Deserialize)]
pub(super) struct Credentials {
    token: String,
    #[serde(default)]
    next: String,
}

/// Where somebody wanted to go.
#[derive(Deserialize)]
pub(super) struct Wish {
    #[serde(default)]
    next: String,
}

/// Where to sign in, to go on to this address.
pub(super) fn sign_in_address(wanted: &Uri) -> String {
    let wanted = wanted.path_and_query().map_or("/", |it| it.as_str());
    match wanted {
        "/" => page::SIGN_IN.to_owned(),
        _ => format!("{}?{}", page::SIGN_IN, serde_urlencoded::to_string([("next", wanted)]).unwrap_or_default()),
    }
}

/// `GET /sign-in`
pub(super) async fn ask(
    State(state): State<Arc<Inner>>,
    Extension(from): Extension<auth::From>,
    headers: HeaderMap,
    Query(wish): Query<Wish>,
) -> Response {
    let next = own_address(&wish.next);
    let known = !state.tokens.are_needed()
        || auth::session(&state, &state.tokens.now(), from.0, &headers).is_ok_and(|token| token.is_some());
    if known { Redirect::to(next).into_response() } else { page::sign_in_page(SignIn::Asked, next) }
}

/// `POST /sign-in`
pub(super) async fn begin(
    State(state): State<Arc<Inner>>,
    Extension(from): Extension<auth::From>,
    headers: HeaderMap,
    Form(credentials): Form<Credentials>,
) -> Response {
    let next = own_address(&credentials.next);
    if !page::is_own_form(&headers) {
        return page::sign_in_page(SignIn::Foreign, next);
    }
    let tokens = state.tokens.now();
    let token = match auth::known(&state, &tokens, from.0, credentials.token.trim()) {
        Ok(Some(token)) => token,
        Ok(None) => return page::sign_in_page(SignIn::Unknown, next),
        Err(seconds) => return page::sign_in_page(SignIn::NotNow(seconds), next),
    };
    tracing::info!(token = %token.name, "signed in at the page");
    let cookie = set(&issue(token, SystemTime::now()), is_secure(&state, &headers));
    with_cookie(Redirect::to(next).into_response(), cookie)
}

/// `POST /sign-out`
pub(super) async fn end(State(state): State<Arc<Inner>>, headers: HeaderMap) -> Response {
    let cookie = page::is_own_form(&headers).then(|| clear(is_secure(&state, &headers))).flatten();
    with_cookie(Redirect::to(page::SIGN_IN).into_response(), cookie)
}

fn with_cookie(mut response: Response, cookie: Option<HeaderValue>) -> Response {
    response.headers_mut().extend(cookie.map(|cookie| (header::SET_COOKIE, cookie)));
    response
}

fn is_secure(state: &Inner, headers: &HeaderMap) -> bool {
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok()).unwrap_or_default();
    speaks_tls(state.has_tls, state.behind_proxy, origin)
}

/// Whether the browser speaks TLS, with this server or with a proxy before it: the form's origin tells. Behind a proxy it does unless it
/// says that it is on this very machine, as through a tunnel; a cookie that is bound to TLS would be lost there.
fn speaks_tls(has_tls: bool, behind_proxy: bool, origin: &str) -> bool {
    let is_plain_here = origin.strip_prefix("http://").is_some_and(names::is_loopback);
    has_tls || origin.starts_with("https://") || (behind_proxy && !is_plain_here)
}

/// A cookie's value for the holder of this token.
pub(super) fn issue(token: &Token, now: SystemTime) -> String {
    let until = seconds(now + LASTS);
    let tag = hmac::sign(&key(token), message(&token.name, until).as_bytes());
    format!("{}.{until}.{}", hex(token.name.as_bytes()), hex(tag.as_ref()))
}

/// The cookie, if it says that it is good at this time. Only the first of that name is looked at, as a browser has just one.
pub(super) fn presented(headers: &HeaderMap, now: SystemTime) -> Option<&str> {
    values(headers).next().filter(|value| Said::of(value, now).is_some())
}

/// The token whose session this is.
pub(super) fn holder<'t>(tokens: &'t [Token], cookie: &str, now: SystemTime) -> Option<&'t Token> {
    let Said { name, until, tag } = Said::of(cookie, now)?;
    let said = message(&name, until);
    let mut named = tokens.iter().filter(|token| token.name == name && !token.secret.is_empty());
    named.find(|token| hmac::verify(&key(token), said.as_bytes(), &tag).is_ok())
}

/// What a cookie says, which need not be true.
struct Said {
    name: String,
    until: u64,
    tag: Vec<u8>,
}

impl Said {
    /// `None`: it says nothing, or itself that it is over.
    fn of(cookie: &str, now: SystemTime) -> Option<Said> {
        let mut parts = cookie.split('.');
        let (name, until, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let (name, tag) = (String::from_utf8(unhex(name)?).ok()?, unhex(tag)?);
        let until: u64 = until.parse().ok()?;
        let is_over = parts.next().is_some() || until <= seconds(now) || until > seconds(now + LASTS);
        (!is_over).then_some(Said { name, until, tag })
    }
}

/// `Set-Cookie` that begins a session. `secure`: over TLS only.
pub(super) fn set(value: &str, secure: bool) -> Option<HeaderValue> {
    cookie(value, LASTS.as_secs(), secure)
}

/// `Set-Cookie` that ends it in this browser.
pub(super) fn clear(secure: bool) -> Option<HeaderValue> {
    cookie("", 0, secure)
}

fn cookie(value: &str, seconds: u64, secure: bool) -> Option<HeaderValue> {
    let secure = if secure { "; Secure" } else { "" };
    let text = format!("{COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::from_str(&text).ok()
}

/// An address of this server to go on to; anything else, which a link from elsewhere may have put there, is the first page.
pub(super) fn own_address(next: &str) -> &str {
    let is_own = next.starts_with('/')
        && !next.starts_with("//")
        && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if is_own { next } else { "/" }
}

fn values(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

fn key(token: &Token) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, token.secret.as_bytes())
}

fn message(name: &str, until: u64) -> String {
    format!("{PURPOSE}\n{until}\n{name}")
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.bytes().map(|byte| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()));
    let digits: Vec<u8> = digits.collect::<Option<_>>()?;
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some(high << 4 | low),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Role;

    fn token(name: &str, secret: &str) -> Token {
        Token { name: name.into(), role: Role::Admin, secret: secret.into() }
    }

    fn with(pairs: &[(&'static str, String)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap_or_else(|_| unreachable!()));
        }
        headers
    }

    fn name_of(tokens: &[Token], value: &str, now: SystemTime) -> Option<String> {
        let headers = with(&[("cookie", format!("a=b; {COOKIE}={value}"))]);
        presented(&headers, now).and_then(|cookie| holder(tokens, cookie, now)).map(|token| token.name.clone())
    }

    #[test]
    fn a_session_is_good_until_it_ends_or_its_token_does() {
        let now = SystemTime::now();
        let ops = token("ops – nachts", "secret");
        let value = issue(&ops, now);
        let tokens = [token("board", "other"), ops.clone()];
        assert_eq!(name_of(&tokens, &value, now), Some(ops.name.clone()));
        assert_eq!(name_of(&tokens, &value, now + LASTS - Duration::from_secs(2)), Some(ops.name.clone()));
        assert_eq!(name_of(&tokens, &value, now + LASTS), None, "it ends");
        assert_eq!(name_of(&[], &value, now), None, "the token is gone");
        assert_eq!(name_of(&[token(&ops.name, "replaced")], &value, now), None, "its secret is another");
        assert_eq!(name_of(&[token("renamed", "secret")], &value, now), None);
        assert_eq!(name_of(&[token(&ops.name, "rotated"), ops.clone()], &value, now), Some(ops.name.clone()));
    }

    #[test]
    fn whatever_is_changed_in_a_session_ends_it() {
        let now = SystemTime::now();
        let (ops, board) = (token("ops", "secret"), token("board", "other"));
        let value = issue(&board, now);
        let tokens = [ops, board];
        let parts: Vec<&str> = value.split('.').collect();
        let later = parts[1].parse::<u64>().unwrap_or_default() + 1;
        for forged in [
            format!("{}.{}.{}", hex(b"ops"), parts[1], parts[2]),
            format!("{}.{later}.{}", parts[0], parts[2]),
            format!("{}.{}.{}", parts[0], parts[1], "0".repeat(64)),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{value}0"),
            format!("{value}.x"),
            parts[..2].join("."),
            String::new(),
            "é.1.é".to_owned(),
        ] {
            assert_eq!(name_of(&tokens, &forged, now), None, "{forged}");
        }
        assert_eq!(name_of(&tokens, &value, now), Some("board".to_owned()));
    }

    #[test]
    fn a_token_without_a_secret_has_no_sessions() {
        let (now, empty) = (SystemTime::now(), token("ops", ""));
        assert_eq!(name_of(std::slice::from_ref(&empty), &issue(&empty, now), now), None);
    }

    #[test]
    fn a_session_is_bound_to_tls_wherever_the_browser_speaks_it() {
        for (has_tls, behind_proxy, origin, secure) in [
            (true, false, "", true),
            (true, false, "https://relay.internal:8080", true),
            (false, true, "", true),
            (false, true, "http://relay.internal", true),
            (false, true, "http://127.0.0.1:8080", false),
            (false, true, "http://127.0.0.1.evil.example", true),
            (false, false, "https://relay.internal", true),
            (false, false, "http://127.0.0.1:8080", false),
            (false, false, "", false),
        ] {
            assert_eq!(speaks_tls(has_tls, behind_proxy, origin), secure, "{has_tls} {behind_proxy} {origin}");
        }
    }

    #[test]
    fn nobody_is_sent_elsewhere_after_signing_in() {
        for (next, expected) in [
            ("/failures?cursor=3", "/failures?cursor=3"),
            ("", "/"),
            ("//evil.example", "/"),
            ("/\\evil.example", "/"),
            ("https://evil.example", "/"),
            ("/\r\nset-cookie:x", "/"),
        ] {
            assert_eq!(own_address(next), expected);
        }
    }
}
