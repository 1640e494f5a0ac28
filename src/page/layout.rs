//! What all pages have around them.

use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use super::Visitor;
use super::assets;
use crate::health::Tone;

/// Where a page stands in the menu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Overview,
    Failures,
    Events,
    Audit,
    Check,
    Nowhere,
}

const MENU: [(Place, &str, &str); 5] = [
    (Place::Overview, "/", "Overview"),
    (Place::Failures, "/failures", "Failures"),
    (Place::Events, "/events", "Events"),
    (Place::Audit, "/audit", "Audit"),
    (Place::Check, "/check", "Check"),
];

/// A whole page. `title` goes to the window.
pub(super) fn page(place: Place, title: &str, visitor: &Visitor, body: &Markup) -> Markup {
    shell(
        title,
        html! {
            header class="top" {
                div class="bar" {
                    a class="brand" href="/" { (mark()) span { "outbox-relay" } }
                    nav aria-label="Main" {
                        @for (of, href, word) in MENU {
                            a href=(href) aria-current=[(of == place).then_some("page")] { (word) }
                        }
                    }
                    div class="who" {
                        span class="live" id="live" data-state="off" hidden { span class="dot" {} span class="word" { "live" } }
                        @if let Some(name) = &visitor.name {
                            form method="post" action="/sign-out" {
                                span class="name" { (name) @if !visitor.may_change() { span class="faint" { " · reads" } } }
                                button class="quiet" type="submit" { "Sign out" }
                            }
                        }
                    }
                }
            }
            div id="announce" class="sr" role="status" {}
            main id="main" tabindex="-1" { (body) }
        },
    )
}

/// A page for somebody who is not known yet.
pub(super) fn bare(title: &str, body: Markup) -> Markup {
    shell(title, html! { main id="main" class="alone" { (body) } })
}

fn shell(title: &str, content: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { (title) " · outbox-relay" }
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                link rel="stylesheet" href=(assets::STYLE.address());
                link rel="icon" type="image/svg+xml" href=(assets::ICON.address());
                script src=(assets::SCRIPT.address()) defer {}
            }
            body {
                a class="skip" href="#main" { "Skip to content" }
                (content)
            }
        }
    }
}

/// The product's mark: three events on their way from one side to the other.
pub(super) fn mark() -> Markup {
    html! {
        svg class="mark" viewBox="0 0 24 24" width="22" height="22" aria-hidden="true" focusable="false" {
            rect x="1" y="4" width="4" height="16" rx="1.5" {}
            rect x="19" y="4" width="4" height="16" rx="1.5" {}
            circle cx="9" cy="12" r="1.6" {}
            circle cx="12.5" cy="12" r="1.6" {}
            circle cx="16" cy="12" r="1.6" {}
        }
    }
}

/// A word in its colour.
pub(super) fn badge(tone: Tone, word: &str) -> Markup {
    html! { span class={ "badge " (tone.as_str()) } { (word) } }
}

/// How a status of the outbox is shown.
pub(super) fn status(word: &str) -> Markup {
    let tone = match word {
        "failed" => Tone::Bad,
        "retry" | "held" | "stopped" => Tone::Warn,
        "processed" => Tone::Good,
        _ => Tone::Calm,
    };
    badge(tone, word)
}

/// HTML with its status.
pub(super) fn answer(status: StatusCode, page: Markup) -> Response {
    (status, Html(page.into_string())).into_response()
}

/// A page that says why there is no other.
pub(super) fn sorry(status: StatusCode, visitor: &Visitor, what: &str, why: &str) -> Response {
    let body = html! {
        section class="finding bad" {
            h1 { (what) }
            p class="said" { (why) }
            p { a href="/" { "Back to the overview" } }
        }
    };
    answer(status, page(Place::Nowhere, what, visitor, &body))
}
