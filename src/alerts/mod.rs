//! Alerts without a stack: messages to a webhook when something crosses a threshold, and when it is over.
//!
//! Guarantees: each alert is told once it has held for a while, again from time to time, and that it is over once no process has
//! seen it for a while; across restarts, and by one process of several, as long as the legacy database answers. While it does not,
//! each process tells what it sees by itself. The relay never waits for it. A webhook that does not take messages is logged once,
//! counted, and tried again.
//! Does not guarantee that a message arrives once: a process that dies between sending it and noting so has it sent again.

mod decide;
mod message;
mod post;
mod subject;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::decide::{Seen, Step, decide};
use self::message::Sender;
use self::post::{Refused, post};
use self::subject::{Subject, subjects};
use crate::config::{Alerts, Config, Webhook};
use crate::health::{Facts, Latest, Phase};
use crate::metrics::Metrics;
use crate::operator::Operator;
use crate::operator::alerts::{Telling, Told};
use crate::retry::Pause;

/// The longest that a webhook which asked to be left alone is.
const PATIENCE: Duration = Duration::from_secs(600);

fn sender(config: &Config) -> Sender {
    Sender {
        relay: format!("{} on {}", config.legacy.outbox, config.legacy.url.place()),
        instance: crate::job::host(),
        page: config.admin.url.clone(),
    }
}

/// Sends a message that says it is a test; why it was not taken.
pub async fn test(config: &Config, webhook: &Webhook) -> Result<(), String> {
    post(webhook, &sender(config).test(Utc::now())).await.map_err(|refused| refused.why)
}

/// The task that tells. Whoever starts it owns and joins it.
pub(crate) struct Teller {
    rules: Alerts,
    webhook: Webhook,
    sender: Sender,
    operator: Operator,
    metrics: Metrics,
    /// This process, towards the others.
    by: Uuid,
    over_since: BTreeMap<&'static str, Instant>,
    /// As last read, and as this process has changed it.
    told: BTreeMap<String, Told>,
    /// Told by this process alone, while the source did not answer: `None`, that it is over.
    alone: BTreeMap<String, Option<Told>>,
    looked: Option<Instant>,
    pause: Pause,
    not_before: Option<Instant>,
    /// The webhook does not take messages; it has been said.
    failing: bool,
}

impl Teller {
    /// `None` where no webhook is configured.
    pub(crate) fn new(config: &Config, operator: Operator, metrics: Metrics) -> Option<Teller> {
        Some(Teller {
            rules: config.alerts.clone(),
            webhook: config.alerts.webhook.clone()?,
            sender: sender(config),
            operator,
            metrics,
            by: Uuid::new_v4(),
            over_since: BTreeMap::new(),
            told: BTreeMap::new(),
            alone: BTreeMap::new(),
            looked: None,
            pause: Pause::new(Duration::from_secs(1), Duration::from_secs(60)),
            not_before: None,
            failing: false,
        })
    }

