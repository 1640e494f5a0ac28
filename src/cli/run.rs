//! `run`: the relay and the admin API, until told to end or until nothing is left to do.

use super::Exit;
use super::args::RunArgs;
use crate::config::Config;
use crate::run::{Ended, Options, on_signals, run};
use crate::source::Remaining;

/// Runs; the first SIGTERM or SIGINT ends it cleanly.
pub(super) async fn command(args: &RunArgs, config: Config) -> anyhow::Result<Exit> {
    let options = Options { until_empty: args.until_empty, timeout: args.timeout };
    let ended = run(config, options, on_signals()?).await?;
    if let Some(why) = why(&ended) {
        tracing::warn!("{why}");
    }
    Ok(exit(ended))
}

/// What the exit code 1 is for.
fn why(ended: &Ended) -> Option<&'static str> {
    match ended {
        Ended::Empty(remaining) if *remaining != Remaining::default() => {
            Some("not all is settled: failed, held or stopped events remain; outbox-relay status shows them")
        }
        Ended::TimedOut => Some("the timeout has passed before all was settled"),
        _ => None,
    }
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
        for ended in [Ended::Empty(Remaining { held: true, ..Remaining::default() }), Ended::TimedOut] {
            assert!(why(&ended).is_some());
        }
        assert!(why(&Ended::Shutdown).is_none() && why(&Ended::Empty(Remaining::default())).is_none());
    }
}
