//! What is said to people of what is the matter: a sentence, the cause, and what to do.
//!
//! The first finding is the page's headline; the others are said below it.

use super::condition::{Condition, conditions};
use super::facts::{Facts, Flow};
use super::matter::Matter;
use crate::event::Lane;
use crate::operator::Paused;
use crate::relay::stops::{StopCode, StopReport};
use crate::words::{clock, rate, several, span};

/// One thing that is so.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finding {
    pub(crate) matter: Matter,
    /// In plain words.
    pub(crate) sentence: String,
    /// Why, as a database or a person said it.
    pub(crate) cause: Option<String>,
    /// What it means for the events, and what to do.
    pub(crate) remedy: String,
    /// The aggregate type that it is about; an empty one is everything.
    pub(crate) about: Option<String>,
}

impl Finding {
    fn new(matter: Matter, sentence: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { matter, sentence: sentence.into(), cause: None, remedy: remedy.into(), about: None }
    }

    fn because(self, cause: impl Into<String>) -> Finding {
        Finding { cause: Some(cause.into()), ..self }
    }

    fn about(self, aggregate_type: impl Into<String>) -> Finding {
        Finding { about: Some(aggregate_type.into()), ..self }
    }
}

/// What is to be said, the most urgent first; never empty.
pub(crate) fn findings(facts: &Facts) -> Vec<Finding> {
    let found: Vec<Finding> = conditions(facts).iter().map(|condition| say(condition, facts)).collect();
    if found.is_empty() { vec![flowing(facts)] } else { found }
}

/// One condition in words.
pub(crate) fn say(condition: &Condition, facts: &Facts) -> Finding {
    let matter = condition.matter();
    let now = facts.now;
    match condition {
        Condition::Stopping => Finding::new(
            matter,
            "The relay is shutting down.",
            "Batches in flight end first. Events wait in the outbox until a relay runs again.",
        ),
        Condition::Starting(waits_for) => {
            let sentence = "The relay is starting: it waits for its databases.";
            let remedy = "It goes on by itself as soon as both answer. Nothing is lost meanwhile.";
            Finding { cause: waits_for.clone(), ..Finding::new(matter, sentence, remedy) }
        }
        Condition::SourceAway(why) => {
            let remedy = "Bring it back: the relay goes on by itself. What is told of the outbox is as of before.";
            Finding::new(matter, "The legacy database does not answer.", remedy).because(why)
        }
        Condition::TargetAway { why, since } => {
            let sentence = format!("The new database has not answered since {}.", clock(*since, now));
            let remedy = "Bring it back: the relay goes on by itself. Events wait, and no attempt is counted.";
            Finding::new(matter, sentence, remedy).because(why)
        }
        Condition::LanesStopped(lanes) => {
            let sentence = match lanes.as_slice() {
                [(lane, _)] => format!("Lane {lane} has stopped and needs a decision."),
                many => format!("{} lanes have stopped and need a decision.", many.len()),
            };
            let remedy = "The other lanes flow. Operations guide, “Stopped lanes”, says what to do for this message.";
            let finding = Finding::new(matter, sentence, remedy);
            Finding { cause: lanes.first().map(|(_, why)| why.clone()), ..finding }
        }
        Condition::Paused(pause) => paused(matter, pause, facts),
        Condition::TypeStopped(report) => type_stopped(matter, report, facts),
        Condition::Behind { seconds, pending } => {
            let sentence = format!("Behind by {}: {}.", span(*seconds), wait(*pending));
            Finding::new(matter, sentence, catching_up(facts.flow, *pending))
        }
        Condition::Failing { failed, held } => failing(matter, *failed, *held),
        Condition::EventTypesUnmapped { aggregate_type, events } => {
            let sentence = match events {
                1 => format!("1 event of {aggregate_type} waits: no entity names its event type."),
                n => format!("{} of {aggregate_type} wait: no entity names their event type.", several(*n, "event")),
            };
            let remedy = "Map the event type, or set it to \"ignore\". No restart is needed.";
            Finding::new(matter, sentence, remedy).about(aggregate_type)
        }
        Condition::LanesSlow(lanes) => {
            let lanes: Vec<String> = lanes.iter().map(Lane::to_string).collect();
            let sentence = format!("A batch has been in flight for seconds, in lane {}.", lanes.join(", "));
            let remedy = "A database is slow, waits for a lock, or hangs: look at pg_stat_activity on both. After \
                          relay.deadline the batch is given up and tried again.";
            Finding::new(matter, sentence, remedy)
        }
        Condition::Divergent(events) => {
            let sentence = format!("The new database knows {} that the outbox forgot.", several(*events, "event"));
            let remedy = "The legacy database went back in time. It can wait until morning: operations guide, \
                          “Divergent events”.";
            Finding::new(matter, sentence, remedy)
        }
        Condition::Reload(why) => {
            let sentence = "The edited configuration cannot be used; the last good one goes on.";
            Finding::new(matter, sentence, "Mend the file; it is read again by itself.").because(why)
        }
        Condition::RowsLeft { entity, rows } => {
            let sentence = format!("The first copy of {entity} left {} out.", several(*rows, "row"));
            let remedy = format!(
                "Events flow. `outbox-relay backfill --status` says why, `outbox-relay backfill {entity}` tries them \
                 again; a repair or an equal verification settles them, too."
            );
            Finding::new(matter, sentence, remedy)
        }
    }
}

