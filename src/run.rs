//! `run`: the relay and the admin server in one process, from start to a clean end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminState};
use crate::alerts::Teller;
use crate::config::Config;
use crate::connect::{self, ConnectError};
use crate::health::{Gatherer, Watch};
use crate::metrics::Metrics;
use crate::operator::Operator;
use crate::operator::backlog::{Latest, Sampler};
use crate::operator::history::History;
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
    if !options.until_empty {
        admin::check_certificate(&config.admin).map_err(anyhow::Error::msg)?;
    }
    // What a URL names is there, or it is told before anything is waited for.
    connect::target(&config, 1)?;
    let metrics = Metrics::default();
    // The admin API is there before the databases are, and says what is waited for.
    let stop = shutdown.child_token();
    let operator = Operator::new(&config)?;
    let admin = if options.until_empty { None } else { Some(bind(&config).await?) };
    if admin.is_some() {
        config.admin.weaknesses().iter().for_each(|weakness| tracing::warn!("{weakness}"));
    }
    let beside = match admin {
        Some(listener) => serve_admin_api(&config, listener, &operator, &metrics, &stop),
        None => Vec::new(),
    };
    let ended = relay_until_told(config, options, &operator, metrics, &shutdown).await;
    stop.cancel();
    for task in beside {
        task.await?;
    }
    ended
}

/// The relay alone.
async fn relay_until_told(
    config: Config,
    options: Options,
    operator: &Operator,
    metrics: Metrics,
    shutdown: &CancellationToken,
) -> anyhow::Result<Ended> {
    let give_up = options.timeout.map(|timeout| Instant::now() + timeout);
    let Some(shared) = wait_for(&config, operator, &metrics, shutdown, options, give_up).await? else {
        return Ok(if shutdown.is_cancelled() { Ended::Shutdown } else { Ended::TimedOut });
    };
    operator.attach(shared.clone());
    tracing::info!(
        legacy = %shared.config.legacy.url,
        new = %shared.config.new.url,
        workers = shared.config.relay.workers,
        lanes = shared.config.relay.lanes,
        entities = shared.entities().len(),
        "the relay runs"
    );
    let stop = shutdown.child_token();
    let mut relay = tokio::spawn(relay::run(shared.clone(), stop.clone()));
    let (verified, ended) = (shared.clone(), stop.clone());
    let verifying = tokio::spawn(async move {
        if !options.until_empty {
            crate::verify::keep::run(&verified, &ended).await;
        }
    });
    let ended = if options.until_empty {
        tokio::select! {
            ended = until_empty(&shared, give_up) => ended,
            // Or nothing would ever be done any more.
            told = until_told(shutdown, &mut relay) => told.map(|()| Ended::Shutdown)?,
        }
    } else {
        until_told(shutdown, &mut relay).await?;
        Ended::Shutdown
    };
    if ended == Ended::Shutdown {
        tracing::info!("told to end: the batches in flight are finished first");
    }
    stop.cancel();
    relay.await??;
    // A database that died without a word never answers; what was not noted is read again.
    if let Ok(ended) = tokio::time::timeout(GRACE, verifying).await {
        ended?;
    }
    tracing::info!("the relay has ended");
    Ok(ended)
}

/// Until the shutdown. It ends by itself only when a task of it has failed; but an idle one ends as soon as it is told to, and both
/// are then seen at once.
async fn until_told(shutdown: &CancellationToken, relay: &mut JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => Ok(()),
        broken = relay => {
            broken??;
            anyhow::bail!("the relay ended by itself");
        }
    }
}

async fn bind(config: &Config) -> anyhow::Result<TcpListener> {
    let address = config.admin.listen;
    TcpListener::bind(address).await.with_context(|| {
        format!("the admin API cannot listen on {address}: set admin.listen, or --listen, to another address")
    })
}

/// Starts what runs beside the relay until `stop`: the admin API, and the count of the backlog for it and for the metrics. The
/// caller joins the tasks.
pub fn serve_admin_api(
    config: &Config,
    listener: TcpListener,
    operator: &Operator,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Vec<JoinHandle<()>> {
    let (sampler, backlog) = Sampler::new(operator.clone());
    let history = History::default();
    let state = AdminState {
        operator: operator.clone(),
        backlog: backlog.clone(),
        tokens: config.admin.tokens.clone(),
        metrics: metrics.clone(),
        history: history.clone(),
        config: config.clone(),
    };
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "the admin API and the page listen");
    }
    let health = Gatherer {
        operator: operator.clone(),
        backlog: backlog.clone(),
        history: history.clone(),
        shutdown: stop.clone(),
    };
    let (watch, facts) = Watch::new(health, metrics.clone());
    let teller = Teller::new(config, operator.clone(), metrics.clone());
    let (told, ended) = (metrics.clone(), stop.clone());
    let served = stop.clone();
    let alerts = teller.map(|teller| tokio::spawn(teller.run(facts, stop.clone())));
    let beside = [
        tokio::spawn(sampler.run(stop.clone())),
        tokio::spawn(watch.run(stop.clone())),
        tokio::spawn(history.keep(operator.clone(), metrics.clone(), backlog.clone(), stop.clone())),
        tokio::spawn(async move { tell_backlog(&told, backlog, ended).await }),
        tokio::spawn(async move {
            if let Err(error) = admin::serve(listener, state, served).await {
                tracing::error!(%error, "the admin API ended");
            }
        }),
    ];
    beside.into_iter().chain(alerts).collect()
}

