//! Who changed what, and why.

use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, extract};
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use serde_json::Value;

use super::events::Cursor;
use super::layout::{Place, answer, page};
use super::words::{ago, beginning, thousands};
use super::{State, Who, refused};
use crate::operator::Audit;

/// Changes a page.
const LIMIT: u32 = 50;

pub(super) async fn list(
    extract::State(state): State,
    Extension(visitor): Who,
    Query(cursor): Query<Cursor>,
) -> Response {
    let audits = match state.operator.audits(LIMIT, cursor.cursor).await {
        Ok(audits) => audits,
        Err(error) => return refused(&visitor, &error),
    };
    let now = Utc::now();
    let body = html! {
        div class="title" { h1 { "Audit" } p class="faint" { "What people changed, newest first: who, what, why, and how many events." } }
        section class="card" data-live="audit" aria-label="Audit trail" {
            @if audits.items.is_empty() {
                p class="empty" { "Nothing was changed yet." }
            } @else {
                div class="scroll" tabindex="0" role="region" aria-label="Changes" {
                    table {
                        thead { tr {
                            th scope="col" { "When" } th scope="col" { "Who" } th scope="col" { "What" } th scope="col" { "To" }
                            th scope="col" class="n" { "Changed" } th scope="col" { "Why" }
                        } }
                        tbody { @for audit in &audits.items { (row(audit, now)) } }
                    }
                }
                @if let Some(next) = &audits.next_cursor { p class="more" { a href={ "/audit?cursor=" (next) } { "Earlier changes" } } }
            }
        }
    };
    answer(StatusCode::OK, page(Place::Audit, "Audit", &visitor, &body))
}

fn row(audit: &Audit, now: DateTime<Utc>) -> Markup {
    html! {
        tr {
            td class="nowrap" { (ago(audit.at, now)) }
            td class="text" { (beginning(&audit.actor, 80).0) }
            td { strong { (audit.action) } }
            td class="text" { (subject(audit.subject.get())) }
            td class="n" {
                (thousands(audit.changed))
                @if audit.matched != audit.changed { span class="faint" { " of " (thousands(audit.matched)) } }
            }
            td class="why" { (beginning(&audit.reason, 400).0) }
        }
    }
}

/// What a change was done to.
fn subject(raw: &str) -> Markup {
    let value: Value = serde_json::from_str(raw).unwrap_or(Value::Null);
    if let Some(id) = value["id"].as_i64() {
        return html! { a href={ "/events/" (id) } { "event " (id) } };
    }
    if value["all"] == Value::Bool(true) {
        return html! { "everything" };
    }
    if let Some(kind) = value["aggregate_type"].as_str() {
        return html! { (beginning(kind, 80).0) };
    }
    if let Some(filter) = value["filter"].as_object() {
        if filter.is_empty() {
            return html! { "every failing event" };
        }
        let said: Vec<String> = filter
            .iter()
            .map(|(key, value)| format!("{key} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
            .collect();
        return html! { (beginning(&said.join(", "), 160).0) };
    }
    html! { span class="mono" { (beginning(raw, 160).0) } }
}
