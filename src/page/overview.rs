//! The first page: is it flowing, how far behind, what fails and why, what may be pressed.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, extract};
use maud::{Markup, html};

use super::layout::{Place, answer, page, status};
use super::snapshot::Snapshot;
use super::words::{ago, beginning, several, span, thousands};
use super::{State, Visitor, Who, actions, charts, failures, lanes, migration};
use crate::health::{Finding, Matter, findings};
use crate::operator::Backlog;

pub(super) async fn show(
    extract::State(state): State,
    Extension(visitor): Who,
    Query(told): Query<actions::Done>,
) -> Response {
    let snapshot = state.snapshots.take(visitor.role).await;
    let now = snapshot.facts.now;
    let found = findings(&snapshot.facts);
    let word = found.first().map_or("Overview", |first| first.matter.word());
    let body = html! {
        (actions::done(&told))
        (health(&found, &visitor))
        (numbers(&snapshot))
        (charts::charts(&state.history.points(now), now))
        (failing(&snapshot))
        (by_type(&snapshot, &visitor))
        (migration::panel(state.snapshots.migration().await.as_deref(), now))
        (lanes::lanes(&snapshot.facts, &snapshot.asked.holders, &state.history.workers(now), state.lanes))
    };
    answer(StatusCode::OK, page(Place::Overview, word, &visitor, &body))
}

