//! What alerts are about, and how this process sees each: pure.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::decide::Seen;
use crate::config::Alerts;
use crate::health::{Condition, Facts, Phase, conditions, say};

/// Of the oldest pending event's age.
pub(super) const LAG: &str = "lag";
/// Of the number of failed events.
pub(super) const FAILURES: &str = "failures";
/// Of a relay that waits for its databases.
pub(super) const STARTING: &str = "starting";
/// Of rows that a first copy left out.
pub(super) const ROWS_LEFT: &str = "rows_left";

/// One thing, as this process sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Subject {
    pub(super) seen: Seen,
    /// Where it is known.
    pub(super) since: Option<DateTime<Utc>>,
    /// From how much on it is an alert.
    pub(super) threshold: f64,
    /// For people, while it is so: what and what to do. Nothing in it comes from events or from a database's messages.
    pub(super) sentence: String,
    pub(super) remedy: String,
}

/// Whatever may be told, by its name.
pub(super) fn subjects(facts: &Facts, rules: &Alerts) -> BTreeMap<&'static str, Subject> {
    let found = conditions(facts);
    let mut all = BTreeMap::new();
    if !rules.lag.is_zero() {
        all.insert(LAG, lag(facts, rules));
    }
    if rules.failures > 0 {
        all.insert(FAILURES, failures(facts, rules));
    }
    for cause in rules.causes.iter().copied() {
        all.insert(cause, of_cause(cause, facts, &found));
    }
    all
}

/// Half the threshold is the lower one.
fn over(value: f64, threshold: f64) -> Seen {
    match value {
        value if value >= threshold => Seen::Over(value),
        value if value > threshold / 2.0 => Seen::Between(value),
        _ => Seen::Under,
    }
}

