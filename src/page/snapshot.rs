//! What is so, gathered for everybody who looks: however many do, the databases are asked once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::health::{Facts, Flow, Phase};
use crate::config::Role;
use crate::operator::backlog::Latest;
use crate::operator::history::History;
use crate::operator::{Cause, Operator, Paused};

/// How long an answer of the source stands.
const FRESH: Duration = Duration::from_millis(900);
/// Asking may take this share of the time.
const SHARE: u32 = 10;
/// A source that takes longer is told of as away.
const ASK_WITHIN: Duration = Duration::from_secs(4);

/// What the source was asked, and what it said.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    pub(super) paused: Vec<Paused>,
    pub(super) divergent: u64,
    /// `None`: it could not be asked.
    pub(super) causes: Option<Vec<Cause>>,
    pub(super) away: Option<String>,
}

struct Kept {
    asked: Arc<Asked>,
    until: Instant,
}

/// The one place where pages ask.
pub(super) struct Snapshots {
    operator: Operator,
    backlog: Latest,
    history: History,
    shutdown: CancellationToken,
    /// What each role may see of it.
    for_admins: Mutex<Option<Kept>>,
    for_readers: Mutex<Option<Kept>>,
}

/// All that the overview shows.
pub(super) struct Snapshot {
    pub(super) facts: Facts,
    pub(super) asked: Arc<Asked>,
    /// Aggregate types that some entity takes.
    pub(super) mapped: Vec<String>,
}

impl Snapshots {
    pub(super) fn new(operator: Operator, backlog: Latest, history: History, shutdown: CancellationToken) -> Snapshots {
        Snapshots { operator, backlog, history, shutdown, for_admins: Mutex::default(), for_readers: Mutex::default() }
    }

    /// Ends with the server.
    pub(super) fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Something was just changed: the next one who looks asks anew.
    pub(super) async fn forget(&self) {
        *self.for_admins.lock().await = None;
        *self.for_readers.lock().await = None;
    }

    /// As of a moment ago.
    pub(super) async fn take(&self, role: Role) -> Snapshot {
        let asked = self.ask(role).await;
        let mut facts = Facts { now: Utc::now(), ..Facts::default() };
        facts.phase = match self.operator.relay() {
            _ if self.shutdown.is_cancelled() => Phase::Stopping,
            None => Phase::Starting,
            Some(_) => Phase::Running,
        };
        if let Some(relay) = self.operator.relay() {
            let state = relay.state();
            facts.target_away = relay.breaker.report();
            facts.stops = relay.stops.report();
            facts.stopped_lanes = state.stopped_lanes.into_iter().collect();
            facts.slow_lanes = state.slow_lanes.into_iter().collect();
            facts.reload_error = state.reload_error;
            facts.source_away = state.source_away;
        }
        if facts.source_away.is_none() {
            facts.source_away.clone_from(&asked.away);
        }
        facts.paused.clone_from(&asked.paused);
        facts.divergent = asked.divergent;
        facts.failing = asked.causes.as_ref().map(|causes| {
            causes.iter().fold((0, 0), |(failed, retry), cause| (failed + cause.failed, retry + cause.retry))
        });
        facts.backlog = self.backlog.peek();
        facts.flow = self.history.latest(facts.now).map(|point| Flow {
            arriving: point.arriving.or(point.leaving).unwrap_or_default(),
            leaving: point.leaving.unwrap_or_default(),
            lag_p50: point.lag_p50,
            lag_p99: point.lag_p99,
        });
        if facts.phase == Phase::Starting {
            facts.waits_for = self.operator.waits_for();
        }
        Snapshot { facts, asked, mapped: self.operator.mapped() }
    }

    async fn ask(&self, role: Role) -> Arc<Asked> {
        let kept = if role == Role::Admin { &self.for_admins } else { &self.for_readers };
        let mut kept = kept.lock().await;
        if let Some(kept) = kept.as_ref().filter(|kept| kept.until > Instant::now()) {
            return kept.asked.clone();
        }
        let started = Instant::now();
        let answers = async {
            let paused = self.operator.paused().await?;
            let divergent = self.operator.divergent().await?;
            let causes = self.operator.seen_by(role).failures().await?;
            Ok::<_, crate::operator::OperatorError>(Asked { paused, divergent, causes: Some(causes), away: None })
        };
        let asked = match tokio::time::timeout(ASK_WITHIN, answers).await {
            Ok(Ok(asked)) => asked,
            Ok(Err(error)) => Asked { away: Some(error.to_string()), ..Asked::default() },
            Err(_) => Asked { away: Some(format!("no answer within {ASK_WITHIN:?}")), ..Asked::default() },
        };
        let asked = Arc::new(asked);
        *kept = Some(Kept { asked: asked.clone(), until: Instant::now() + FRESH.max(started.elapsed() * SHARE) });
        asked
    }
}
