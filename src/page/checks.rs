//! What `check` finds, run when somebody asks.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, extract};
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use tokio::sync::Mutex;

use super::layout::{Place, answer, badge, page};
use super::words::{beginning, moment, several, span};
use super::{State, Who};
use crate::check::{Finding, Severity, check};
use crate::config::Config;
use crate::health::Tone;

/// Whoever asks again this soon gets the same answer.
const FRESH: Duration = Duration::from_secs(3);
/// As long as a request may take, and a little less.
const WITHIN: Duration = Duration::from_secs(27);

/// One check at a time, whoever asks.
pub(super) struct Checks {
    config: Config,
    last: Mutex<Option<Checked>>,
}

#[derive(Clone)]
struct Checked {
    findings: Vec<Finding>,
    at: DateTime<Utc>,
    ended: Instant,
    took: Duration,
}

impl Checks {
    pub(super) fn new(config: Config) -> Checks {
        Checks { config, last: Mutex::default() }
    }

    async fn run(&self) -> Checked {
        let mut last = self.last.lock().await;
        if let Some(last) = last.as_ref().filter(|last| last.ended.elapsed() < FRESH) {
            return last.clone();
        }
        let started = Instant::now();
        let findings = check(&self.config).await;
        let checked = Checked { findings, at: Utc::now(), ended: Instant::now(), took: started.elapsed() };
        *last = Some(checked.clone());
        checked
    }
}

pub(super) async fn show(extract::State(state): State, Extension(visitor): Who) -> Response {
    let Ok(checked) = tokio::time::timeout(WITHIN, state.checks.run()).await else {
        let why = format!(
            "The databases did not answer everything within {WITHIN:?}. From a shell, outbox-relay check takes its time."
        );
        return super::layout::sorry(StatusCode::SERVICE_UNAVAILABLE, &visitor, "The check was not done in time", &why);
    };
    let count = |severity| checked.findings.iter().filter(|it| it.severity == severity).count() as u64;
    let (problems, warnings) = (count(Severity::Problem), count(Severity::Warning));
    let headline = match (problems, warnings) {
        (0, 0) => "No problems".to_owned(),
        (0, n) => format!("No problems, {}", several(n, "warning")),
        (n, 0) => several(n, "problem"),
        (n, m) => format!("{}, {}", several(n, "problem"), several(m, "warning")),
    };
    let body = html! {
        div class="title row" {
            div {
                h1 { (headline) }
                p class="faint" { "Both databases, rights, indexes and mappings were read, and nothing was changed: " (moment(checked.at)) ", in " (span(checked.took.as_secs_f64())) "." }
            }
            a class="button" href="/check" { "Check again" }
        }
        @if checked.findings.is_empty() {
            section class="card" { p class="empty" { "Connections, rights, versions, indexes and mappings are as they should be." } }
        } @else {
            ul class="findings" { @for finding in &checked.findings { (row(finding)) } }
        }
    };
    answer(StatusCode::OK, page(Place::Check, "Check", &visitor, &body))
}

fn row(finding: &Finding) -> Markup {
    let (tone, word) = match finding.severity {
        Severity::Problem => (Tone::Bad, "problem"),
        Severity::Warning => (Tone::Warn, "warning"),
        Severity::Note => (Tone::Calm, "note"),
    };
    html! {
        li class="card" {
            div class="meta" { (badge(tone, word)) span class="mono" { (finding.code) } }
            p class="what" { (beginning(&finding.what, 4000).0) }
            @if !finding.why.is_empty() { p class="faint" { (finding.why) } }
            @if !finding.remedy.is_empty() { pre { (finding.remedy) } }
        }
    }
}