fn lag(facts: &Facts, rules: &Alerts) -> Subject {
    let threshold = rules.lag.as_secs_f64();
    let stands = facts.phase == Phase::Starting || facts.source_away.is_some() || facts.target_away.is_some();
    let (seen, seconds, pending) = match &facts.backlog {
        // That it grows then is told already.
        Some(backlog) if !stands => {
            let seconds = backlog.oldest_pending_seconds.unwrap_or(0.0);
            (over(seconds, threshold), seconds, backlog.pending)
        }
        _ => (Seen::Unknown, 0.0, 0),
    };
    let said = say(&Condition::Behind { seconds, pending }, facts);
    Subject { seen, since: None, threshold, sentence: said.sentence, remedy: said.remedy }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn failures(facts: &Facts, rules: &Alerts) -> Subject {
    let threshold = f64::from(rules.failures);
    let (seen, failed, held) = match &facts.backlog {
        Some(backlog) if facts.source_away.is_none() => {
            (over(backlog.failed as f64, threshold), backlog.failed, backlog.held)
        }
        _ => (Seen::Unknown, 0, 0),
    };
    let said = say(&Condition::Failing { failed, held }, facts);
    Subject { seen, since: None, threshold, sentence: said.sentence, remedy: said.remedy }
}

#[expect(clippy::cast_precision_loss, reason = "a handful")]
fn of_cause(cause: &'static str, facts: &Facts, found: &[Condition]) -> Subject {
    let name = |condition: &Condition| match condition {
        Condition::Starting(_) => Some(STARTING),
        Condition::RowsLeft { .. } => Some(ROWS_LEFT),
        other => other.cause(),
    };
    let standing: Vec<&Condition> = found.iter().filter(|condition| name(condition) == Some(cause)).collect();
    let mut subject =
        Subject { seen: Seen::Under, since: None, threshold: 1.0, sentence: String::new(), remedy: String::new() };
    let Some(first) = standing.first() else {
        let unknown = match cause {
            STARTING | "database_away" => false,
            "paused" | "divergent" => facts.source_away.is_some(),
            ROWS_LEFT => facts.rows_left.is_none(),
            // The relay, which would know, is not there yet.
            _ => facts.phase == Phase::Starting,
        };
        if unknown {
            subject.seen = Seen::Unknown;
        }
        return subject;
    };
    let said = say(first, facts);
    subject.seen = Seen::Over(standing.len() as f64);
    subject.since = match first {
        Condition::TargetAway { since, .. } => Some(*since),
        Condition::TypeStopped(report) => Some(report.since),
        Condition::Paused(paused) => Some(paused.at),
        _ => None,
    };
    subject.sentence = match standing.len() {
        1 => said.sentence,
        n => format!("{} And {} more of the kind.", said.sentence, n - 1),
    };
    subject.remedy = said.remedy;
    subject
}

/// What is said once it is over.
pub(super) fn over_again(what: &str) -> &'static str {
    match what {
        LAG => "The relay has caught up.",
        FAILURES => "The failed events have been dealt with.",
        STARTING => "The relay has started.",
        ROWS_LEFT => "No row of a first copy is left out any more.",
        "breaker_open" => "The new database answers again.",
        "database_away" => "The legacy database answers again.",
        "stopped" => "No aggregate type is stopped any more.",
        "unmapped" => "No event is unmapped any more.",
        "lane_stopped" => "No lane is stopped any more.",
        "divergent" => "No event is divergent any more.",
        "reload" => "The configuration can be used again.",
        "slow" => "Batches are fast again.",
        "paused" => "Nothing is paused any more.",
        _ => "It is over.",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::health::CAUSES;
    use crate::operator::Backlog;

    fn rules() -> Alerts {
        let mut causes = CAUSES.to_vec();
        causes.extend([STARTING, ROWS_LEFT]);
        let minute = Duration::from_secs(60);
        Alerts { webhook: None, lag: 5 * minute, failures: 4, causes, after: minute, recovery: minute, repeat: minute }
    }

    fn with(change: impl FnOnce(&mut Backlog)) -> Facts {
        let mut backlog = Backlog { pending: 9, ..Backlog::empty(Utc::now()) };
        change(&mut backlog);
        Facts { backlog: Some(Arc::new(backlog)), ..Facts::default() }
    }

    #[test]
    fn each_subject_is_seen_as_it_is() {
        let away = Some(("refused".to_owned(), Utc::now()));
        let late = || with(|b| b.oldest_pending_seconds = Some(400.0));
        for (facts, what, seen) in [
            (with(|_| {}), LAG, Seen::Under),
            (with(|b| b.oldest_pending_seconds = Some(150.0)), LAG, Seen::Under),
            (with(|b| b.oldest_pending_seconds = Some(299.0)), LAG, Seen::Between(299.0)),
            (late(), LAG, Seen::Over(400.0)),
            (Facts { target_away: away.clone(), ..late() }, LAG, Seen::Unknown),
            (Facts { source_away: Some("gone".into()), ..late() }, LAG, Seen::Unknown),
            (Facts::default(), LAG, Seen::Unknown),
            (with(|b| b.failed = 4), FAILURES, Seen::Over(4.0)),
            (with(|b| b.failed = 3), FAILURES, Seen::Between(3.0)),
            (with(|b| b.failed = 2), FAILURES, Seen::Under),
            (Facts { source_away: Some("gone".into()), ..with(|_| {}) }, FAILURES, Seen::Unknown),
            (Facts { target_away: away, ..with(|_| {}) }, "breaker_open", Seen::Over(1.0)),
            (with(|_| {}), "breaker_open", Seen::Under),
            (Facts { phase: Phase::Starting, ..Facts::default() }, "breaker_open", Seen::Unknown),
            (Facts { phase: Phase::Starting, ..Facts::default() }, STARTING, Seen::Over(1.0)),
            (with(|_| {}), STARTING, Seen::Under),
            (Facts { source_away: Some("gone".into()), ..Facts::default() }, "database_away", Seen::Over(1.0)),
            (Facts { source_away: Some("gone".into()), ..Facts::default() }, "paused", Seen::Unknown),
            (Facts { divergent: 3, ..Facts::default() }, "divergent", Seen::Over(1.0)),
            (Facts::default(), ROWS_LEFT, Seen::Unknown),
            (Facts { rows_left: Some([].into()), ..Facts::default() }, ROWS_LEFT, Seen::Under),
            (
                Facts { rows_left: Some([("users".to_owned(), 3)].into()), ..Facts::default() },
                ROWS_LEFT,
                Seen::Over(1.0),
            ),
        ] {
            assert_eq!(subjects(&facts, &rules())[what].seen, seen, "{what}");
        }
    }

    #[test]
    fn what_is_switched_off_is_no_subject_and_every_cause_has_an_end() {
        let none = Alerts { lag: Duration::ZERO, failures: 0, causes: vec!["paused"], ..rules() };
        assert_eq!(subjects(&Facts::default(), &none).into_keys().collect::<Vec<_>>(), ["paused"]);
        for what in subjects(&Facts::default(), &rules()).into_keys() {
            assert_ne!(over_again(what), over_again(""), "{what}");
        }
    }
}
