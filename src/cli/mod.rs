//! The command line: what may be written ([`args`]), who does it (one file for each command), and how it ends.

mod alerts;
mod alive;
pub mod args;
mod backfill;
mod capture;
mod check;
mod config;
pub mod confirm;
mod demo;
mod init;
mod manual;
mod map;
mod operator;
pub mod output;
mod plan;
mod repair;
mod run;
mod verify;

use std::io::Write;
use std::process::ExitCode;

pub use self::args::Cli;
use self::args::Command;
use crate::config::{Config, ConfigErrors};
use crate::connect::ConnectError;
use crate::job::{Via, Who};
use crate::telemetry;

/// How a command ended; a contract with scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what it was asked.
    Done = 0,
    /// It found what it looks for: differences, problems; or nothing matched.
    Found = 1,
    /// It could not run.
    CouldNotRun = 2,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Runs the command that was asked for.
pub async fn dispatch(cli: &Cli) -> anyhow::Result<Exit> {
    // Only for commands that need it: `demo` and `config` work without.
    let config = || -> anyhow::Result<Config> {
        let config = cli.load()?;
        telemetry::init(&config.log);
        Ok(config)
    };
    match &cli.command {
        Command::Demo(args) => demo::command(args).await,
        Command::Init(args) => init::command(args, config()?).await,
        Command::Check(args) => check::command(args, config()?).await,
        Command::Config(args) => config::command(args, cli),
        Command::Map(args) => map::command(args, config()?).await,
        Command::Capture(command) => capture::command(command, config()?).await,
        Command::Backfill(args) => backfill::command(args, config()?).await,
        Command::Plan(args) => plan::command(args, config()?).await,
        Command::Verify(args) => verify::command(args, config()?).await,
        Command::Repair(args) => repair::repair(args, config()?).await,
        Command::Resync(args) => repair::resync(args, config()?).await,
        Command::Run(args) => run::command(args, config()?).await,
        Command::Alive => alive::command(config()?).await,
        Command::Alerts(command) => alerts::command(command, config()?).await,
        Command::Status(args) => operator::status(args, config()?).await,
        Command::Events(args) => operator::events(args, config()?).await,
        Command::Failures(args) => operator::failures(args.json, config()?).await,
        Command::Replay(args) => operator::replay(args, config()?).await,
        Command::Skip(args) => operator::skip(&args.change, config()?).await,
        Command::Pause(args) => operator::pause(args, config()?).await,
        Command::Resume(args) => operator::resume(args, config()?).await,
        Command::Completions(args) => manual::completions(args),
        Command::Man(args) => manual::man(args),
    }
}

/// By whom the audit knows the shell.
fn shell_user() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name);
    format!("shell:{}", user.unwrap_or_else(|| nix::unistd::getuid().to_string()))
}

/// Whoever uses this shell, and why; a word instead, where none is asked for.
fn shell(reason: Option<&str>) -> Who {
    let reason = reason.map(str::trim).filter(|reason| !reason.is_empty()).unwrap_or("none given");
    Who { actor: shell_user(), reason: reason.to_owned(), via: Via::Command }
}

/// Tells on stderr why a command could not run.
pub fn report(error: &anyhow::Error) -> Exit {
    if error.is::<output::StdoutClosed>() {
        return Exit::Done;
    }
    // A stderr that is closed leaves nobody to tell.
    let _ = std::io::stderr().write_all(explain(error).as_bytes());
    Exit::CouldNotRun
}

/// For people: the message, and each cause that it does not tell already.
fn explain(error: &anyhow::Error) -> String {
    if let Some(errors) = error.downcast_ref::<ConfigErrors>() {
        return format!("{errors}\n");
    }
    let mut told = error.downcast_ref().map_or_else(|| error.to_string(), crate::disposition::told);
    // Some bring their own: error[mapping.column].
    let prefix = if told.starts_with("error[") { "" } else { "error: " };
    let mut text = format!("{prefix}{told}\n");
    let words = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<sqlx::Error>().map_or_else(|| cause.to_string(), crate::disposition::told)
    };
    // What an error of a database's is made of, its words tell already.
    let mut whole = error.is::<sqlx::Error>();
    for cause in error.chain().skip(1) {
        if whole {
            break;
        }
        whole = cause.is::<sqlx::Error>();
        let cause = words(cause);
        if !told.contains(&cause) {
            text += &format!("  caused by: {cause}\n");
            told = cause;
        }
    }
    if let Some(away @ ConnectError::Away { side, .. }) = error.downcast_ref()
        && !away.is_about_tls()
    {
        text += &format!("  is it up, and does {side}.url lead there? What there is to know: outbox-relay check\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes_each_once() {
        let error = anyhow!("connection refused").context("legacy: connection refused").context("no backlog");
        assert_eq!(explain(&error), "error: no backlog\n  caused by: legacy: connection refused\n");
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error() {
        assert_eq!(report(&output::StdoutClosed.into()), Exit::Done);
        let other =
            Err::<(), _>(std::io::Error::from(std::io::ErrorKind::BrokenPipe)).context("the server").unwrap_err();
        assert_eq!(report(&other), Exit::CouldNotRun);
    }
}
