//! What is known, gathered from the relay of this process and from the source.

use std::time::Duration;

use chrono::Utc;
use tokio_util::sync::CancellationToken;

use super::facts::{Facts, Flow, Phase};
use crate::operator::backlog::Latest;
use crate::operator::history::History;
use crate::operator::{Operator, OperatorError, Paused};

/// What the source was asked, and what it said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) paused: Vec<Paused>,
    pub(crate) divergent: u64,
    /// Why it could not be asked.
    pub(crate) away: Option<String>,
}

/// Where facts come from. Clones share everything.
#[derive(Clone)]
pub(crate) struct Gatherer {
    pub(crate) operator: Operator,
    pub(crate) backlog: Latest,
    pub(crate) history: History,
    /// The process ends.
    pub(crate) shutdown: CancellationToken,
}

impl Gatherer {
    /// Asks the source; one that takes longer than this is told of as away.
    pub(crate) async fn ask(&self, within: Duration) -> Asked {
        let answers = async {
            let (paused, divergent) = self.operator.paused_and_divergent().await?;
            Ok::<_, OperatorError>(Asked { paused, divergent, away: None })
        };
        let away = match tokio::time::timeout(within, answers).await {
            Ok(Ok(asked)) => return asked,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {within:?}"),
        };
        Asked { away: Some(away), ..Asked::default() }
    }

    /// What the source said, and all that this process knows by itself.
    pub(crate) fn facts(&self, asked: &Asked) -> Facts {
        let mut facts = Facts {
            paused: asked.paused.clone(),
            divergent: asked.divergent,
            backlog: self.backlog.peek(),
            now: Utc::now(),
            ..Facts::default()
        };
        let relay = self.operator.relay();
        facts.phase = match relay {
            _ if self.shutdown.is_cancelled() => Phase::Stopping,
            None => Phase::Starting,
            Some(_) => Phase::Running,
        };
        match relay {
            Some(relay) => {
                let state = relay.state();
                facts.target_away = relay.breaker.report();
                facts.stops = relay.stops.report();
                facts.stopped_lanes = state.stopped_lanes.into_iter().collect();
                facts.slow_lanes = state.slow_lanes.into_iter().collect();
                facts.reload_error = state.reload_error;
                facts.source_away = state.source_away;
                facts.rows_left = state.rows_left;
            }
            None => facts.waits_for = self.operator.waits_for(),
        }
        if facts.source_away.is_none() {
            facts.source_away.clone_from(&asked.away);
        }
        facts.flow = self.history.latest(facts.now).map(|point| Flow {
            arriving: point.arriving.or(point.leaving).unwrap_or_default(),
            leaving: point.leaving.unwrap_or_default(),
            lag_p50: point.lag_p50,
            lag_p99: point.lag_p99,
        });
        facts
    }
}
