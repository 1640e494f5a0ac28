//! Lists of events, and the search for those of one aggregate.

use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, extract};
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use serde::Deserialize;

use super::layout::{Place, answer, page, status};
use super::overview::form_urlencoded;
use super::words::{ago, beginning};
use super::{State, Who, refused};
use crate::event::{EventId, Status};
use crate::operator::{EventRef, Filter, Listed};

/// Events a page.
const LIMIT: u32 = 50;

/// Where a list goes on.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Cursor {
    pub(super) cursor: Option<i64>,
}

/// What is looked for; an empty field is none.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wanted {
    aggregate_type: String,
    aggregate_id: String,
    status: String,
    event: String,
    cursor: Option<i64>,
}

impl Wanted {
    fn filter(&self) -> Filter {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Filter {
            aggregate_type: some(self.aggregate_type.trim()),
            aggregate_id: some(&self.aggregate_id),
            status: self.status.parse().ok(),
            ..Filter::default()
        }
    }

    fn address(&self, cursor: &str) -> String {
        let pairs = [
            ("aggregate_type", self.aggregate_type.as_str()),
            ("aggregate_id", &self.aggregate_id),
            ("status", &self.status),
            ("cursor", cursor),
        ];
        let said: Vec<_> = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        format!("/events?{}", form_urlencoded(&said))
    }
}

/// What may be put between two slashes of an address.
pub(super) fn path_segment(text: &str) -> String {
    form_urlencoded(&[("", text)]).trim_start_matches('=').replace('+', "%20")
}

pub(super) async fn list(
    extract::State(state): State,
    Extension(visitor): Who,
    Query(wanted): Query<Wanted>,
) -> Response {
    let named = wanted.event.trim();
    if !named.is_empty() {
        return match named.parse::<EventRef>() {
            Ok(event) => Redirect::to(&format!("/events/{event}")).into_response(),
            Err(why) => super::layout::sorry(StatusCode::UNPROCESSABLE_ENTITY, &visitor, "That is no event", &why),
        };
    }
    let filter = wanted.filter();
    let found = if filter.is_empty() {
        None
    } else {
        match state.operator.seen_by(visitor.role).events(&filter, LIMIT, wanted.cursor.map(EventId)).await {
            Ok(events) => Some(events),
            Err(error) => return refused(&visitor, &error),
        }
    };
    let body = html! {
        div class="title" { h1 { "Events" } }
        (form(&wanted))
        @match &found {
            None => section class="card" { p class="empty" { "Look for the events of one aggregate, of a status, or for one event by its number." } }
            Some(events) => {
                section class="card" data-live="events" aria-label="Events found" {
                    @if events.items.is_empty() {
                        p class="empty" { "No event is like that. Processed events are deleted after a while ([retention])." }
                    } @else {
                        (rows(&events.items, Utc::now()))
                        @if let Some(next) = &events.next_cursor { p class="more" { a href=(wanted.address(next)) { "Later events" } } }
                    }
                }
            }
        }
    };
    answer(StatusCode::OK, page(Place::Events, "Events", &visitor, &body))
}

fn form(wanted: &Wanted) -> Markup {
    html! {
        section class="card search" aria-label="Search" {
            form method="get" action="/events" role="search" {
                div class="field" { label for="aggregate_type" { "Aggregate type" }
                    input id="aggregate_type" name="aggregate_type" value=(wanted.aggregate_type) autocomplete="off" spellcheck="false"; }
                div class="field wide" { label for="aggregate_id" { "Aggregate id" }
                    input id="aggregate_id" name="aggregate_id" value=(wanted.aggregate_id) autocomplete="off" spellcheck="false"; }
                div class="field" { label for="status" { "Status" }
                    select id="status" name="status" {
                        option value="" { "any" }
                        @for known in Status::ALL {
                            option value=(known.as_str()) selected[wanted.status == known.as_str()] { (known.as_str()) }
                        }
                    }
                }
                button class="main" type="submit" { "Search" }
            }
            form method="get" action="/events" {
                div class="field" { label for="event" { "Event, by id or event_id" }
                    input id="event" name="event" required autocomplete="off" spellcheck="false"; }
                button type="submit" { "Open" }
            }
        }
    }
}

/// A table of events.
pub(super) fn rows(events: &[Listed], now: DateTime<Utc>) -> Markup {
    html! {
        div class="scroll" tabindex="0" role="region" aria-label="Events" {
            table class="events" {
                thead { tr {
                    th scope="col" class="n" { "Event" }
                    th scope="col" { "Status" }
                    th scope="col" { "Aggregate" }
                    th scope="col" { "Event type" }
                    th scope="col" class="n" { "Attempts" }
                    th scope="col" { "Written" }
                    th scope="col" { "Error" }
                } }
                tbody {
                    @for event in events {
                        tr {
                            th scope="row" class="n" { a href={ "/events/" (event.id) } { (event.id) } }
                            td { (status(&event.status)) }
                            td class="text" { (beginning(&event.aggregate.kind, 60).0) " " span class="mono" { (beginning(&event.aggregate.id, 60).0) } }
                            td class="text" { (beginning(&event.event_type, 60).0) }
                            td class="n" { (event.attempts) }
                            td class="nowrap" { (ago(event.created_at, now)) }
                            td class="error" { @if let Some(error) = &event.last_error { (beginning(error, 160).0) } }
                        }
                    }
                }
            }
        }
    }
}
