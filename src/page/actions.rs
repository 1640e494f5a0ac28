//! What may be pressed: replay, skip, pause, resume. Each asks first, on a page of its own that names how many events it means
//! and takes the reason; no script is needed.
//!
//! Guarantees: nothing happens but by the form that named the number, and only while that number still holds.

use std::time::Duration;

use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Form, extract};
use maud::{Markup, html};
use serde::Deserialize;

use super::events::path_segment;
use super::layout::{Place, answer, page, sorry};
use super::overview::form_urlencoded;
use super::words::{beginning, several, thousands};
use super::{Page, State, Visitor, Who, refused};
use crate::operator::{Bulk, By, EventRef, Filter, OperatorError, Verb, What};

/// How long a form waits for batches in flight: then it says that they are.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a form says.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Said {
    reason: String,
    expected: Option<u64>,
    force: Option<String>,
    aggregate_type: String,
}

/// What is paused or resumed; empty is everything.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Kind {
    aggregate_type: String,
}

/// What was done, told on the page that follows.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Done {
    did: String,
    n: Option<u64>,
    refused: Option<u64>,
    in_flight: Option<u64>,
}

/// A question before something is done.
struct Question<'a> {
    title: String,
    meaning: String,
    /// Where the form goes, and where it leads back to.
    action: String,
    back: &'a str,
    button: String,
    danger: bool,
    hidden: Vec<(&'static str, String)>,
    /// Why the last try came to nothing.
    problem: Option<String>,
    /// What else would have to be said.
    force: Option<&'static str>,
    reason: &'a str,
}

impl Question<'_> {
    fn ask(&self, status: StatusCode, visitor: &Visitor) -> Response {
        let body = html! {
            section class="card ask" {
                h1 { (self.title) }
                p { (self.meaning) }
                @if let Some(problem) = &self.problem { p class="problem bad" role="alert" { (problem) } }
                form method="post" action=(self.action) {
                    @for (name, value) in &self.hidden { input type="hidden" name=(name) value=(value); }
                    label for="reason" { "Why" span class="faint" { " – kept in the audit trail" } }
                    input id="reason" name="reason" value=(self.reason) required autofocus maxlength="500" autocomplete="off";
                    @if let Some(force) = self.force {
                        label class="tick" { input type="checkbox" name="force" value="on"; span { (force) } }
                    }
                    div class="buttons" {
                        button type="submit" class=(if self.danger { "danger" } else { "main" }) { (self.button) }
                        a class="button" href=(self.back) { "Cancel" }
                    }
                }
            }
        };
        answer(status, page(Place::Nowhere, &self.title, visitor, &body))
    }
}

fn verb_of(word: &str) -> Option<Verb> {
    [Verb::Replay, Verb::Skip].into_iter().find(|verb| verb.as_str() == word)
}

fn capital(verb: Verb) -> &'static str {
    match verb {
        Verb::Replay => "Replay",
        Verb::Skip => "Skip",
    }
}

/// Somebody who may only look, or a word that is none.
fn may(visitor: &Visitor, word: &str) -> Result<Verb, Box<Response>> {
    let Some(verb) = verb_of(word) else { return Err(Box::new(super::nothing_here(visitor))) };
    may_change(visitor).map(|()| verb)
}

fn may_change(visitor: &Visitor) -> Result<(), Box<Response>> {
    if visitor.may_change() {
        return Ok(());
    }
    let why = "The token that you signed in with may read, not change. Sign in with an admin's.";
    Err(Box::new(sorry(StatusCode::FORBIDDEN, visitor, "You may look, not change", why)))
}

fn by(visitor: &Visitor, reason: &str) -> Result<By, OperatorError> {
    By::new(visitor.name.as_deref().unwrap_or("local"), reason)
}

/// `GET /events/{id}/{verb}`
pub(super) async fn ask_one(
    extract::State(state): State,
    Extension(visitor): Who,
    Path((id, word)): Path<(String, String)>,
) -> Response {
    match may(&visitor, &word) {
        Ok(verb) => one(&state, &visitor, verb, &id, &Said::default(), None).await,
        Err(refusal) => *refusal,
    }
}

/// `POST /events/{id}/{verb}`
pub(super) async fn do_one(
    extract::State(state): State,
    Extension(visitor): Who,
    Path((id, word)): Path<(String, String)>,
    Form(said): Form<Said>,
) -> Response {
    let verb = match may(&visitor, &word) {
        Ok(verb) => verb,
        Err(refusal) => return *refusal,
    };
    let done = async {
        let event: EventRef = id.parse().map_err(OperatorError::NotFound)?;
        let by = by(&visitor, &said.reason)?;
        match verb {
            Verb::Replay => state.operator.replay(&event, said.force.is_some(), &by).await,
            Verb::Skip => state.operator.skip(&event, &by).await,
        }
    };
    match done.await {
        Ok(changed) => {
            let did = [("did", verb.as_str()), ("n", if changed.changed { "1" } else { "0" })];
            Redirect::to(&format!("/events/{}?{}", path_segment(&id), form_urlencoded(&did))).into_response()
        }
        Err(error) => one(&state, &visitor, verb, &id, &said, Some(&error)).await,
    }
}

