//! Whether it flows, in one sentence, with the cause and what to do.
//!
//! One pure function, from what is known to what is said. The first finding is the headline; the others are said below it.

use chrono::{DateTime, Utc};

use super::words::{clock, rate, several, span};
use crate::event::Lane;
use crate::operator::{Backlog, Paused};
use crate::relay::stops::{StopCode, StopReport};

/// The oldest pending event may be this old before the relay counts as behind.
pub(super) const BEHIND: f64 = 60.0;

/// Whether the relay of this process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Phase {
    /// It waits for its databases.
    Starting,
    #[default]
    Running,
    Stopping,
}

/// All that the sentence is made of.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) phase: Phase,
    /// What a relay that is starting waits for.
    pub(super) waits_for: Option<String>,
    pub(super) source_away: Option<String>,
    pub(super) target_away: Option<(String, DateTime<Utc>)>,
    pub(super) stopped_lanes: Vec<(Lane, String)>,
    pub(super) slow_lanes: Vec<Lane>,
    pub(super) stops: Vec<StopReport>,
    pub(super) reload_error: Option<String>,
    pub(super) paused: Vec<Paused>,
    pub(super) divergent: u64,
    pub(super) backlog: Option<std::sync::Arc<Backlog>>,
    /// Failed events and those in retry, where they are known better than from the last count.
    pub(super) failing: Option<(u64, u64)>,
    pub(super) flow: Option<Flow>,
    pub(super) now: DateTime<Utc>,
}

/// What has come and gone in the last minute or so.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Flow {
    /// Events a second.
    pub(super) arriving: f64,
    pub(super) leaving: f64,
    /// Seconds; `None`: nothing was applied.
    pub(super) lag_p50: Option<f64>,
    pub(super) lag_p99: Option<f64>,
}

/// What is the matter; stable words, for style sheets and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matter {
    Flowing,
    Failing,
    Behind,
    Slow,
    Starting,
    Stopping,
    Paused,
    Unmapped,
    TypeStopped,
    LaneStopped,
    TargetAway,
    SourceAway,
    Divergent,
    Reload,
}

impl Matter {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Matter::Flowing => "flowing",
            Matter::Failing => "failing",
            Matter::Behind => "behind",
            Matter::Slow => "slow",
            Matter::Starting => "starting",
            Matter::Stopping => "stopping",
            Matter::Paused => "paused",
            Matter::Unmapped => "unmapped",
            Matter::TypeStopped => "type-stopped",
            Matter::LaneStopped => "lane-stopped",
            Matter::TargetAway => "target-away",
            Matter::SourceAway => "source-away",
            Matter::Divergent => "divergent",
            Matter::Reload => "reload",
        }
    }

    /// One word for a badge and the title of the window.
    pub(super) fn word(self) -> &'static str {
        match self {
            Matter::Flowing => "Flowing",
            Matter::Failing => "Failures",
            Matter::Behind => "Behind",
            Matter::Slow => "Slow",
            Matter::Starting => "Starting",
            Matter::Stopping => "Stopping",
            Matter::Paused => "Paused",
            Matter::Unmapped => "Unmapped",
            Matter::TypeStopped | Matter::LaneStopped => "Stopped",
            Matter::TargetAway | Matter::SourceAway => "Database away",
            Matter::Divergent => "Divergent",
            Matter::Reload => "Configuration",
        }
    }

    pub(super) fn tone(self) -> Tone {
        match self {
            Matter::Flowing => Tone::Good,
            Matter::Starting | Matter::Stopping | Matter::Paused => Tone::Calm,
            Matter::Behind | Matter::Slow | Matter::Divergent | Matter::Reload | Matter::Unmapped => Tone::Warn,
            Matter::Failing | Matter::TypeStopped | Matter::LaneStopped | Matter::TargetAway | Matter::SourceAway => {
                Tone::Bad
            }
        }
    }
}

/// How urgent it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    /// On purpose, or about to pass.
    Calm,
    Warn,
    Bad,
}

impl Tone {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Tone::Good => "good",
            Tone::Calm => "calm",
            Tone::Warn => "warn",
            Tone::Bad => "bad",
        }
    }
}

