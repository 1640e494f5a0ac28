//! What is so: the judgement.

use chrono::{DateTime, Utc};

use super::facts::{Facts, Phase};
use super::matter::Matter;
use crate::event::Lane;
use crate::operator::Paused;
use crate::relay::stops::{StopCode, StopReport};

/// The oldest pending event may be this old, in seconds, before the relay counts as behind.
pub(crate) const BEHIND: f64 = 60.0;

/// One thing that is so, with what is known of it.
#[derive(Debug, Clone)]
pub(crate) enum Condition {
    Stopping,
    /// Waiting for its databases: for what.
    Starting(Option<String>),
    SourceAway(String),
    TargetAway {
        why: String,
        since: DateTime<Utc>,
    },
    /// With what each one needs; never empty.
    LanesStopped(Vec<(Lane, String)>),
    /// Everything, or a type.
    Paused(Paused),
    TypeStopped(StopReport),
    Behind {
        seconds: f64,
        pending: u64,
    },
    Failing {
        failed: u64,
        held: u64,
    },
    /// Events whose type of event no entity names.
    EventTypesUnmapped {
        aggregate_type: String,
        events: u64,
    },
    /// Never empty.
    LanesSlow(Vec<Lane>),
    Divergent(u64),
    Reload(String),
    /// By an entity's first copy, which has ended.
    RowsLeft {
        entity: String,
        rows: u64,
    },
}

impl Condition {
    pub(crate) fn matter(&self) -> Matter {
        match self {
            Condition::Stopping => Matter::Stopping,
            Condition::Starting(_) => Matter::Starting,
            Condition::SourceAway(_) => Matter::SourceAway,
            Condition::TargetAway { .. } => Matter::TargetAway,
            Condition::LanesStopped(_) => Matter::LaneStopped,
            Condition::Paused(_) => Matter::Paused,
            Condition::TypeStopped(StopReport { stop, .. }) if stop.code == StopCode::Unmapped => Matter::Unmapped,
            Condition::TypeStopped(_) => Matter::TypeStopped,
            Condition::Behind { .. } => Matter::Behind,
            Condition::Failing { .. } => Matter::Failing,
            Condition::EventTypesUnmapped { .. } => Matter::Unmapped,
            Condition::LanesSlow(_) => Matter::Slow,
            Condition::Divergent(_) => Matter::Divergent,
            Condition::Reload(_) => Matter::Reload,
            Condition::RowsLeft { .. } => Matter::RowsLeft,
        }
    }

    /// The cause that `/readyz` calls `degraded` for; `None`: being behind, failing events and rows that a copy left out
    /// degrade nothing, for no other event waits for them, and a relay that starts or stops is not ready at all.
    pub(crate) fn cause(&self) -> Option<&'static str> {
        self.matter().cause()
    }
}

/// All that is so, the most urgent first; empty: it flows, and nothing fails.
pub(crate) fn conditions(facts: &Facts) -> Vec<Condition> {
    let mut found = Vec::new();
    match facts.phase {
        Phase::Running => {}
        Phase::Stopping => found.push(Condition::Stopping),
        Phase::Starting => found.push(Condition::Starting(facts.waits_for.clone())),
    }
    found.extend(facts.source_away.clone().map(Condition::SourceAway));
    found.extend(facts.target_away.clone().map(|(why, since)| Condition::TargetAway { why, since }));
    if !facts.stopped_lanes.is_empty() {
        found.push(Condition::LanesStopped(facts.stopped_lanes.clone()));
    }
    let (all, types): (Vec<Paused>, Vec<Paused>) =
        facts.paused.iter().cloned().partition(|it| it.aggregate_type.is_none());
    found.extend(all.into_iter().map(Condition::Paused));
    found.extend(facts.stops.iter().cloned().map(Condition::TypeStopped));
    found.extend(waiting(facts));
    found.extend(types.into_iter().map(Condition::Paused));
    if !facts.slow_lanes.is_empty() {
        found.push(Condition::LanesSlow(facts.slow_lanes.clone()));
    }
    if facts.divergent > 0 {
        found.push(Condition::Divergent(facts.divergent));
    }
    found.extend(facts.reload_error.clone().map(Condition::Reload));
    let left = facts.rows_left.iter().flatten();
    found.extend(left.map(|(entity, rows)| Condition::RowsLeft { entity: entity.clone(), rows: *rows }));
    found
}

/// What the backlog tells, once it was counted.
fn waiting(facts: &Facts) -> Vec<Condition> {
    let mut found = Vec::new();
    let Some(backlog) = &facts.backlog else { return found };
    let seconds = backlog.oldest_pending_seconds.unwrap_or(0.0);
    let away = facts.target_away.is_some() || facts.source_away.is_some();
    if seconds > BEHIND && !away && facts.phase == Phase::Running {
        found.push(Condition::Behind { seconds, pending: backlog.pending });
    }
    let failed = facts.failing.map_or(backlog.failed, |(failed, _)| failed);
    if failed > 0 {
        found.push(Condition::Failing { failed, held: backlog.held });
    }
    let unmapped = backlog.unmapped.iter();
    found.extend(unmapped.map(|(kind, n)| Condition::EventTypesUnmapped { aggregate_type: kind.clone(), events: *n }));
    found
}