async fn one(
    state: &Page,
    visitor: &Visitor,
    verb: Verb,
    id: &str,
    said: &Said,
    error: Option<&OperatorError>,
) -> Response {
    let event = match id.parse::<EventRef>() {
        Ok(named) => state.operator.seen_by(visitor.role).event(&named).await,
        Err(why) => Err(OperatorError::NotFound(why)),
    };
    let event = match event {
        Ok(event) => event,
        Err(error) => return refused(visitor, &error),
    };
    let aggregate = &event.event.aggregate;
    let of = format!(
        "{} of {} {}",
        beginning(&event.event.event_type, 80).0,
        beginning(&aggregate.kind, 80).0,
        beginning(&aggregate.id, 80).0
    );
    let behind = match event.holds_back {
        0 => String::new(),
        n => format!(" {} held behind it then go on.", several(n, "later event")),
    };
    let meaning = match verb {
        Verb::Replay => format!("{of}. It is tried again as if it never had been.{behind}"),
        Verb::Skip => {
            format!("{of}. It is passed over and not applied: the new database goes without what it says.{behind}")
        }
    };
    let back = format!("/events/{}", event.event.id);
    let force = match error {
        Some(OperatorError::Refused { code: "processed" | "newer_applied" | "newer_unknown", .. }) => {
            Some("All the same: I know that it may overwrite newer state.")
        }
        _ => None,
    };
    let question = Question {
        title: format!("{} event {}?", capital(verb), event.event.id),
        meaning,
        action: format!("{back}/{}", verb.as_str()),
        back: &back,
        button: format!("{} 1 event", capital(verb)),
        danger: verb == Verb::Skip,
        hidden: Vec::new(),
        problem: error.map(ToString::to_string),
        force,
        reason: &said.reason,
    };
    question.ask(error.map_or(StatusCode::OK, |_| StatusCode::CONFLICT), visitor)
}

/// `GET /failures/{cause}/{verb}`
pub(super) async fn ask_many(
    extract::State(state): State,
    Extension(visitor): Who,
    Path((cause, word)): Path<(String, String)>,
) -> Response {
    match may(&visitor, &word) {
        Ok(verb) => many(&state, &visitor, verb, &cause, &Said::default(), None).await,
        Err(refusal) => *refusal,
    }
}

/// `POST /failures/{cause}/{verb}`
pub(super) async fn do_many(
    extract::State(state): State,
    Extension(visitor): Who,
    Path((cause, word)): Path<(String, String)>,
    Form(said): Form<Said>,
) -> Response {
    let verb = match may(&visitor, &word) {
        Ok(verb) => verb,
        Err(refusal) => return *refusal,
    };
    let done = async {
        let by = by(&visitor, &said.reason)?;
        // Without a number, nobody was asked.
        let bulk = Bulk { expected: Some(said.expected.unwrap_or(0)), ..of_cause(&cause) };
        state.operator.bulk(verb, &bulk, &by, state.snapshots.shutdown()).await
    };
    match done.await {
        Ok(result) => {
            let (n, refused) = (result.changed.to_string(), result.refused.to_string());
            let did = [("did", verb.as_str()), ("n", &n), ("refused", &refused)];
            Redirect::to(&format!("/failures?{}", form_urlencoded(&did))).into_response()
        }
        Err(error) => many(&state, &visitor, verb, &cause, &said, Some(&error)).await,
    }
}

fn of_cause(cause: &str) -> Bulk {
    Bulk { filter: Filter { cause: Some(cause.to_owned()), ..Filter::default() }, ..Bulk::default() }
}

async fn many(
    state: &Page,
    visitor: &Visitor,
    verb: Verb,
    cause: &str,
    said: &Said,
    error: Option<&OperatorError>,
) -> Response {
    let counted = async {
        let by = By::new("page", "dry run")?;
        let bulk = Bulk { dry_run: true, ..of_cause(cause) };
        state.operator.bulk(verb, &bulk, &by, state.snapshots.shutdown()).await
    };
    let n = match counted.await {
        Ok(counted) => counted.matched,
        Err(error) => return refused(visitor, &error),
    };
    if n == 0 && error.is_none() {
        let why = "No event fails for this cause any more: it was mended, replayed or skipped.";
        return sorry(StatusCode::NOT_FOUND, visitor, "This cause is gone", why);
    }
    let back = super::failures::address(cause);
    let events = several(n, "event");
    let meaning = match verb {
        Verb::Replay => {
            "All events that fail for this cause are tried again as if they never had been; what is held behind them goes on when they pass. Mend the cause first."
        }
        Verb::Skip => {
            "All events that fail for this cause are passed over and not applied: the new database goes without what they say. What is held behind them goes on."
        }
    };
    let question = Question {
        title: format!("{} {events}?", capital(verb)),
        meaning: meaning.to_owned(),
        action: format!("{back}/{}", verb.as_str()),
        back: &back,
        button: format!("{} {events}", capital(verb)),
        danger: verb == Verb::Skip,
        hidden: vec![("expected", n.to_string())],
        problem: error.map(|error| match error {
            OperatorError::NotAsExpected { expected, matched } => format!(
                "Nothing was done: there were {} when you were asked, and there are {} now.",
                thousands(*expected),
                thousands(*matched)
            ),
            error => error.to_string(),
        }),
        force: None,
        reason: &said.reason,
    };
    question.ask(error.map_or(StatusCode::OK, |_| StatusCode::CONFLICT), visitor)
}

