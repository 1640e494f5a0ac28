//! `backfill`: copies whole tables, and tells how it goes: a bar on a terminal, lines elsewhere, JSON for programs.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::BackfillArgs;
use super::confirm::confirm;
use super::{Exit, output, shell};
use crate::backfill::{self, Options, Told};
use crate::config::Config;
use crate::connect;
use crate::map;
use crate::run::on_signals;
use crate::target::{Copied, Reason};
use crate::words::rows_of;

/// Copies; Ctrl-C ends it between two chunks, and the same command goes on from there.
pub(super) async fn command(args: &BackfillArgs, mut config: Config) -> anyhow::Result<Exit> {
    if args.pause || args.resume || args.status {
        return steer(args, &config).await;
    }
    if let Some(rate) = args.rate {
        config.backfill.rows_per_second = rate;
    }
    if args.restart {
        forgets(args, &config).await?;
    }
    let options = Options {
        entities: args.entities.clone(),
        restart: args.restart,
        patience: args.patience,
        who: shell(args.reason.as_deref()),
        job: None,
    };
    let view = View::new(args.json);
    let stop = on_signals()?;
    let sight = config.redact.for_admins();
    let quoting = config.quoting(&options.entities);
    let done = backfill::run(&config, &options, &|told| view.told(&told), &stop).await;
    let summary = done.map_err(|error| anyhow::anyhow!("{}", error.shown(quoting)))?;
    view.end();
    if summary.interrupted {
        say(how_to_go_on(args.restart, summary.forgotten));
        return Ok(Exit::Found);
    }
    if summary.is_whole() {
        return Ok(Exit::Done);
    }
    for left in summary.copies.iter().filter_map(Copied::what_is_left) {
        say(&left);
    }
    if let Some(copy) = summary.copies.iter().find(|copy| copy.refused + copy.waiting > 0) {
        let (_, target) = connect::open(&config).await?;
        let mut rows = target.left_rows(&copy.entity, None, 1000).await?;
        // What the new table refused is the rarer, and said nowhere else.
        rows.sort_by_key(|row| row.reason != Reason::Refused);
        let entity = map::entity(&config, &copy.entity)?;
        for (row, message) in rows.iter().filter_map(|row| Some((row, row.message.clone()?))).take(5) {
            let code = row.code.as_deref();
            let message = match &entity.table {
                Some(table) => sight.message_of_row(&entity.aggregate_type, table, code.unwrap_or_default(), message),
                None => sight.message(&entity.aggregate_type, code.unwrap_or_default(), message),
            };
            let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
            say(&format!("  {} {}: {message}{code}", copy.entity, row.key));
        }
    }
    Ok(Exit::Found)
}

fn how_to_go_on(restart: bool, forgotten: bool) -> &'static str {
    match (restart, forgotten) {
        (false, _) => "ended before it was done: the same command goes on from here",
        (true, true) => "ended before it was done: the same command without --restart goes on from here",
        (true, false) => {
            "ended before anything was forgotten or copied: begin again with the same command, --restart too"
        }
    }
}

/// Says what `--restart` forgets, and asks; where nothing was copied yet, there is nothing to be asked.
async fn forgets(args: &BackfillArgs, config: &Config) -> anyhow::Result<()> {
    let (_, target) = connect::open(config).await?;
    let mut copies = target.copies().await?;
    copies.retain(|copy| args.entities.is_empty() || args.entities.contains(&copy.entity));
    if copies.is_empty() {
        return Ok(());
    }
    for copy in &copies {
        let ends = match copy.state.as_str() {
            "running" => ". Somebody copies it now: that ends",
            "paused" => ". It rests: the pause is lifted, and whoever copies it ends",
            _ => "",
        };
        say(&format!("{}{ends}", line(copy)));
    }
    let question = "How far this has come is forgotten, and all rows are copied again: rows of the new tables are overwritten, none is deleted. Go on?";
    confirm(question, args.yes)
}