/// Passes every new count of the backlog on to the metrics.
async fn tell_backlog(metrics: &Metrics, mut backlog: Latest, stop: CancellationToken) {
    loop {
        let sample = tokio::select! {
            () = stop.cancelled() => return,
            sample = backlog.next() => match sample {
                Some(sample) => sample,
                None => return,
            },
        };
        let counts = sample
            .by_aggregate_type
            .iter()
            .flat_map(|(kind, by_status)| by_status.iter().map(move |(status, n)| (kind.as_str(), *status, *n)));
        let oldest = sample.oldest_pending_seconds.and_then(|age| Duration::try_from_secs_f64(age).ok());
        metrics.backlog(counts, oldest);
    }
}

/// Both databases, as soon as they answer and have what `init` makes. `None`: told to end, or out of time.
///
/// A certificate that is not accepted mends itself no more than a wrong URL does; but whoever renews it should not have to restart
/// what waits for it, and the page tells of it meanwhile. With `until_empty` nobody is there to be told: it ends.
async fn wait_for(
    config: &Config,
    operator: &Operator,
    metrics: &Metrics,
    shutdown: &CancellationToken,
    options: Options,
    give_up: Option<Instant>,
) -> anyhow::Result<Option<Arc<Shared>>> {
    let mut pause = Pause::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut told = (String::new(), Instant::now());
    loop {
        let tried = async {
            let (source, target) = connect::open(config).await?;
            let shared = Shared::new(config.clone(), source, target, metrics.clone()).await;
            shared.map_err(|error| ConnectError::Away { side: "new", error })
        };
        let tried = tokio::select! {
            tried = tried => tried,
            () = shutdown.cancelled() => return Ok(None),
            () = at(give_up) => return Ok(None),
        };
        match tried {
            Ok(shared) => return Ok(Some(Arc::new(shared))),
            Err(error @ ConnectError::NotReady(_)) => return Err(error.into()),
            Err(error) if error.is_about_tls() && options.until_empty => return Err(error.into()),
            Err(error) => {
                let text = error.to_string();
                operator.wait_for(text.clone());
                if text != told.0 || (error.is_about_tls() && told.1.elapsed() > AGAIN) {
                    if error.is_about_tls() {
                        tracing::error!("waiting until somebody mends TLS to a database: {text}");
                    } else {
                        tracing::warn!("waiting for the databases: {text}");
                    }
                    told = (text, Instant::now());
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = at(give_up) => return Ok(None),
            () = tokio::time::sleep(pause.next_pause()) => {}
        }
    }
}

/// How often what only somebody's hand mends is said.
const AGAIN: Duration = Duration::from_secs(300);

/// Over at this time; never, without one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

async fn until_empty(shared: &Shared, give_up: Option<Instant>) -> Ended {
    loop {
        let started = Instant::now();
        match relay::drained(shared).await {
            Ok(Some(remaining)) => return Ended::Empty(remaining),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "could not see whether all is settled"),
        }
        if give_up.is_some_and(|at| at <= Instant::now()) {
            return Ended::TimedOut;
        }
        // The question walks over what was settled: it may cost a twentieth of the time, and is asked when nothing is seen to be done, or now and then.
        let pause = Duration::from_millis(50).max(started.elapsed() * 20).min(SELDOM);
        let seen = async {
            tokio::time::sleep(pause).await;
            let _ = tokio::time::timeout(SELDOM, shared.nothing_to_do.notified()).await;
        };
        let left = give_up.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
        let _ = tokio::time::timeout(left, seen).await;
    }
}

/// How long a verification may take to end.
const GRACE: Duration = Duration::from_secs(10);

/// How often it is asked whether a drain is over while there is something to do.
const SELDOM: Duration = Duration::from_secs(2);

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_relay_that_was_told_to_end_has_not_ended_by_itself() {
        for _ in 0..50 {
            let told = CancellationToken::new();
            let mut relay = tokio::spawn(async { Ok(()) });
            while !relay.is_finished() {
                tokio::task::yield_now().await;
            }
            told.cancel();
            assert!(until_told(&told, &mut relay).await.is_ok());
        }
        let mut relay = tokio::spawn(async { Ok(()) });
        assert!(until_told(&CancellationToken::new(), &mut relay).await.is_err());
    }
}
