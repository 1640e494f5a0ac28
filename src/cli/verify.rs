//! `verify`: whether both databases agree.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::args::VerifyArgs;
use super::{Exit, output, shell};
use crate::config::Config;
use crate::connect;
use crate::migration;
use crate::run::on_signals;
use crate::target::{ReportId, Target};
use crate::verify::{self, Options, Outcome, Report};

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
    let tell = |entity: &str, rows: u64, took: Duration| progress.tell(entity, rows, took);
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

    fn tell(&self, entity: &str, rows: u64, took: Duration) {
        if !self.terminal {
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_some_and(|at| at.elapsed() < Duration::from_millis(200)) {
            return;
        }
        *last = Some(Instant::now());
        let rate = rows as f64 / took.as_secs_f64().max(0.001);
        // A stderr that is closed leaves nobody to tell.
        let _ = write!(std::io::stderr(), "\r\x1b[K{entity}: {rows} rows, {rate:.0} a second");
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
