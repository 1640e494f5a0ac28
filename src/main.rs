//! The program: for now, the demo alone.

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;

use outbox_relay::demo::{self, DemoOptions, DemoOutcome};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> ExitCode {
    match demo().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn demo() -> anyhow::Result<ExitCode> {
    let terminal = stdout().is_terminal();
    let mut options =
        DemoOptions { terminal, color: terminal && std::env::var_os("NO_COLOR").is_none(), ..DemoOptions::default() };
    let mut words = std::env::args().skip(1);
    anyhow::ensure!(
        words.next().as_deref() == Some("demo"),
        "usage: outbox-relay demo [--rate 200] [--for 30s] [--listen ADDRESS]"
    );
    while let Some(flag) = words.next() {
        let value = words.next().unwrap_or_default();
        match flag.as_str() {
            "--rate" => options.rate = value.parse()?,
            "--for" => options.for_ = Some(humantime::parse_duration(&value)?),
            "--listen" => options.listen = Some(value.parse()?),
            other => anyhow::bail!("unknown flag {other}"),
        }
    }
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let mut signals =
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    tokio::spawn(async move {
        let [interrupt, terminate, hangup] = &mut signals;
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
        stop.cancel();
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        // A second one ends it at once; the guards clean up. Not one that comes with the first: `timeout` and `make` send two.
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        std::process::exit(130);
    });
    Ok(match demo::run(options, shutdown, stdout()).await? {
        DemoOutcome::Agree(_) | DemoOutcome::Interrupted => ExitCode::SUCCESS,
        DemoOutcome::Differ(_) | DemoOutcome::NotDrained => ExitCode::from(1),
    })
}
