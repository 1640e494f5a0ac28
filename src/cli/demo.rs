//! `demo`: everything on this machine, on databases of its own.

use std::io::{IsTerminal, stdout};

use super::Exit;
use super::args::DemoArgs;
use crate::demo::{self, DemoOptions, DemoOutcome};
use crate::run::on_signals;

/// Shows it; the first SIGTERM or SIGINT ends it cleanly.
pub(super) async fn command(args: &DemoArgs) -> anyhow::Result<Exit> {
    let terminal = stdout().is_terminal();
    let options = DemoOptions {
        rate: args.rate,
        for_: args.duration,
        listen: args.listen,
        terminal,
        color: terminal && std::env::var_os("NO_COLOR").is_none(),
    };
    Ok(match demo::run(options, on_signals()?, stdout()).await? {
        DemoOutcome::Agree(_) | DemoOutcome::Interrupted => Exit::Done,
        DemoOutcome::Differ(_) | DemoOutcome::NotDrained => Exit::Found,
    })
}