    /// Until the shutdown. What is being sent then is cut off.
    pub(crate) async fn run(mut self, mut latest: Latest, shutdown: CancellationToken) {
        tracing::info!(webhook = %self.webhook, "alerts are posted");
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = latest.changed() => if changed.is_err() { return },
            }
            let facts = latest.borrow_and_update().clone();
            let Some(facts) = facts else { continue };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.look(&facts) => {}
            }
        }
    }

    /// One look at everything; tells what is to be told.
    async fn look(&mut self, facts: &Facts) {
        if facts.phase == Phase::Stopping {
            return;
        }
        let shared = self.exchange(facts.source_away.is_none()).await;
        let mut seen = Vec::new();
        for (what, subject) in subjects(facts, &self.rules) {
            let held = self.held(what, subject.seen);
            match decide(subject.seen, held, self.told.get(what), &self.rules) {
                Step::Nothing => {}
                Step::Note => {
                    self.told.entry(what.to_owned()).and_modify(|told| told.seen_ago = Duration::ZERO);
                    seen.push(what.to_owned());
                }
                Step::Forget if shared => self.noted(self.operator.forget_alert(what).await),
                Step::Forget => {}
                Step::Tell(telling) => self.tell(what, telling, &subject, held, shared, facts.now).await,
            }
        }
        if shared && !seen.is_empty() {
            self.noted(self.operator.alerts_seen(&seen).await);
        }
    }

    /// Reads what all processes have told, and adds what this one has told alone. Whether the source answered; else what was
    /// read last stands, as old as it is by now.
    async fn exchange(&mut self, answers: bool) -> bool {
        let now = Instant::now();
        let passed = self.looked.replace(now).map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        let exchanged = async {
            if !answers {
                return Err(sqlx::Error::PoolTimedOut);
            }
            for (what, told) in &self.alone {
                match told {
                    Some(told) => self.operator.adopt_alert(what, self.by, told).await?,
                    None => self.operator.forget_alert(what).await?,
                }
            }
            self.operator.alerts_told().await
        };
        match exchanged.await {
            Ok(told) => {
                self.told = told.into_iter().collect();
                self.alone.clear();
                true
            }
            Err(error) => {
                tracing::debug!(%error, "what other processes have told of alerts is not known");
                for told in self.told.values_mut() {
                    told.told_ago += passed;
                    told.seen_ago += passed;
                }
                false
            }
        }
    }

    /// For how long it has been over its threshold, as this process sees it.
    fn held(&mut self, what: &'static str, seen: Seen) -> Duration {
        match seen {
            Seen::Over(_) => self.over_since.entry(what).or_insert_with(Instant::now).elapsed(),
            _ => {
                self.over_since.remove(what);
                Duration::ZERO
            }
        }
    }

    async fn tell(
        &mut self,
        what: &str,
        telling: Telling,
        subject: &Subject,
        held: Duration,
        shared: bool,
        now: DateTime<Utc>,
    ) {
        if self.not_before.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let value = match subject.seen {
            Seen::Over(value) | Seen::Between(value) => value,
            Seen::Under | Seen::Unknown => 0.0,
        };
        let begun = || subject.since.unwrap_or_else(|| now - TimeDelta::from_std(held).unwrap_or_default());
        let before = match (telling, self.told.get(what)) {
            (Telling::Again | Telling::Over, Some(told)) => told.clone(),
            _ => Told::now(begun(), value, now),
        };
        if shared {
            match self.operator.claim_alert(what, self.by, telling, &before).await {
                Ok(true) => {}
                Ok(false) => return,
                // The next look sees whether the source is away.
                Err(error) => return self.noted(Err(error)),
            }
        }
        let said = Told { value: if telling == Telling::Over { before.value } else { value }, ..before };
        let message = self.sender.about(what, telling, subject, &said, now);
        let sent = self.answered(post(&self.webhook, &message).await, what);
        if shared {
            self.noted(self.operator.alert_done(what, self.by, telling, sent, value).await);
        } else if sent {
            self.told_alone(what, telling, Told::now(said.since, value, now));
        }
    }

    fn told_alone(&mut self, what: &str, telling: Telling, told: Told) {
        if telling == Telling::Over {
            self.told.remove(what);
            self.alone.insert(what.to_owned(), None);
        } else {
            self.told.insert(what.to_owned(), told.clone());
            self.alone.insert(what.to_owned(), Some(told));
        }
    }

    /// Whether it was taken. A webhook that takes nothing is left alone for a while, longer each time.
    fn answered(&mut self, answer: Result<(), Refused>, what: &str) -> bool {
        self.metrics.alert(answer.is_ok());
        match answer {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!(webhook = %self.webhook, "the webhook takes alerts again");
                }
                self.pause.reset();
                self.not_before = None;
                tracing::info!(alert = what, "an alert was posted");
                true
            }
            Err(Refused { why, wait }) => {
                let pause = self.pause.next_pause().max(wait.unwrap_or_default().min(PATIENCE));
                self.not_before = Some(Instant::now() + pause);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(webhook = %self.webhook, error = why, "an alert could not be posted; trying again");
                }
                false
            }
        }
    }

    fn noted(&self, noted: sqlx::Result<()>) {
        if let Err(error) = noted {
            tracing::debug!(%error, "an alert could not be noted");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::http::StatusCode;
    use axum::routing::post;

    use super::*;

    /// A webhook that keeps what it is sent.
    async fn webhook(answer: StatusCode) -> (String, Arc<Mutex<Vec<serde_json::Value>>>) {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keep = kept.clone();
        let handler = move |body: axum::Json<serde_json::Value>| {
            keep.lock().unwrap().push(body.0);
            async move { answer }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/s3cret", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, axum::Router::new().route("/s3cret", post(handler))).into_future());
        (url, kept)
    }

    fn teller(url: &str) -> Teller {
        let mut config =
            Config::for_databases("postgres://relay@127.0.0.1:1/m", "postgres://relay@127.0.0.1:1/u").unwrap();
        config.alerts.webhook = Some(Webhook::parse(url).unwrap());
        (config.alerts.after, config.alerts.recovery) = (Duration::ZERO, Duration::ZERO);
        Teller::new(&config, Operator::new(&config).unwrap(), Metrics::default()).unwrap()
    }

    fn away(source: bool, target: bool) -> Facts {
        Facts {
            source_away: source.then(|| "refused".to_owned()),
            target_away: target.then(|| ("refused".to_owned(), Utc::now())),
            now: Utc::now(),
            ..Facts::default()
        }
    }

    #[tokio::test]
    async fn while_the_source_is_away_a_process_tells_by_itself_and_each_thing_once() {
        let (url, kept) = webhook(StatusCode::OK).await;
        let mut teller = teller(&url);
        for facts in [away(true, false), away(true, false), away(true, true), away(true, true), away(true, false)] {
            teller.look(&facts).await;
        }
        let told: Vec<(String, String)> = kept
            .lock()
            .unwrap()
            .iter()
            .map(|it| (it["what"].as_str().unwrap().to_owned(), it["state"].as_str().unwrap().to_owned()))
            .collect();
        let expected = [("database_away", "firing"), ("breaker_open", "firing"), ("breaker_open", "resolved")];
        assert_eq!(told, expected.map(|(what, state)| (what.to_owned(), state.to_owned())));
    }

    #[tokio::test]
    async fn a_webhook_that_refuses_is_left_alone_for_a_while() {
        let (url, kept) = webhook(StatusCode::INTERNAL_SERVER_ERROR).await;
        let mut teller = teller(&url);
        for _ in 0..3 {
            teller.look(&away(true, true)).await;
        }
        assert_eq!(kept.lock().unwrap().len(), 1);
        assert!(teller.failing);
        let text = teller.metrics.encode();
        assert!(text.contains("outbox_relay_alerts_total{result=\"failed\"} 1"), "{text}");
    }

    #[tokio::test]
    async fn an_error_does_not_tell_the_address() {
        for url in [
            "http://127.0.0.1:1/s3cret",
            "http://s3cret:s3cret@127.0.0.1:1/s3cret?s3cret",
            "http://s3cret.invalid/s3cret",
        ] {
            let webhook = Webhook::parse(url).unwrap();
            let config = Config::for_databases("postgres://a/m", "postgres://a/u").unwrap();
            let why = test(&config, &webhook).await.unwrap_err();
            assert!(!why.contains("/s3cret") && !why.contains("s3cret:") && !why.contains("?s3cret"), "{why}");
        }
    }
}