async fn steer(args: &BackfillArgs, config: &Config) -> anyhow::Result<Exit> {
    let (source, target) = connect::open(config).await?;
    if !args.status {
        for name in &args.entities {
            map::entity(config, name)?;
        }
        let of_all = || config.entities.iter().map(|entity| entity.name.clone()).collect();
        let entities: Vec<String> = if args.entities.is_empty() { of_all() } else { args.entities.clone() };
        let who = shell(args.reason.as_deref());
        backfill::pause(&source, &target, &entities, args.pause, &who).await?;
    }
    let copies: Vec<Copied> = target.copies().await?;
    let not_begun = |name: &&String| copies.iter().all(|copy| copy.entity != **name);
    let restless: Vec<&String> = args.entities.iter().filter(|_| args.pause).filter(not_begun).collect();
    for name in &restless {
        say(&format!("the copy of {name} was not begun: it cannot rest"));
    }
    if args.json {
        output::json(&copies)?;
    } else {
        for copy in &copies {
            output::print(format_args!("{}\n", line(copy)))?;
            if let Some(left) = copy.what_is_left() {
                output::print(format_args!("  {left}\n"))?;
            }
        }
    }
    Ok(if restless.is_empty() { Exit::Done } else { Exit::Found })
}

fn line(copy: &Copied) -> String {
    let rows = rows_of(copy.rows.unsigned_abs(), copy.estimate.map(i64::unsigned_abs));
    let left = if copy.left() > 0 { format!("; {} left out", copy.left()) } else { String::new() };
    format!("{}: {}, {rows}{left}", copy.entity, copy.state)
}

/// On stderr; one that is closed leaves nobody to tell.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// How it is shown.
struct View {
    json: bool,
    bar: Option<ProgressBar>,
    last: Mutex<Option<Instant>>,
}

/// Between two lines, without a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl View {
    fn new(json: bool) -> View {
        let bar = !json && std::io::stderr().is_terminal();
        View {
            json,
            bar: bar.then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())),
            last: Mutex::default(),
        }
    }

    fn told(&self, told: &Told) {
        if self.json {
            // Whoever read it has gone: the copy goes on.
            let _ = output::print(format_args!("{}\n", serde_json::to_string(told).unwrap_or_default()));
            return;
        }
        match told {
            Told::Began { entity, rows, estimate } => self.began(entity, *rows, *estimate),
            Told::Progress { entity, rows, estimate, rate, waits_for } => {
                let left = estimate.map(|all| all.saturating_sub(*rows) as f64 / rate.max(0.1));
                let left = left.filter(|seconds| *seconds < 1e7).map(|s| HumanDuration(Duration::from_secs_f64(s)));
                let mut text = format!("{}/s", HumanCount(*rate as u64));
                if let Some(left) = left {
                    text += &format!(", {left} left");
                }
                if let Some(why) = waits_for {
                    text += &format!(", waits: {why}");
                }
                self.progress(entity, *rows, *estimate, &text);
            }
            Told::Ended { copied } => {
                if let Some(bar) = &self.bar {
                    bar.suspend(|| say(&line(copied)));
                } else {
                    say(&line(copied));
                }
                for sequence in &copied.sequences {
                    say(&format!("  sequence {sequence} was set past the highest value"));
                }
            }
        }
    }

    fn began(&self, entity: &str, rows: u64, estimate: Option<u64>) {
        if let Some(bar) = &self.bar {
            bar.reset();
            let shape = if estimate.is_some() {
                "{prefix} {wide_bar} {human_pos}/{human_len} {msg}"
            } else {
                "{prefix} {spinner} {human_pos} {msg}"
            };
            if let Ok(style) = ProgressStyle::with_template(shape) {
                bar.set_style(style);
            }
            bar.set_prefix(entity.to_owned());
            if let Some(all) = estimate {
                bar.set_length(all);
            }
            bar.set_position(rows);
        } else {
            let on = if rows > 0 {
                format!("goes on, {} rows were copied before", HumanCount(rows))
            } else {
                "begins".to_owned()
            };
            say(&format!("{entity}: {on}"));
        }
    }

    fn progress(&self, entity: &str, rows: u64, estimate: Option<u64>, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(estimate.unwrap_or(rows).max(rows));
            bar.set_position(rows);
            bar.set_message(text.to_owned());
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_some_and(|at| at.elapsed() < LINE_EVERY) {
            return;
        }
        *last = Some(Instant::now());
        say(&format!("{entity}: {}, {text}", rows_of(rows, estimate)));
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_gone_on_with_without_restarting_only_once_all_was_forgotten() {
        assert!(how_to_go_on(true, true).contains("without --restart"));
        for (restart, forgotten, words) in [(false, false, "the same command goes on"), (true, false, "--restart too")]
        {
            assert!(how_to_go_on(restart, forgotten).contains(words), "{restart} {forgotten}");
        }
    }
}