/// One thing that is so.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finding {
    pub(super) matter: Matter,
    /// In plain words.
    pub(super) sentence: String,
    /// Why, as a database or a person said it.
    pub(super) cause: Option<String>,
    /// What it means for the events, and what to do.
    pub(super) remedy: String,
    /// The aggregate type that it is about; an empty one is everything.
    pub(super) about: Option<String>,
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
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    process(facts, &mut found);
    databases(facts, &mut found);
    lanes(facts, &mut found);
    let all_paused = paused_all(facts, &mut found);
    stopped_types(facts, &mut found);
    if let Some(backlog) = &facts.backlog {
        waiting(facts, backlog, &mut found);
    }
    paused_types(facts, &mut found);
    the_rest(facts, &mut found);
    let stands = found
        .iter()
        .any(|it| matches!(it.matter, Matter::Starting | Matter::Stopping | Matter::SourceAway | Matter::TargetAway));
    if !stands && !all_paused && found.is_empty() {
        found.push(flowing(facts));
    }
    found
}

fn process(facts: &Facts, found: &mut Vec<Finding>) {
    match facts.phase {
        Phase::Running => {}
        Phase::Stopping => found.push(Finding::new(
            Matter::Stopping,
            "The relay is shutting down.",
            "Batches in flight end first. Events wait in the outbox until a relay runs again.",
        )),
        Phase::Starting => {
            let finding = Finding::new(
                Matter::Starting,
                "The relay is starting: it waits for its databases.",
                "It goes on by itself as soon as both answer. Nothing is lost meanwhile.",
            );
            found.push(Finding { cause: facts.waits_for.clone(), ..finding });
        }
    }
}

fn databases(facts: &Facts, found: &mut Vec<Finding>) {
    if let Some(why) = &facts.source_away {
        let remedy = "Bring it back: the relay goes on by itself. What this page shows of the outbox is as of before.";
        found.push(Finding::new(Matter::SourceAway, "The legacy database does not answer.", remedy).because(why));
    }
    if let Some((why, since)) = &facts.target_away {
        let sentence = format!("The new database has not answered since {}.", clock(*since, facts.now));
        let remedy = "Bring it back: the relay goes on by itself. Events wait, and no attempt is counted.";
        found.push(Finding::new(Matter::TargetAway, sentence, remedy).because(why));
    }
}

fn lanes(facts: &Facts, found: &mut Vec<Finding>) {
    let Some((first, why)) = facts.stopped_lanes.first() else { return };
    let sentence = match facts.stopped_lanes.len() {
        1 => format!("Lane {first} has stopped and needs a decision."),
        n => format!("{n} lanes have stopped and need a decision."),
    };
    let remedy = "The other lanes flow. Operations guide, “Stopped lanes”, says what to do for this message.";
    found.push(Finding::new(Matter::LaneStopped, sentence, remedy).because(why));
}

fn paused_all(facts: &Facts, found: &mut Vec<Finding>) -> bool {
    let Some(pause) = facts.paused.iter().find(|it| it.aggregate_type.is_none()) else { return false };
    let sentence = format!("Everything is paused since {}, by {}.", clock(pause.at, facts.now), pause.actor);
    let remedy = match facts.backlog.as_ref().map_or(0, |backlog| backlog.stopped) {
        0 => "Events wait until somebody resumes.".to_owned(),
        n => format!("{} until somebody resumes.", capital(&wait(n))),
    };
    found.push(Finding::new(Matter::Paused, sentence, remedy).because(&pause.reason).about(""));
    true
}