/// `GET /pause` and `GET /resume`
pub(super) async fn ask_pause(Extension(visitor): Who, Query(kind): Query<Kind>) -> Response {
    stop_or_go(&visitor, true, &kind.aggregate_type, "", None)
}

pub(super) async fn ask_resume(Extension(visitor): Who, Query(kind): Query<Kind>) -> Response {
    stop_or_go(&visitor, false, &kind.aggregate_type, "", None)
}

fn stop_or_go(visitor: &Visitor, pause: bool, kind: &str, reason: &str, error: Option<&OperatorError>) -> Response {
    if let Err(refusal) = may_change(visitor) {
        return *refusal;
    }
    let what = if kind.is_empty() { "everything" } else { beginning(kind, 80).0 };
    let (verb, meaning) = match (pause, kind.is_empty()) {
        (true, true) => (
            "Pause",
            "No event of any type is applied until somebody resumes, in every process and across restarts. Events wait in the outbox; none is lost.",
        ),
        (true, false) => (
            "Pause",
            "No event of this type is applied until somebody resumes, in every process and across restarts. Others flow; none is lost.",
        ),
        (false, _) => ("Resume", "What waits flows again at once."),
    };
    let question = Question {
        title: format!("{verb} {what}?"),
        meaning: meaning.to_owned(),
        action: if pause { "/pause".to_owned() } else { "/resume".to_owned() },
        back: "/",
        button: format!("{verb} {what}"),
        danger: pause && kind.is_empty(),
        hidden: vec![("aggregate_type", kind.to_owned())],
        problem: error.map(ToString::to_string),
        force: None,
        reason,
    };
    question.ask(error.map_or(StatusCode::OK, |_| StatusCode::CONFLICT), visitor)
}

/// `POST /pause`
pub(super) async fn do_pause(
    extract::State(state): State,
    Extension(visitor): Who,
    Form(said): Form<Said>,
) -> Response {
    change_pause(&state, &visitor, true, &said).await
}

/// `POST /resume`
pub(super) async fn do_resume(
    extract::State(state): State,
    Extension(visitor): Who,
    Form(said): Form<Said>,
) -> Response {
    change_pause(&state, &visitor, false, &said).await
}

async fn change_pause(state: &Page, visitor: &Visitor, pause: bool, said: &Said) -> Response {
    if let Err(refusal) = may_change(visitor) {
        return *refusal;
    }
    let kind = &said.aggregate_type;
    let what = if kind.is_empty() { What::All } else { What::AggregateType(kind.clone()) };
    let done = async {
        let by = by(visitor, &said.reason)?;
        match pause {
            true => state.operator.pause(&what, &by, Some(PATIENCE)).await,
            false => state.operator.resume(&what, &by).await,
        }
    };
    match done.await {
        Ok(done) => {
            state.snapshots.forget().await;
            let in_flight = done.in_flight.len().to_string();
            let word = if pause { "pause" } else { "resume" };
            Redirect::to(&format!("/?{}", form_urlencoded(&[("did", word), ("in_flight", &in_flight)]))).into_response()
        }
        Err(error) => stop_or_go(visitor, pause, kind, &said.reason, Some(&error)),
    }
}

/// What was just done, in words.
pub(super) fn done(done: &Done) -> Markup {
    let n = done.n.unwrap_or(0);
    let refused = match done.refused {
        Some(refused) if refused > 0 => format!(
            " {} not, because a newer event of the same aggregate was applied already: replay those one by one, if they are to overwrite it.",
            several(refused, "event")
        ),
        _ => String::new(),
    };
    let text = match (done.did.as_str(), n) {
        ("replay", 0) if done.refused.is_none() => "Nothing to do: it waits to be taken already.".to_owned(),
        ("replay", n) => format!("{} replayed.{refused}", several(n, "event")),
        ("skip", n) => format!("{} skipped.", several(n, "event")),
        ("pause", _) => match done.in_flight.unwrap_or(0) {
            0 => "Paused. No batch of it is in flight any more.".to_owned(),
            n => format!("Paused. In {} a batch may still be in flight.", several(n, "lane")),
        },
        ("resume", _) => "Resumed.".to_owned(),
        _ => return Markup::default(),
    };
    html! { p class="done" role="status" { (text) } }
}
