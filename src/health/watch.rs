//! Looks every other second, tells the metric `degraded`, and keeps the latest facts for alerts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Facts, Gatherer, conditions};
use crate::metrics::Metrics;

/// Between two looks. A look is two small statements on the source, in one round trip.
const LOOK: Duration = Duration::from_secs(2);
/// A source that takes longer is told of as away.
const ASK_WITHIN: Duration = Duration::from_secs(4);

/// Where the latest facts are; changes with every look.
pub(crate) type Latest = watch::Receiver<Option<Arc<Facts>>>;

/// The task that looks. Whoever starts it owns and joins it.
pub(crate) struct Watch {
    gatherer: Gatherer,
    metrics: Metrics,
    latest: watch::Sender<Option<Arc<Facts>>>,
}

impl Watch {
    pub(crate) fn new(gatherer: Gatherer, metrics: Metrics) -> (Watch, Latest) {
        let (latest, receiver) = watch::channel(None);
        (Watch { gatherer, metrics, latest }, receiver)
    }

    /// Until the shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        loop {
            let asked = tokio::select! {
                () = shutdown.cancelled() => return,
                asked = self.gatherer.ask(ASK_WITHIN) => asked,
            };
            let facts = self.gatherer.facts(&asked);
            self.metrics.degraded(conditions(&facts).iter().filter_map(super::Condition::cause));
            self.latest.send_replace(Some(Arc::new(facts)));
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}
