//! `run`: the relay and the admin server in one process, from start to a clean end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::connect::{self, ConnectError};
use crate::metrics::Metrics;
use crate::relay::{self, Shared};
use crate::retry::Pause;
use crate::source::Remaining;

/// How it is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// End when nothing is pending or waiting for its next attempt.
    pub until_empty: bool,
    /// With `until_empty`: give up after this long.
    pub timeout: Option<Duration>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Shutdown,
    /// `until_empty`: what is left.
    Empty(Remaining),
    /// `until_empty`: events are still pending after the timeout.
    TimedOut,
}

/// Runs until `shutdown`, or until empty if so told. Waits for databases that are not up yet.
pub async fn run(config: Config, options: Options, shutdown: CancellationToken) -> anyhow::Result<Ended> {
    if let Some(refusal) = config.admin.refusal() {
        anyhow::bail!(refusal);
    }
    let give_up = options.timeout.map(|timeout| Instant::now() + timeout);
    let metrics = Metrics::default();
    let Some(shared) = wait_for(&config, &metrics, &shutdown, give_up).await? else {
        return Ok(if shutdown.is_cancelled() { Ended::Shutdown } else { Ended::TimedOut });
    };
    tracing::info!(
        legacy = %shared.config.legacy.url,
        new = %shared.config.new.url,
        workers = shared.config.relay.workers,
        lanes = shared.config.relay.lanes,
        entities = shared.entities().len(),
        "the relay runs"
    );
    let stop = shutdown.child_token();
    let relay = tokio::spawn(relay::run(shared.clone(), stop.clone()));
    let ended = if options.until_empty {
        tokio::select! {
            ended = until_empty(&shared, give_up) => ended,
            () = shutdown.cancelled() => Ended::Shutdown,
        }
    } else {
        shutdown.cancelled().await;
        Ended::Shutdown
    };
    stop.cancel();
    relay.await??;
    tracing::info!("the relay has ended");
    Ok(ended)
}

/// Both databases, as soon as they answer and have what `init` makes. `None`: told to end, or out of time.
async fn wait_for(
    config: &Config,
    metrics: &Metrics,
    shutdown: &CancellationToken,
    give_up: Option<Instant>,
) -> anyhow::Result<Option<Arc<Shared>>> {
    let mut pause = Pause::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut told = String::new();
    loop {
        let tried = async {
            let (source, target) = connect::open(config).await?;
            let shared = Shared::new(config.clone(), source, target, metrics.clone()).await;
            shared.map_err(|error| ConnectError::Away { side: "new", error })
        };
        let tried = tokio::select! {
            tried = tried => tried,
            () = shutdown.cancelled() => return Ok(None),
        };
        match tried {
            Ok(shared) => return Ok(Some(Arc::new(shared))),
            Err(error @ ConnectError::NotReady(_)) => return Err(error.into()),
            Err(error) => {
                let text = error.to_string();
                if text != told {
                    tracing::warn!("waiting for the databases: {text}");
                    told = text;
                }
            }
        }
        if give_up.is_some_and(|at| at <= Instant::now()) {
            return Ok(None);
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(pause.next_pause()) => {}
        }
    }
}

async fn until_empty(shared: &Shared, give_up: Option<Instant>) -> Ended {
    loop {
        match relay::drained(shared).await {
            Ok(Some(remaining)) => return Ended::Empty(remaining),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "could not see whether all is settled"),
        }
        if give_up.is_some_and(|at| at <= Instant::now()) {
            return Ended::TimedOut;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A second signal this soon came together with the first: `timeout`, `make` and terminals signal a whole group.
const TOGETHER: Duration = Duration::from_millis(500);

/// Cancelled by SIGTERM, SIGINT or SIGHUP; a second one ends the process at once.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let token = CancellationToken::new();
    let shutdown = token.clone();
    tokio::spawn(async move {
        let mut first = None;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
            match first {
                None => {
                    tracing::info!("told to end: the batches in flight are finished first");
                    shutdown.cancel();
                    first = Some(Instant::now());
                }
                Some(at) if at.elapsed() > TOGETHER => {
                    tracing::warn!("told twice: ending at once");
                    std::process::exit(1);
                }
                Some(_) => {}
            }
        }
    });
    Ok(token)
}
