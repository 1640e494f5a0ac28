//! Verification that goes on by itself beside the relay, at a rate that hurts nobody.
//!
//! Guarantees: of any number of processes one does it; it begins at most once in `[verify] every`, across restarts too.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Options, Outcome, VerifyError, verify};
use crate::job::{Via, Who};
use crate::relay::Shared;

/// Verifies again and again, until told to stop; returns at once if it is not configured.
pub async fn run(shared: &Shared, stop: &CancellationToken) {
    let every = shared.config.verify.every;
    if every.is_zero() {
        return;
    }
    let look = (every / 20).clamp(Duration::from_millis(100), Duration::from_secs(60));
    while !stop.is_cancelled() {
        match once(shared, every, stop).await {
            Ok(()) | Err(VerifyError::Stopped) => {}
            Err(error) => tracing::warn!("verification could not be done: {}", error.logged()),
        }
        tokio::select! {
            () = tokio::time::sleep(look) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn once(shared: &Shared, every: Duration, stop: &CancellationToken) -> Result<(), VerifyError> {
    let Some(begun) = shared.target.begin_due_report(every).await.map_err(VerifyError::Target)? else { return Ok(()) };
    // As they are now, not as they were at the start.
    let mut config = shared.config.clone();
    config.entities = shared.entities().to_vec();
    let reason = "[verify] every".to_owned();
    let who = Who { actor: "outbox-relay".to_owned(), reason, via: Via::Run };
    let options = Options { rate: Some(config.verify.rate), who, begun: Some(begun), ..Options::default() };
    let report = verify(&config, &shared.source, &shared.target, &options, stop, &|_| {}).await?;
    let (differences, stuck) = (report.differences(), report.stuck());
    match report.outcome {
        Outcome::Equal => tracing::info!(report = report.id, "verification: both databases are equal"),
        Outcome::Differs if differences == 0 => tracing::warn!(
            report = report.id,
            rows = stuck,
            "verification found rows behind failed events: outbox-relay failures"
        ),
        Outcome::Differs => tracing::warn!(
            report = report.id,
            differences,
            behind_failed_events = stuck,
            "verification found differences: outbox-relay verify --history, then outbox-relay repair"
        ),
        Outcome::CouldNot if stop.is_cancelled() => {}
        Outcome::CouldNot => {
            let why = report.entities.iter().filter_map(|e| e.logged.clone()).collect::<Vec<_>>().join("; ");
            tracing::warn!(report = report.id, why, "verification could not compare everything");
        }
    }
    Ok(())
}
