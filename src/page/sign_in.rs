//! Where a token is asked for.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use maud::html;

use super::layout::{answer, bare, mark};

/// Where the form is, and where it is sent to.
pub(crate) const PATH: &str = "/sign-in";
/// Where a session is ended.
pub(crate) const OUT: &str = "/sign-out";

/// Why the form is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignIn {
    /// Nobody has tried yet.
    Asked,
    /// The token is not known.
    Unknown,
    /// The form came from elsewhere.
    Foreign,
    /// Too many tokens were tried; again after so many seconds.
    NotNow(u64),
}

/// The form; `next` is the address to go on to.
pub(crate) fn sign_in_page(why: SignIn, next: &str) -> Response {
    let later = match why {
        SignIn::NotNow(seconds) => format!("Too many wrong tokens came from this address. Try again in {seconds} s."),
        _ => String::new(),
    };
    let (status, said) = match why {
        SignIn::Asked => (StatusCode::OK, None),
        SignIn::NotNow(_) => (StatusCode::TOO_MANY_REQUESTS, Some(later.as_str())),
        SignIn::Unknown => {
            (StatusCode::UNAUTHORIZED, Some("This token is not known. Look for a missing or extra character."))
        }
        SignIn::Foreign => (StatusCode::FORBIDDEN, Some("This form was not sent by this page. Try again here.")),
    };
    let body = html! {
        form class="card sign-in" method="post" action=(PATH) {
            div class="brand" { (mark()) span { "outbox-relay" } }
            h1 { "Sign in" }
            p class="faint" { "With a token of the admin API: OUTBOX_RELAY_ADMIN_TOKEN, OUTBOX_RELAY_READ_TOKEN, or one of [[admin.token]]." }
            @if let Some(said) = said { p class="said bad" role="alert" id="why" { (said) } }
            label for="token" { "Token" }
            input id="token" name="token" type="password" autocomplete="current-password" required autofocus
                spellcheck="false" aria-describedby=[said.map(|_| "why")] aria-invalid=[said.map(|_| "true")];
            input type="hidden" name="next" value=(next);
            button class="main" type="submit" { "Sign in" }
        }
    };
    let mut response = answer(status, bare("Sign in", body));
    if let SignIn::NotNow(seconds) = why {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
