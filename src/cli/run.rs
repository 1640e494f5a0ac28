//! `run`: the relay and the admin API, until told to end or until nothing is left to do.

use super::Exit;
use super::args::RunArgs;
use crate::config::Config;
use crate::run::{Ended, Options, on_signals, run};
use crate::source::Remaining;

/// Runs; the first SIGTERM or SIGINT ends it cleanly.
pub(super) async fn command(args: &RunArgs, config: Config) -> anyhow::Result<Exit> {
    let options = Options { until_empty: args.until_empty, timeout: args.timeout };
    Ok(exit(run(config, options, on_signals()?).await?))
}

fn exit(ended: Ended) -> Exit {
    match ended {
        Ended::Shutdown => Exit::Done,
        Ended::Empty(remaining) if remaining == Remaining::default() => Exit::Done,
        Ended::Empty(_) | Ended::TimedOut => Exit::Found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_tells_whether_all_was_settled() {
        assert_eq!(exit(Ended::Shutdown), Exit::Done);
        assert_eq!(exit(Ended::Empty(Remaining::default())), Exit::Done);
        assert_eq!(exit(Ended::Empty(Remaining { held: true, ..Remaining::default() })), Exit::Found);
        assert_eq!(exit(Ended::TimedOut), Exit::Found);
    }
}