/// The sentence, and whatever else is so.
pub(super) fn health(found: &[Finding], visitor: &Visitor) -> Markup {
    let Some((first, others)) = found.split_first() else { return Markup::default() };
    html! {
        section class={ "health " (first.matter.tone().as_str()) } data-live="health" data-matter=(first.matter.as_str())
            aria-label="Health" {
            div class="eyebrow" { span class="dot" {} (first.matter.word()) }
            h1 { (first.sentence) }
            (said(first))
            p class="remedy" { (first.remedy) }
            @if let Some((href, word)) = press(first, visitor) { p class="press" { a class="button" href=(href) { (word) } } }
            @if !others.is_empty() {
                ul class="also" aria-label="Also" {
                    @for other in others {
                        li class=(other.matter.tone().as_str()) data-matter=(other.matter.as_str()) {
                            span class="dot" {}
                            div {
                                strong { (other.sentence) } " " span { (other.remedy) }
                                @if let Some((href, word)) = press(other, visitor) { " " a href=(href) { (word) } }
                                (said(other))
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What may be done about it.
fn press(finding: &Finding, visitor: &Visitor) -> Option<(String, String)> {
    let about = finding.about.as_deref().unwrap_or_default();
    match finding.matter {
        Matter::Failing => Some(("/failures".to_owned(), "See what fails".to_owned())),
        Matter::Paused if visitor.may_change() => {
            let what = if about.is_empty() { "everything" } else { beginning(about, 60).0 };
            let query = form_urlencoded(&[("aggregate_type", about)]);
            Some((format!("/resume?{query}"), format!("Resume {what}")))
        }
        Matter::TypeStopped | Matter::Unmapped | Matter::Reload | Matter::LaneStopped | Matter::Starting => {
            Some(("/check".to_owned(), "Run the check".to_owned()))
        }
        _ => None,
    }
}

/// The cause in somebody else's words, cut where it is very long.
fn said(finding: &Finding) -> Markup {
    const MOST: usize = 400;
    let Some(cause) = &finding.cause else { return Markup::default() };
    let (start, more) = beginning(cause, MOST);
    html! {
        @if more {
            details class="said" { summary { (start) "…" } div { (cause) } }
        } @else {
            p class="said" { (cause) }
        }
    }
}

fn numbers(snapshot: &Snapshot) -> Markup {
    let backlog = snapshot.facts.backlog.as_deref();
    let count = |of: fn(&Backlog) -> u64| backlog.map(of);
    let failing = snapshot.facts.failing;
    let tiles: [(&str, &str, Option<u64>, &str); 5] = [
        ("pending", "Pending", count(|b| b.pending), "waiting to be taken"),
        ("retry", "Retry", failing.map(|(_, retry)| retry).or(count(|b| b.retry)), "refused, will be tried again"),
        ("held", "Held", count(|b| b.held), "behind an earlier event of their aggregate"),
        (
            "failed",
            "Failed",
            failing.map(|(failed, _)| failed).or(count(|b| b.failed)),
            "given up until replayed or skipped",
        ),
        ("stopped", "Stopped", count(|b| b.stopped), "paused, unmapped, or of a stopped type"),
    ];
    html! {
        section class="tiles" data-live="numbers" aria-label="Backlog" {
            @for (key, name, n, meaning) in tiles {
                a class={ "tile " (key) @if n.is_some_and(|n| n > 0) { " some" } } href=(link(key, None)) {
                    span class="name" { (name) }
                    span class="number" { @match n { Some(n) => (thousands(n)), None => "–" } }
                    span class="faint" { (meaning) }
                }
            }
            div class="tile oldest" {
                span class="name" { "Oldest pending" }
                span class="number" {
                    @match backlog.and_then(|b| b.oldest_pending_seconds) {
                        Some(age) => (span(age)),
                        None => "–",
                    }
                }
                span class="faint" {
                    @match backlog {
                        Some(backlog) => { "counted " (ago(backlog.as_of, snapshot.facts.now)) }
                        None => "not counted yet",
                    }
                }
            }
        }
    }
}

/// The list behind a number. What is stopped is pending or held in the outbox.
fn link(status: &str, kind: Option<&str>) -> String {
    let status = if status == "stopped" { "pending" } else { status };
    let mut query = form_urlencoded(&[("status", status)]);
    if let Some(kind) = kind {
        query.push('&');
        query.push_str(&form_urlencoded(&[("aggregate_type", kind)]));
    }
    if status == "failed" && kind.is_none() { "/failures".to_owned() } else { format!("/events?{query}") }
}

/// Pairs for an address.
pub(super) fn form_urlencoded(pairs: &[(&str, &str)]) -> String {
    serde_urlencoded::to_string(pairs).unwrap_or_default()
}

fn failing(snapshot: &Snapshot) -> Markup {
    const SHOWN: usize = 5;
    let Some(causes) = &snapshot.asked.causes else {
        return html! {
            section class="card" data-live="failures" {
                h2 { "Failures" }
                p class="faint" { "The legacy database did not answer, so what fails is not known just now." }
            }
        };
    };
    html! {
        section class="card" data-live="failures" aria-labelledby="failures" {
            div class="head" {
                h2 id="failures" { "Failures by cause" }
                @if !causes.is_empty() { a href="/failures" { (several(causes.len() as u64, "cause")) } }
            }
            @if causes.is_empty() {
                p class="empty" { "Nothing fails." }
            } @else {
                (failures::table(&causes[..causes.len().min(SHOWN)], snapshot.facts.now))
            }
        }
    }
}

fn by_type(snapshot: &Snapshot, visitor: &Visitor) -> Markup {
    const WORDS: [&str; 5] = ["pending", "retry", "held", "failed", "stopped"];
    const SHOWN: usize = 100;
    let Some(backlog) = &snapshot.facts.backlog else { return Markup::default() };
    let stopped: BTreeSet<&str> = snapshot.facts.stops.iter().map(|it| it.aggregate_type.as_str()).collect();
    let paused: BTreeSet<&str> = snapshot.facts.paused.iter().filter_map(|it| it.aggregate_type.as_deref()).collect();
    let all_paused = snapshot.facts.paused.iter().any(|it| it.aggregate_type.is_none());
    // Also those of which nothing waits: somebody may want to pause them before something does.
    let mapped = snapshot.mapped.iter().map(String::as_str);
    let kinds: BTreeSet<&str> =
        backlog.by_aggregate_type.keys().map(String::as_str).chain(mapped).chain(paused.iter().copied()).collect();
    let none = BTreeMap::new();
    html! {
        section class="card" data-live="types" aria-labelledby="types" {
            div class="head" {
                h2 id="types" { "Backlog by aggregate type" }
                @if visitor.may_change() && !all_paused { a href="/pause" { "Pause everything" } }
            }
            div class="scroll" tabindex="0" role="region" aria-labelledby="types" {
                table {
                    thead { tr {
                        th scope="col" { "Aggregate type" }
                        @for word in WORDS { th scope="col" class="n" { (word) } }
                        @if visitor.may_change() { th scope="col" class="n" { span class="sr" { "Pause or resume" } } }
                    } }
                    tbody {
                        @for kind in kinds.iter().take(SHOWN) {
                            @let by_status = backlog.by_aggregate_type.get(*kind).unwrap_or(&none);
                            @let query = form_urlencoded(&[("aggregate_type", kind)]);
                            tr {
                                th scope="row" class="text" {
                                    (kind)
                                    @if stopped.contains(kind) { " " (status("stopped")) }
                                    @if paused.contains(kind) { " " (status("paused")) }
                                }
                                @for word in WORDS {
                                    td class={ "n " (word) } {
                                        @match by_status.get(word).copied().unwrap_or(0) {
                                            0 => span class="zero" { "0" },
                                            n => a href=(link(word, Some(kind))) { (thousands(n)) },
                                        }
                                    }
                                }
                                @if visitor.may_change() {
                                    td class="n" {
                                        @if paused.contains(kind) { a href={ "/resume?" (query) } aria-label={ "Resume " (kind) } { "Resume" } }
                                        @else if !all_paused { a class="quiet" href={ "/pause?" (query) } aria-label={ "Pause " (kind) } { "Pause" } }
                                    }
                                }
                            }
                        }
                    }
                }
            }
            @if kinds.len() > SHOWN { p class="faint" { "… and others: GET /v1/backlog has all." } }
        }
    }
}
