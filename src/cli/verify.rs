//! `verify`: whether both databases agree.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::HumanDuration;

use super::args::VerifyArgs;
use super::{Exit, output, shell};
use crate::config::Config;
use crate::connect;
use crate::migration;
use crate::run::on_signals;
use crate::target::{ReportId, Target};
use crate::verify::{self, Again, Far, Options, Outcome, Report};
use crate::words::{rows_of, several, thousands};

/// Verifies, and prints the report; or the last reports.
pub(super) async fn command(args: &VerifyArgs, config: Config) -> anyhow::Result<Exit> {
    let (source, target) = connect::open(&config).await?;
    if args.history {
        let reports = target.reports(None, 50).await?;
        if args.json {
            output::json(&serde_json::json!({ "items": reports }))?;
        } else {
            output::print(verify::report::render_history(&reports))?;
        }
        return Ok(Exit::Done);
    }
    if let Some(id) = args.report {
        let kept = kept(&target, ReportId(id)).await?;
        return show(&migration::report_seen(kept, &config.entities, &config.redact.for_admins()), args.json);
    }
    let options = Options {
        entities: args.entities.clone(),
        sample: args.sample,
        rate: args.rate,
        without_events: args.without_events,
        who: shell(None),
        begun: None,
        job: None,
    };
    let stop = on_signals()?;
    let progress = ProgressLine::new();
    let tell = |far: &Far<'_>| progress.tell(far);
    let done = verify::verify(&config, &source, &target, &options, &stop, &tell).await;
    let quoting = config.quoting(&options.entities);
    let report = done.map_err(|error| anyhow::anyhow!("{}", error.shown(quoting)))?;
    progress.clear();
    show(&report, args.json)
}

/// A report of another time, whole.
async fn kept(target: &Target, id: ReportId) -> anyhow::Result<Report> {
    let Some(kept) = target.report(id).await? else {
        anyhow::bail!("there is no report {}: outbox-relay verify --history", id.0);
    };
    let Some(report) = kept.report else { anyhow::bail!("report {} is not finished", id.0) };
    Ok(Report { differences: target.report_differences(id).await?, ..report })
}

fn show(report: &Report, json: bool) -> anyhow::Result<Exit> {
    if json {
        output::json(report)?;
    } else {
        output::print(verify::render(report))?;
    }
    Ok(match report.outcome {
        Outcome::Equal => Exit::Done,
        Outcome::Differs => Exit::Found,
        Outcome::CouldNot => Exit::CouldNotRun,
    })
}

/// One line on a terminal, told anew a few times a second; nothing where nobody looks.
struct ProgressLine {
    terminal: bool,
    last: Mutex<Option<Instant>>,
}

impl ProgressLine {
    fn new() -> ProgressLine {
        ProgressLine { terminal: std::io::stderr().is_terminal(), last: Mutex::new(None) }
    }

    fn tell(&self, far: &Far<'_>) {
        if !self.terminal {
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_some_and(|at| at.elapsed() < Duration::from_millis(200)) {
            return;
        }
        *last = Some(Instant::now());
        // A stderr that is closed leaves nobody to tell.
        let _ = write!(std::io::stderr(), "\r\x1b[K{}", line(far));
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(far: &Far<'_>) -> String {
    let left = far.left().map(|left| format!(", {} left", HumanDuration(left))).unwrap_or_default();
    let rows = rows_of(far.rows, far.estimate);
    if let Some(Again { walk, rows: so_far }) = far.again {
        return format!(
            "{}: {rows}; read again to find what differs: walk {walk}, {}",
            far.entity,
            several(so_far, "row")
        );
    }
    format!("{}: {rows}, {} a second{left}", far.entity, thousands(far.rate() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_what_is_known() {
        let far = |rows, estimate| Far { entity: "users", rows, estimate, took: Duration::from_secs(10), again: None };
        let again = Some(Again { walk: 2, rows: 1_200_000 });
        for (far, told) in [
            (far(250_000, Some(1_000_000)), "users: 250,000 of about 1,000,000 rows, 25,000 a second, 30 seconds left"),
            (far(250_000, None), "users: 250,000 rows, 25,000 a second"),
            (far(0, Some(10)), "users: 0 of about 10 rows, 0 a second"),
            (
                Far { again, ..far(1_000_000, Some(1_000_000)) },
                "users: 1,000,000 of about 1,000,000 rows; read again to find what differs: walk 2, 1,200,000 rows",
            ),
        ] {
            assert_eq!(line(&far), told);
        }
    }
}
