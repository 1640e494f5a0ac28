//! What is posted: small, Slack-compatible, and fit for strangers. No payload, no database's words, no secret.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::subject::{Subject, over_again};
use crate::operator::alerts::{Telling, Told};
use crate::words::{clock, span};

/// Who sends it.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    /// The outbox, and the database that it is in.
    pub(super) relay: String,
    /// Host and number of the process.
    pub(super) instance: String,
    /// The page's address; empty: none.
    pub(super) page: String,
}

/// The document that is posted; its members are a contract, listed in docs/operations.md.
#[derive(Debug, Serialize)]
pub(super) struct Message {
    /// For people; all that Slack shows.
    text: String,
    /// `lag`, `failures`, `starting`, a cause of readiness, or `test`.
    what: String,
    /// `firing` or `resolved`.
    state: &'static str,
    /// Whether it was told before, and goes on.
    again: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<f64>,
    relay: String,
    instance: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    url: String,
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Slack and its like make markup of these, and an aggregate type may hold them.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Sender {
    fn message(&self, what: &str, head: &str, words: &str, now: DateTime<Utc>) -> Message {
        let mut text = escaped(&format!("{head}: {words} ({})", self.relay));
        if !self.page.is_empty() {
            text += &format!("\n{}", self.page);
        }
        Message {
            text,
            what: what.to_owned(),
            state: "firing",
            again: false,
            since: None,
            at: time(now),
            value: None,
            threshold: None,
            relay: self.relay.clone(),
            instance: self.instance.clone(),
            url: self.page.clone(),
        }
    }

    /// What is told of an alert.
    pub(super) fn about(
        &self,
        what: &str,
        telling: Telling,
        subject: &Subject,
        told: &Told,
        now: DateTime<Utc>,
    ) -> Message {
        let lasted = span((now - told.since).as_seconds_f64());
        let message = match telling {
            Telling::Begin => {
                self.message(what, "outbox-relay, alert", &format!("{} {}", subject.sentence, subject.remedy), now)
            }
            Telling::Again => {
                let since = clock(told.since, now);
                let words = format!("{} {} Since {since}.", subject.sentence, subject.remedy);
                self.message(what, "outbox-relay, still", &words, now)
            }
            Telling::Over => {
                let words = format!("{} It took {lasted}.", over_again(what));
                Message { state: "resolved", ..self.message(what, "outbox-relay, over", &words, now) }
            }
        };
        Message {
            again: telling == Telling::Again,
            since: Some(time(told.since)),
            value: (telling != Telling::Over).then_some(told.value),
            threshold: Some(subject.threshold),
            ..message
        }
    }

    /// What `alerts test` sends.
    pub(super) fn test(&self, now: DateTime<Utc>) -> Message {
        let words = "Nothing is wrong: somebody tried whether alerts arrive.";
        Message { state: "resolved", ..self.message("test", "outbox-relay, test", words, now) }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone as _;
    use serde_json::json;

    use super::super::decide::Seen;
    use super::*;

    #[test]
    fn a_message_is_for_people_and_for_programs() {
        let sender = Sender {
            relay: "public.outbox on legacy/monolith".into(),
            instance: "host:7".into(),
            page: "https://relay".into(),
        };
        let now = Utc.with_ymd_and_hms(2026, 1, 2, 3, 30, 0).unwrap();
        let told = Told::now(Utc.with_ymd_and_hms(2026, 1, 2, 3, 20, 0).unwrap(), 2.0, now);
        let subject = Subject {
            seen: Seen::Over(2.0),
            since: None,
            threshold: 1.0,
            sentence: "<!channel> is stopped.".into(),
            remedy: "Mend it.".into(),
        };
        let of = |telling| serde_json::to_value(sender.about("stopped", telling, &subject, &told, now)).unwrap();
        assert_eq!(
            of(Telling::Begin),
            json!({
                "text": "outbox-relay, alert: &lt;!channel&gt; is stopped. Mend it. (public.outbox on legacy/monolith)\nhttps://relay",
                "what": "stopped", "state": "firing", "again": false, "since": "2026-01-02T03:20:00Z",
                "at": "2026-01-02T03:30:00Z", "value": 2.0, "threshold": 1.0,
                "relay": "public.outbox on legacy/monolith", "instance": "host:7", "url": "https://relay",
            })
        );
        let again = of(Telling::Again);
        assert_eq!((&again["again"], &again["state"]), (&json!(true), &json!("firing")));
        assert!(again["text"].as_str().unwrap().contains("Since 03:20 UTC"), "{again}");
        let over = of(Telling::Over);
        assert_eq!((&over["state"], &over["value"]), (&json!("resolved"), &json!(null)));
        assert!(over["text"].as_str().unwrap().contains("No aggregate type is stopped any more. It took 10 min."));
    }
}
