//! One event: why it stands where it stands, what it says, and what waits behind it.

use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, extract};
use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::events::rows;
use super::failures::{address, whose};
use super::layout::{Place, answer, page, sorry, status};
use super::overview::form_urlencoded;
use super::words::{ago, beginning, several, when};
use super::{State, Visitor, Who, actions, refused};
use crate::event::Status;
use crate::operator::{Event, EventRef, Events, Filter, render};

/// Held events that are shown.
const BEHIND: u32 = 20;
/// Characters of a payload that are shown at once.
const PAYLOAD: usize = 20_000;
/// Characters of a value in a headline.
const SHORT: usize = 120;

pub(super) async fn show(
    extract::State(state): State,
    Extension(visitor): Who,
    Path(id): Path<String>,
    Query(told): Query<actions::Done>,
) -> Response {
    let named: EventRef = match id.parse() {
        Ok(named) => named,
        Err(why) => return sorry(StatusCode::NOT_FOUND, &visitor, "There is no such event", &why),
    };
    let event = match state.operator.seen_by(visitor.role).event(&named).await {
        Ok(event) => event,
        Err(error) => return refused(&visitor, &error),
    };
    let behind = if event.holds_back == 0 {
        None
    } else {
        let filter = Filter {
            status: Some(Status::Held),
            aggregate_type: Some(event.event.aggregate.kind.clone()),
            aggregate_id: Some(event.event.aggregate.id.clone()),
            ..Filter::default()
        };
        state.operator.seen_by(visitor.role).events(&filter, BEHIND, Some(event.event.id)).await.ok()
    };
    let body = html! {
        (actions::done(&told))
        (body(&event, behind.as_ref(), &visitor, Utc::now()))
    };
    answer(StatusCode::OK, page(Place::Events, &format!("Event {}", event.event.id), &visitor, &body))
}

fn body(event: &Event, behind: Option<&Events>, visitor: &Visitor, now: DateTime<Utc>) -> Markup {
    let listed = &event.event;
    html! {
        div class="title" data-live="title" {
            p class="crumbs" {
                @match &listed.cause {
                    Some(cause) => { a href="/failures" { "Failures" } " › " a href=(address(cause)) { "this cause" } }
                    None => a href="/events" { "Events" },
                }
            }
            h1 { "Event " (listed.id) " " (status(&listed.status)) }
            p class="faint" {
                (beginning(&listed.event_type, SHORT).0) " of " (beginning(&listed.aggregate.kind, SHORT).0) " "
                a class="mono" href=(of_aggregate(event)) { (beginning(&listed.aggregate.id, SHORT).0) }
                ", written " (ago(listed.created_at, now))
            }
        }
        @if visitor.may_change() { (buttons(event)) }
        (standing(event, now))
        div class="columns" {
            div {
                (payload("Payload", event.payload.get()))
                @if let Some(headers) = &event.headers { (payload("Headers", headers.get())) }
            }
            div {
                (facts(event, now))
                (history(event, now))
            }
        }
        @if let Some(behind) = behind { (held(event, behind, now)) }
    }
}

/// What may be done with it as it stands.
fn buttons(event: &Event) -> Markup {
    let (replay, skip) = match event.event.status.as_str() {
        "failed" => (Some("Replay"), true),
        "retry" => (Some("Try again now"), true),
        "skipped" => (Some("Replay"), false),
        _ => (None, false),
    };
    html! {
        div class="buttons" data-live="buttons" {
            @if let Some(word) = replay { a class="button main" href={ "/events/" (event.event.id) "/replay" } { (word) } }
            @if skip { a class="button" href={ "/events/" (event.event.id) "/skip" } { "Skip" } }
        }
    }
}

fn of_aggregate(event: &Event) -> String {
    let aggregate = &event.event.aggregate;
    format!("/events?{}", form_urlencoded(&[("aggregate_type", &aggregate.kind), ("aggregate_id", &aggregate.id)]))
}

/// Why it is where it is.
fn standing(event: &Event, now: DateTime<Utc>) -> Markup {
    let listed = &event.event;
    html! {
        section class="card standing" data-live="standing" aria-label="Why" {
            @if let Some(failure) = &event.failure {
                p class="said" { (beginning(&failure.message, 2000).0) }
                dl class="facts" {
                    div { dt { "Code" } dd class="mono" { (failure.code) } }
                    div { dt { "Entity" } dd { (failure.entity) } }
                    @if let Some(place) = &failure.place { div { dt { "Place" } dd class="mono" { (place) } } }
                    @if let Some(constraint) = &failure.constraint { div { dt { "Constraint" } dd class="mono" { (constraint) } } }
                    @if let Some(column) = &failure.column { div { dt { "Column" } dd class="mono" { (column) } } }
                    div { dt { "Whose" } dd { (whose(&failure.disposition)) } }
                    div { dt { "Failing" } dd { "since " (ago(failure.first_at, now)) ", last " (ago(failure.last_at, now)) } }
                }
                @if let Some(detail) = &failure.detail { details { summary { "What Postgres adds (shows values of the row)" } pre { (detail) } } }
            } @else if let Some(error) = &listed.last_error {
                p class="said" { (beginning(error, 2000).0) }
            }
            p { (next(event, now)) }
        }
    }
}

