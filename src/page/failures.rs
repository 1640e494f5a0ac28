//! What fails, grouped by why.

use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, extract};
use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::events::{Cursor, rows};
use super::layout::{Place, answer, page, sorry};
use super::words::{ago, beginning, several, thousands};
use super::{State, Who, refused};
use crate::event::EventId;
use crate::operator::{Cause, Filter};

/// Events a page.
const LIMIT: u32 = 50;

pub(super) async fn list(extract::State(state): State, Extension(visitor): Who) -> Response {
    let causes = match state.operator.seen_by(visitor.role).failures().await {
        Ok(causes) => causes,
        Err(error) => return refused(&visitor, &error),
    };
    let events: u64 = causes.iter().map(|cause| cause.count).sum();
    let body = html! {
        div class="title" {
            h1 { "Failures" }
            p class="faint" { @if causes.is_empty() { "Nothing fails." } @else {
                (several(events, "event")) " in retry or failed, of " (several(causes.len() as u64, "cause")) ". Mend a cause, then replay its events."
            } }
        }
        section class="card" data-live="failures" aria-label="Failures by cause" {
            @if causes.is_empty() {
                p class="empty" { "Nothing fails. When the new database refuses events, they appear here, grouped by why." }
            } @else {
                (table(&causes, Utc::now()))
            }
        }
    };
    answer(StatusCode::OK, page(Place::Failures, "Failures", &visitor, &body))
}

/// One row a cause.
pub(super) fn table(causes: &[Cause], now: DateTime<Utc>) -> Markup {
    html! {
        ul class="causes" {
            @for cause in causes {
                li {
                    a class="cause" href=(address(&cause.cause)) {
                        span class="count" { (thousands(cause.count)) }
                        span class="what" {
                            span class="message" { (beginning(&cause.message, 240).0) }
                            span class="meta" {
                                span { (cause.entity) }
                                span class="mono" { (cause.code) }
                                @if let Some(place) = &cause.place { span class="mono" { (beginning(place, 80).0) } }
                                @if cause.failed > 0 { span class="bad" { (thousands(cause.failed)) " failed" } }
                                @if cause.retry > 0 { span class="warn" { (thousands(cause.retry)) " in retry" } }
                                span { "since " (ago(cause.first_at, now)) }
                                span { "last " (ago(cause.last_at, now)) }
                            }
                        }
                        span class="go" aria-hidden="true" { "›" }
                    }
                }
            }
        }
    }
}

/// A cause's page.
pub(super) fn address(cause: &str) -> String {
    format!("/failures/{}", super::events::path_segment(cause))
}

pub(super) async fn of_cause(
    extract::State(state): State,
    Extension(visitor): Who,
    Path(name): Path<String>,
    Query(cursor): Query<Cursor>,
) -> Response {
    let now = Utc::now();
    let causes = match state.operator.seen_by(visitor.role).failures().await {
        Ok(causes) => causes,
        Err(error) => return refused(&visitor, &error),
    };
    let Some(cause) = causes.iter().find(|cause| cause.cause == name) else {
        let why = "No event fails for this cause any more: it was mended, replayed or skipped.";
        return sorry(StatusCode::NOT_FOUND, &visitor, "This cause is gone", why);
    };
    let filter = Filter { cause: Some(name.clone()), ..Filter::default() };
    let events = match state.operator.seen_by(visitor.role).events(&filter, LIMIT, cursor.cursor.map(EventId)).await {
        Ok(events) => events,
        Err(error) => return refused(&visitor, &error),
    };
    let body = html! {
        div class="title" {
            p class="crumbs" { a href="/failures" { "Failures" } }
            h1 class="message" { (beginning(&cause.message, 300).0) }
        }
        section class="card" data-live="cause" {
            dl class="facts" {
                div { dt { "Events" } dd { (thousands(cause.count)) " (" (thousands(cause.failed)) " failed, " (thousands(cause.retry)) " in retry)" } }
                div { dt { "Entity" } dd { (cause.entity) } }
                div { dt { "Aggregate type" } dd { (cause.aggregate_type) } }
                div { dt { "Code" } dd class="mono" { (cause.code) } }
                @if let Some(place) = &cause.place { div { dt { "Place" } dd class="mono" { (place) } } }
                div { dt { "Whose" } dd { (whose(&cause.disposition)) } }
                div { dt { "Since" } dd { (ago(cause.first_at, now)) } }
                div { dt { "Last" } dd { (ago(cause.last_at, now)) } }
            }
        }
        section class="card" data-live="events" aria-labelledby="events" {
            div class="head" { h2 id="events" { "Events" } }
            (rows(&events.items, now))
            @if let Some(next) = &events.next_cursor { p class="more" { a href={ (address(&name)) "?cursor=" (next) } { "Later events" } } }
        }
    };
    answer(StatusCode::OK, page(Place::Failures, "Failure", &visitor, &body))
}

/// What a disposition asks of whom.
pub(super) fn whose(disposition: &str) -> String {
    let meaning = match disposition {
        "event" => "the event's own: it is tried again, then given up",
        "operator" => "the operator's: mend the mapping, table or grant",
        "waiting" => "another row is on its way: tried again soon",
        "transient" | "contended" => "nobody's: the database was busy or away",
        _ => return disposition.to_owned(),
    };
    format!("{disposition} – {meaning}")
}