fn paused(matter: Matter, pause: &Paused, facts: &Facts) -> Finding {
    let since = clock(pause.at, facts.now);
    let (sentence, remedy) = match &pause.aggregate_type {
        None => {
            let stopped = facts.backlog.as_ref().map_or(0, |backlog| backlog.stopped);
            let remedy = match stopped {
                0 => "Events wait until somebody resumes.".to_owned(),
                n => format!("{} until somebody resumes.", capital(&wait(n))),
            };
            (format!("Everything is paused since {since}, by {}.", pause.actor), remedy)
        }
        Some(kind) => {
            let remedy = format!("{}; other types flow.", capital(&wait(stopped_of(facts, kind))));
            (format!("{kind} is paused since {since}, by {}.", pause.actor), remedy)
        }
    };
    let about = pause.aggregate_type.as_deref().unwrap_or_default();
    Finding::new(matter, sentence, remedy).because(&pause.reason).about(about)
}

fn type_stopped(matter: Matter, report: &StopReport, facts: &Facts) -> Finding {
    let kind = &report.aggregate_type;
    let waiting = wait(stopped_of(facts, kind));
    let since = clock(report.since, facts.now);
    let mends = |what: &str| format!("{}, none has failed. Mend {what}: it resumes by itself.", capital(&waiting));
    let finding = match report.stop.code {
        StopCode::Unmapped => Finding::new(
            matter,
            format!("No entity takes events of {kind}: {waiting}."),
            "Add an [[entity]] for it, or set its events to \"ignore\". No restart is needed.",
        ),
        StopCode::Mapping(_) => Finding::new(
            matter,
            format!("{kind} has stopped since {since}: its mapping does not fit."),
            mends("the file or the table"),
        )
        .because(&report.stop.message),
        StopCode::Refused(_) => Finding::new(
            matter,
            format!("{kind} has stopped since {since}: the new database refuses all of its events alike."),
            mends("the table, the mapping or the grant"),
        )
        .because(&report.stop.message),
    };
    finding.about(kind)
}

fn failing(matter: Matter, failed: u64, held: u64) -> Finding {
    let sentence = match failed {
        1 => "1 event has failed and waits for you.".to_owned(),
        n => format!("{} have failed and wait for you.", several(n, "event")),
    };
    let held = match held {
        0 => String::new(),
        1 => ", with 1 later event held behind".to_owned(),
        n => format!(", with {} held behind", several(n, "later event")),
    };
    let aggregates = if failed == 1 { "Only its own aggregate stands" } else { "Only their own aggregates stand" };
    Finding::new(matter, sentence, format!("{aggregates}{held}; no other waits for them. Mend the cause, then replay."))
}

fn stopped_of(facts: &Facts, kind: &str) -> u64 {
    let of_kind = facts.backlog.as_ref().and_then(|backlog| backlog.by_aggregate_type.get(kind));
    of_kind.and_then(|by_status| by_status.get("stopped").copied()).unwrap_or(0)
}