/// What becomes of it.
fn next(event: &Event, now: DateTime<Utc>) -> Markup {
    let behind = match event.holds_back {
        0 => String::new(),
        1 => " 1 later event of its aggregate waits behind it.".to_owned(),
        n => format!(" {} of its aggregate wait behind it.", several(n, "later event")),
    };
    match event.event.status.as_str() {
        "pending" => html! { "It waits to be taken." },
        "processed" => {
            html! { "It was applied" @if let Some(at) = event.event.processed_at { " " (ago(at, now)) } "." }
        }
        "skipped" => {
            html! { "It was passed over" @if let Some(at) = event.event.processed_at { " " (ago(at, now)) } " and is not applied." }
        }
        "retry" => html! {
            "It is tried again " @match event.event.next_attempt_at { Some(at) if at > now => (ago(at, now)), _ => "in a moment" } "." (behind)
        },
        "failed" => html! { "It is not tried again by itself: mend the cause, then replay it; or skip it." (behind) },
        "held" => html! {
            @match event.held_behind {
                Some(id) => { "It waits behind " a href={ "/events/" (id) } { "event " (id) } " of its aggregate." }
                None => "It is about to be released.",
            }
        },
        _ => html! { "Its status is none of the relay's." },
    }
}

fn facts(event: &Event, now: DateTime<Utc>) -> Markup {
    let listed = &event.event;
    html! {
        section class="card" data-live="facts" aria-labelledby="facts" {
            div class="head" { h2 id="facts" { "Facts" } }
            dl class="facts tall" {
                div { dt { "Aggregate" } dd class="long" { (listed.aggregate.kind) " " span class="mono" { (listed.aggregate.id) } } }
                div { dt { "Event type" } dd class="long" { (listed.event_type) } }
                div { dt { "event_id" } dd class="mono long" { (listed.event_id) } }
                div { dt { "Written" } dd { (when(listed.created_at, now)) } }
                @if let Some(at) = listed.processed_at { div { dt { "Settled" } dd { (when(at, now)) } } }
                @if let Some(at) = listed.next_attempt_at { div { dt { "Next attempt" } dd { (when(at, now)) } } }
                div { dt { "Attempts" } dd { (listed.attempts) } }
                div { dt { "Lane" } dd { (event.lane) } }
            }
        }
    }
}

/// JSON as people read it; the outbox's own text where it is none.
fn payload(name: &str, raw: &str) -> Markup {
    let text = render::json(raw);
    let (start, more) = beginning(&text, PAYLOAD);
    html! {
        section class="card" aria-label=(name) {
            div class="head" { h2 { (name) } }
            pre class="json" tabindex="0" { (start) @if more { "…" } }
            @if more { details { summary { "All " (several(text.chars().count() as u64, "character")) } pre class="json" tabindex="0" { (text) } } }
        }
    }
}

fn history(event: &Event, now: DateTime<Utc>) -> Markup {
    if event.history.is_empty() {
        return Markup::default();
    }
    html! {
        section class="card" data-live="history" aria-labelledby="history" {
            div class="head" { h2 id="history" { "Failed attempts" } span class="faint" { (event.history.len()) } }
            ol class="history" {
                @for attempt in event.history.iter().rev() {
                    li {
                        span class="n" { (attempt.attempts) }
                        div {
                            div class="meta" { (ago(attempt.at, now)) span class="mono" { (attempt.code) } span { (attempt.disposition) } }
                            div class="message" { (beginning(&attempt.message, 300).0) }
                        }
                    }
                }
            }
        }
    }
}

fn held(event: &Event, behind: &Events, now: DateTime<Utc>) -> Markup {
    html! {
        section class="card" data-live="held" aria-labelledby="held" {
            div class="head" {
                h2 id="held" { "Held behind it" }
                @if event.holds_back > behind.items.len() as u64 {
                    span class="faint" { "the first " (behind.items.len()) " of " (several(event.holds_back, "event")) }
                }
            }
            (rows(&behind.items, now))
        }
    }
}