fn stopped_types(facts: &Facts, found: &mut Vec<Finding>) {
    for report in &facts.stops {
        let kind = &report.aggregate_type;
        let waiting = stopped_of(facts, kind);
        let (matter, sentence, remedy) = match report.stop.code {
            StopCode::Unmapped => (
                Matter::Unmapped,
                format!("No entity takes events of {kind}: {}.", wait(waiting)),
                "Add an [[entity]] for it, or set its events to \"ignore\". No restart is needed.".to_owned(),
            ),
            StopCode::Mapping(_) => (
                Matter::TypeStopped,
                format!("{kind} has stopped since {}: its mapping does not fit.", clock(report.since, facts.now)),
                format!(
                    "{}, none has failed. Mend the file or the table: it resumes by itself.",
                    capital(&wait(waiting))
                ),
            ),
            StopCode::Refused(_) => (
                Matter::TypeStopped,
                format!(
                    "{kind} has stopped since {}: the new database refuses all of its events alike.",
                    clock(report.since, facts.now)
                ),
                format!(
                    "{}, none has failed. Mend the table, the mapping or the grant: it resumes by itself.",
                    capital(&wait(waiting))
                ),
            ),
        };
        let finding = Finding::new(matter, sentence, remedy).about(kind);
        let finding = if matter == Matter::Unmapped { finding } else { finding.because(&report.stop.message) };
        found.push(finding);
    }
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

fn waiting(facts: &Facts, backlog: &Backlog, found: &mut Vec<Finding>) {
    let behind = backlog.oldest_pending_seconds.unwrap_or(0.0);
    let away = facts.target_away.is_some() || facts.source_away.is_some();
    if behind > BEHIND && !away && facts.phase == Phase::Running {
        let sentence = format!("Behind by {}: {}.", span(behind), wait(backlog.pending));
        found.push(Finding::new(Matter::Behind, sentence, catching_up(facts.flow, backlog.pending)));
    }
    let failed = facts.failing.map_or(backlog.failed, |(failed, _)| failed);
    if failed > 0 {
        let sentence = match failed {
            1 => "1 event has failed and waits for you.".to_owned(),
            n => format!("{} have failed and wait for you.", several(n, "event")),
        };
        let held = match backlog.held {
            0 => String::new(),
            1 => ", with 1 later event held behind".to_owned(),
            n => format!(", with {} held behind", several(n, "later event")),
        };
        let aggregates = if failed == 1 { "Only its own aggregate stands" } else { "Only their own aggregates stand" };
        let remedy = format!("{aggregates}{held}; all others flow. Mend the cause, then replay.");
        found.push(Finding::new(Matter::Failing, sentence, remedy));
    }
    for (kind, n) in &backlog.unmapped {
        let sentence = match n {
            1 => format!("1 event of {kind} waits: no entity names its event type."),
            _ => format!("{} of {kind} wait: no entity names their event type.", several(*n, "event")),
        };
        let remedy = "Map the event type, or set it to \"ignore\". No restart is needed.";
        found.push(Finding::new(Matter::Unmapped, sentence, remedy).about(kind));
    }
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

fn paused_types(facts: &Facts, found: &mut Vec<Finding>) {
    for pause in &facts.paused {
        let Some(kind) = &pause.aggregate_type else { continue };
        let sentence = format!("{kind} is paused since {}, by {}.", clock(pause.at, facts.now), pause.actor);
        let remedy = format!("{}; other types flow.", capital(&wait(stopped_of(facts, kind))));
        found.push(Finding::new(Matter::Paused, sentence, remedy).because(&pause.reason).about(kind));
    }
}

fn the_rest(facts: &Facts, found: &mut Vec<Finding>) {
    if !facts.slow_lanes.is_empty() {
        let lanes: Vec<String> = facts.slow_lanes.iter().map(Lane::to_string).collect();
        let sentence = format!("A batch has been in flight for seconds, in lane {}.", lanes.join(", "));
        let remedy = "A database is slow, waits for a lock, or hangs: look at pg_stat_activity on both. After relay.deadline the \
                      batch is given up and tried again.";
        found.push(Finding::new(Matter::Slow, sentence, remedy));
    }
    if facts.divergent > 0 {
        let sentence = format!("The new database knows {} that the outbox forgot.", several(facts.divergent, "event"));
        let remedy =
            "The legacy database went back in time. It can wait until morning: operations guide, “Divergent events”.";
        found.push(Finding::new(Matter::Divergent, sentence, remedy));
    }
    if let Some(why) = &facts.reload_error {
        let sentence = "The edited configuration cannot be used; the last good one goes on.";
        found.push(Finding::new(Matter::Reload, sentence, "Mend the file; it is read again by itself.").because(why));
    }
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
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use chrono::TimeZone;

    use super::*;
    use crate::relay::stops::Stop;

    fn time(minute: u32) -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 1, 2, 3, minute, 0).single().unwrap_or_default()
    }

    fn calm() -> Facts {
        Facts { backlog: Some(Arc::new(backlog())), now: time(30), ..Facts::default() }
    }

    fn backlog() -> Backlog {
        Backlog {
            pending: 0,
            retry: 0,
            held: 0,
            failed: 0,
            stopped: 0,
            oldest_pending_seconds: None,
            by_aggregate_type: BTreeMap::new(),
            as_of: time(30),
            unmapped: BTreeMap::new(),
        }
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
            (with(|b| b.failed = 2), Matter::Failing, "2 events have failed", "stand; all others flow"),
            (Facts { slow_lanes: vec![Lane(1), Lane(4)], ..calm() }, Matter::Slow, "in lane 1, 4", "pg_stat_activity"),
            (Facts { divergent: 1, ..calm() }, Matter::Divergent, "knows 1 event that", "until morning"),
            (
                Facts { reload_error: Some("line 3".into()), ..calm() },
                Matter::Reload,
                "last good one goes on",
                "Mend the file",
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