fn wait(n: u64) -> String {
    // Counted now and then: what stopped a moment ago is not in the count yet.
    if n == 0 {
        return "its events wait".to_owned();
    }
    if n == 1 { "1 event waits".to_owned() } else { format!("{} wait", several(n, "event")) }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Whether it will be over, and when.
fn catching_up(flow: Option<Flow>, pending: u64) -> String {
    let Some(flow) = flow else { return "How fast it catches up shows within a minute.".to_owned() };
    let gain = flow.leaving - flow.arriving;
    let speed = format!("{}/s come in, {}/s go out", rate(flow.arriving), rate(flow.leaving));
    if flow.leaving < 0.005 {
        return format!("{speed}: nothing moves. Look at both databases' load and locks.");
    }
    if gain <= flow.leaving * 0.02 {
        return format!("{speed}: it does not catch up. Raise relay.workers, or look at the new database's load.");
    }
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let left = pending as f64 / gain;
    format!("{speed}: caught up in about {}.", span(left.max(1.0)))
}

fn flowing(facts: &Facts) -> Finding {
    let pending = facts.backlog.as_ref().map_or(0, |backlog| backlog.pending);
    let remedy = match facts.flow {
        Some(Flow { lag_p50: Some(p50), lag_p99: Some(p99), .. }) => {
            format!("Half of the events arrive within {}, 99 of 100 within {}.", span(p50), span(p99))
        }
        _ if pending == 0 => "Nothing waits, and nothing was written lately.".to_owned(),
        _ => format!("{} to be taken.", capital(&wait(pending))),
    };
    let retried = facts.failing.map_or(0, |(_, retried)| retried);
    let sentence = match retried {
        0 => "Everything flows, and nothing fails.".to_owned(),
        1 => "Everything flows; 1 event was refused and is tried again.".to_owned(),
        n => format!("Everything flows; {} were refused and are tried again.", several(n, "event")),
    };
    Finding::new(Matter::Flowing, sentence, remedy)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::{DateTime, TimeZone, Utc};

    use super::super::facts::Phase;
    use super::*;
    use crate::operator::Backlog;
    use crate::relay::stops::Stop;

    fn time(minute: u32) -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 1, 2, 3, minute, 0).single().unwrap_or_default()
    }

    fn calm() -> Facts {
        Facts { backlog: Some(Arc::new(backlog())), now: time(30), ..Facts::default() }
    }

    fn backlog() -> Backlog {
        Backlog::empty(time(30))
    }

    fn with(change: impl FnOnce(&mut Backlog)) -> Facts {
        let mut counted = backlog();
        change(&mut counted);
        Facts { backlog: Some(Arc::new(counted)), ..calm() }
    }

    fn stop(code: StopCode) -> StopReport {
        let stop = Stop { code, message: "column \"mail\" is not there".into() };
        StopReport { aggregate_type: "User".into(), stop, since: time(10) }
    }

    fn pause(kind: Option<&str>) -> Paused {
        Paused { aggregate_type: kind.map(str::to_owned), reason: "migration".into(), actor: "ops".into(), at: time(1) }
    }

    #[test]
    fn each_matter_is_said_in_plain_words() {
        let flow = |arriving, leaving| Some(Flow { arriving, leaving, lag_p50: Some(0.008), lag_p99: Some(0.08) });
        let behind = || with(|b| (b.pending, b.oldest_pending_seconds) = (12_000, Some(245.0)));
        let table: Vec<(Facts, Matter, &str, &str)> = vec![
            (calm(), Matter::Flowing, "Everything flows, and nothing fails.", "Nothing waits"),
            (
                Facts { flow: flow(9.0, 9.0), ..calm() },
                Matter::Flowing,
                "Everything flows",
                "within 8 ms, 99 of 100 within 80 ms",
            ),
            (
                Facts { phase: Phase::Starting, waits_for: Some("refused".into()), ..Facts::default() },
                Matter::Starting,
                "waits for its databases",
                "by itself",
            ),
            (Facts { phase: Phase::Stopping, ..calm() }, Matter::Stopping, "shutting down", "wait in the outbox"),
            (
                Facts { source_away: Some("refused".into()), ..calm() },
                Matter::SourceAway,
                "legacy database",
                "Bring it back",
            ),
            (
                Facts { target_away: Some(("refused".into(), time(5))), ..calm() },
                Matter::TargetAway,
                "The new database has not answered since 03:05 UTC.",
                "no attempt is counted",
            ),
            (
                Facts { stopped_lanes: vec![(Lane(3), "no batch".into())], ..calm() },
                Matter::LaneStopped,
                "Lane 3 has stopped",
                "The other lanes flow",
            ),
            (
                Facts { paused: vec![pause(None)], ..with(|b| b.stopped = 1) },
                Matter::Paused,
                "Everything is paused since 03:01 UTC, by ops.",
                "1 event waits until somebody resumes",
            ),
            (
                Facts { paused: vec![pause(Some("User"))], ..calm() },
                Matter::Paused,
                "User is paused",
                "other types flow",
            ),
            (
                Facts { stops: vec![stop(StopCode::Mapping("mapping.column"))], ..calm() },
                Matter::TypeStopped,
                "mapping does not fit",
                "Its events wait, none has failed",
            ),
            (
                Facts { stops: vec![stop(StopCode::Refused("42501".into()))], ..calm() },
                Matter::TypeStopped,
                "refuses all",
                "grant",
            ),
            (
                Facts { stops: vec![stop(StopCode::Unmapped)], ..calm() },
                Matter::Unmapped,
                "No entity takes events of User",
                "\"ignore\"",
            ),
            (
                with(|b| b.unmapped = [("User".to_owned(), 2)].into()),
                Matter::Unmapped,
                "2 events of User wait",
                "\"ignore\"",
            ),
            (
                Facts { flow: flow(50.0, 250.0), ..behind() },
                Matter::Behind,
                "Behind by 4 min 5 s: 12,000 events wait.",
                "about 1 min",
            ),
            (Facts { flow: flow(250.0, 250.0), ..behind() }, Matter::Behind, "Behind by", "does not catch up"),
            (Facts { flow: flow(5.0, 0.0), ..behind() }, Matter::Behind, "Behind by", "nothing moves"),
            (behind(), Matter::Behind, "Behind by", "within a minute"),
            (
                with(|b| (b.failed, b.held) = (1, 2)),
                Matter::Failing,
                "1 event has failed",
                "2 later events held behind",
            ),
            (Facts { failing: Some((1, 0)), ..calm() }, Matter::Failing, "1 event has failed", "then replay"),
            (
                Facts { failing: Some((0, 2)), ..with(|b| b.failed = 5) },
                Matter::Flowing,
                "2 events were refused and are tried again",
                "Nothing waits",
            ),
            (with(|b| b.failed = 2), Matter::Failing, "2 events have failed", "stand; no other waits"),
            (Facts { slow_lanes: vec![Lane(1), Lane(4)], ..calm() }, Matter::Slow, "in lane 1, 4", "pg_stat_activity"),
            (Facts { divergent: 1, ..calm() }, Matter::Divergent, "knows 1 event that", "until morning"),
            (
                Facts { reload_error: Some("line 3".into()), ..calm() },
                Matter::Reload,
                "last good one goes on",
                "Mend the file",
            ),
            (
                Facts { rows_left: Some([("users".to_owned(), 3)].into()), ..calm() },
                Matter::RowsLeft,
                "The first copy of users left 3 rows out.",
                "`outbox-relay backfill users` tries them again",
            ),
        ];
        for (facts, matter, sentence, remedy) in table {
            let found = findings(&facts);
            assert_eq!(found[0].matter, matter, "{found:?}");
            assert!(found[0].sentence.contains(sentence), "{sentence}: {found:?}");
            assert!(found[0].remedy.contains(remedy), "{remedy}: {found:?}");
            assert_eq!(found.len(), 1, "{found:?}");
        }
    }

    #[test]
    fn the_most_urgent_comes_first_and_the_rest_is_not_forgotten() {
        let facts = Facts {
            target_away: Some(("refused".into(), time(5))),
            paused: vec![pause(Some("Order"))],
            divergent: 3,
            ..with(|b| (b.pending, b.failed, b.oldest_pending_seconds) = (9, 1, Some(300.0)))
        };
        let matters: Vec<Matter> = findings(&facts).into_iter().map(|it| it.matter).collect();
        assert_eq!(matters, [Matter::TargetAway, Matter::Failing, Matter::Paused, Matter::Divergent]);
    }

    #[test]
    fn causes_are_told_as_they_were_said() {
        let facts = Facts { paused: vec![pause(None)], ..calm() };
        assert_eq!(findings(&facts)[0].cause.as_deref(), Some("migration"));
        let facts = Facts { stops: vec![stop(StopCode::Mapping("mapping.column"))], ..calm() };
        assert_eq!(findings(&facts)[0].cause.as_deref(), Some("column \"mail\" is not there"));
    }
}
