//! Where the demo meets the parts of the product that it shows: configuration, admin server, telemetry. What each of them needs
//! is here and nowhere else in the demo.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Overrides};
use crate::operator::Operator;
use crate::relay::Shared;
use crate::run::serve_admin_api;

/// What the file in the demo's folder says. Nothing of the environment is asked: the demo is the same for everybody.
pub(super) fn configuration(file: &Path) -> anyhow::Result<Config> {
    Ok(Config::load(Some(file), &Overrides::default(), std::iter::empty())?)
}

/// Serves the admin API until `shutdown`.
pub(super) async fn serve_admin(
    listener: TcpListener,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let operator = Operator::new(&shared.config)?;
    operator.attach(shared.clone());
    for task in serve_admin_api(&shared.config, listener, &operator, &shared.metrics, &shutdown) {
        task.await?;
    }
    Ok(())
}

/// The relay's log goes to a file: the terminal belongs to the story. In a process that logs already, it stays where it is.
pub(super) fn log_to(file: &Path) -> anyhow::Result<()> {
    let writer = std::fs::File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::INFO).with_writer(writer);
    let _ = subscriber.try_init();
    Ok(())
}
