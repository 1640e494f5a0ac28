//! What may be written on the command line. Nothing here acts; each command's file beside this one does.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigErrors, Overrides, Resolved, environment};
use crate::event::Status;
use crate::init::{Existing, UnknownExisting};

const WHICH: &str = "Which events";

/// Relays outbox events from one Postgres to another: each once, in order, and nothing lost.
///
/// An application writes a row to an outbox table in the transaction of its change. outbox-relay applies these events to
/// the tables of another database, by a mapping written in SQL, and tells what it could not apply.
#[derive(Debug, Parser)]
#[command(
    name = "outbox-relay",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_long_help = "\
First steps:
  outbox-relay demo                          see it work, on databases of its own
  outbox-relay config > outbox-relay.toml    fill in both URLs and an entity
  outbox-relay init --print                  what `init` would do, as SQL for a DBA
  outbox-relay init                          do it
  outbox-relay check                         try everything, change nothing
  outbox-relay run                           relay

Exit codes:
  0  done
  1  it found what it looks for: problems, differences; or nothing matched
  2  it could not run"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
}

/// Flags of every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Configuration")]
pub struct Global {
    /// The configuration file [default: $OUTBOX_RELAY_CONFIG, or outbox-relay.toml here, if there is one]
    ///
    /// Every key outside lists can also be set by a variable: OUTBOX_RELAY_LEGACY__URL sets legacy.url, and
    /// OUTBOX_RELAY_LEGACY__URL_FILE names a file that holds it.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How to log to stderr: text or json (log.format)
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What to log, such as info,outbox_relay=debug (log.filter)
    #[arg(long, global = true, value_name = "FILTER")]
    pub log_filter: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show all of it on this machine, on two throwaway databases
    #[command(after_long_help = "\
Examples:
  outbox-relay demo                 until Ctrl-C, which leaves no process and no file behind
  outbox-relay demo --for 30s       ends by itself; exits 0 only if both databases agree
  outbox-relay demo --rate 1000")]
    Demo(DemoArgs),
    /// Make the outbox and the relay's own tables on both sides; may be run again
    #[command(after_long_help = "\
Examples:
  outbox-relay init --print --app-role monolith --relay-role relay > init.sql
  outbox-relay init --existing before=2026-01-31T00:00:00Z
  outbox-relay init --remove")]
    Init(InitArgs),
    /// Try connections, rights, indexes and mappings on both sides; change nothing
    #[command(
        after_long_help = "Exits 0 if all is well, 1 with findings (each with its remedy), 2 if it could not look."
    )]
    Check(CheckArgs),
    /// Print a commented configuration to start from, or the one in effect
    #[command(after_long_help = "\
Examples:
  outbox-relay config > outbox-relay.toml
  outbox-relay config --resolved              each value with its origin: file and line, variable, or default")]
    Config(ConfigArgs),
    /// Show the rows that a mapping yields and what would be written; write nothing
    #[command(after_long_help = "\
Examples:
  outbox-relay map users                          the newest event of the entity
  outbox-relay map users --id 4711
  outbox-relay map users --payload user.json
  outbox-relay map users --id 4711 --psql | psql $NEW_DATABASE")]
    Map(MapArgs),
    /// Show what the split does to foreign keys, and in which order to fill the new tables; change nothing
    #[command(after_long_help = "\
Exits 0; with --orphans 1 if rows refer to nothing, 2 if there are none but not all could be looked for.

Examples:
  outbox-relay plan
  outbox-relay plan --orphans --json")]
    Plan(PlanArgs),
    /// Have triggers write the events of a legacy table, for applications that nobody will change
    #[command(
        subcommand,
        after_long_help = "\
Examples:
  outbox-relay capture install users
  outbox-relay capture install users --print    as SQL, for the table's owner
  outbox-relay capture status"
    )]
    Capture(CaptureCommand),
    /// Copy the rows that were there before: whole tables, while the application writes and the relay runs
    #[command(after_long_help = "\
Ended at any moment, it goes on where it was. Exits 0 if every row was copied, 1 if rows were left out or it was told to
end (each is told), 2 if it could not run.

Examples:
  outbox-relay backfill                   every entity that says of which legacy rows it is made, parents first
  outbox-relay backfill users --rate 2000
  outbox-relay backfill --pause           whoever copies rests, until --resume
  outbox-relay backfill --status")]
    Backfill(BackfillArgs),
    /// Compare both databases through the mapping, while events flow
    #[command(after_long_help = "\
Exits 0 if they are equal, 1 if they differ, also where a row is behind a failed event, 2 if not everything could be compared.

Examples:
  outbox-relay verify                        every entity that has `legacy`
  outbox-relay verify users --rate 20000     at most so many rows a second on each side
  outbox-relay verify --sample 10000
  outbox-relay verify --history
  outbox-relay verify --report 12            one of these, with every difference that was kept")]
    Verify(VerifyArgs),
    /// Make right what the last full report of `verify` found, from the legacy database
    #[command(after_long_help = "\
Shows what would be done; with --apply it is done. Exits 0 if nothing is left to do, 1 if rows are or were left alone, or would be changed, or an
entity is to be verified again.

Examples:
  outbox-relay repair
  outbox-relay repair --apply --reason 'handler mended'")]
    Repair(RepairArgs),
    /// Write rows of the new database anew from the legacy one
    #[command(after_long_help = "\
Shows what would be done; with --apply it is done.

Examples:
  outbox-relay resync users --keys 4711,4712
  outbox-relay resync users --since 2026-11-24T03:00:00Z --until 2026-11-24T04:00:00Z
  outbox-relay resync users --divergent --apply --reason 'after the failover'")]
    Resync(ResyncArgs),
    /// Relay events, and serve the admin API
    #[command(after_long_help = "\
Waits for databases that are not up yet. SIGTERM and SIGINT finish the batches in flight; a second one ends at once.

Examples:
  outbox-relay run
  outbox-relay run --until-empty --timeout 10m    0: all is applied; 1: failed, held or stopped events remain")]
    Run(RunArgs),
    /// Alerts to a webhook: try whether they arrive
    #[command(subcommand)]
    Alerts(AlertsCommand),
    /// Show the backlog, the lag and what stands in the way
    #[command(after_long_help = "\
Examples:
  outbox-relay status
  outbox-relay status --watch          every two seconds
  outbox-relay status --watch 10s --json")]
    Status(StatusArgs),
    /// List events, or show one with its error and history
    #[command(subcommand)]
    Events(EventsCommand),
    /// Show failed events by cause
    Failures(FailuresArgs),
    /// Apply failed or skipped events again; those held behind them follow
    #[command(after_long_help = "\
Examples:
  outbox-relay replay --id 4711 --reason 'mapping mended'
  outbox-relay replay --aggregate-type User --dry-run
  outbox-relay replay --cause 5f2c01 --reason 'column added' --yes")]
    Replay(ReplayArgs),
    /// Give failed events up, so that those held behind them go on
    #[command(after_long_help = "\
Examples:
  outbox-relay skip --id 4711 --reason 'test data'
  outbox-relay skip --aggregate-type Cart --aggregate-id 12 --reason 'cart was deleted by hand'")]
    Skip(SkipArgs),
    /// Apply nothing more, in any process, until resumed
    ///
    /// Returns when no batch is in flight any more; holds across restarts.
    Pause(PauseArgs),
    /// Go on after a pause
    Resume(ResumeArgs),
    /// Ask whether the process that runs with this configuration on this machine is alive
    #[command(after_long_help = "\
For health checks of containers; speaks TLS if the configuration has a certificate. Exits 0 if it is alive, 1 if it does not answer.

Example, in a Dockerfile:
  HEALTHCHECK CMD [\"outbox-relay\", \"alive\"]")]
    Alive,
    /// Print a script that completes commands and flags in a shell
    #[command(after_long_help = "\
Examples:
  outbox-relay completions bash > /etc/bash_completion.d/outbox-relay
  outbox-relay completions zsh > \"${fpath[1]}/_outbox-relay\"
  outbox-relay completions fish > ~/.config/fish/completions/outbox-relay.fish")]
    Completions(CompletionsArgs),
    /// Print the manual page, or write one for each command into a folder
    #[command(after_long_help = "\
Examples:
  outbox-relay man | man -l -
  outbox-relay man --into /usr/local/share/man/man1")]
    Man(ManArgs),
}

/// See [`Command::Demo`].
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Events a second that the application writes
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
    /// End after this long [default: at Ctrl-C; without a terminal 60s]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Where the admin API listens [default: 127.0.0.1:8080, or a free port if that is taken]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
}

/// See [`Command::Init`].
#[derive(Debug, Clone, Default, Args)]
pub struct InitArgs {
    /// Print the SQL with its grants, and what each step locks, instead of running it
    #[arg(long)]
    pub print: bool,
    /// Take everything away again but the outbox and its rows
    #[arg(long, conflicts_with_all = ["existing", "target_is_empty", "target_is_current", "moved"])]
    pub remove: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// What the rows are that an adopted outbox holds: pending, processed, or before=TIMESTAMP (older ones processed)
    #[arg(long, value_name = "WHAT", value_parser = existing, help_heading = "An outbox that is not new")]
    pub existing: Option<Existing>,
    /// The new database has lost what was applied: put all retained events back
    #[arg(long, conflicts_with = "target_is_current", help_heading = "After an accident")]
    pub target_is_empty: bool,
    /// The new database is right as it is: begin its log anew (verification is due)
    #[arg(long, help_heading = "After an accident")]
    pub target_is_current: bool,
    /// A database was moved, cloned or restored on purpose: take it for the old one
    #[arg(long, help_heading = "After an accident")]
    pub moved: bool,
    /// The role that writes events: gets INSERT on their columns, and no more
    #[arg(long, value_name = "ROLE", help_heading = "Grants")]
    pub app_role: Option<String>,
    /// The role under which the relay runs: gets what it needs, and no DDL
    #[arg(long, value_name = "ROLE", help_heading = "Grants")]
    pub relay_role: Option<String>,
}

/// See [`Command::Check`].
#[derive(Debug, Clone, Default, Args)]
pub struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// See [`Command::Config`].
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// Print the configuration in effect, each value with its origin
    #[arg(long)]
    pub resolved: bool,
    /// Print JSON
    #[arg(long, requires = "resolved")]
    pub json: bool,
}

/// See [`Command::Map`].
#[derive(Debug, Clone, Default, Args)]
pub struct MapArgs {
    /// The entity's name: its table, unless the configuration gives another
    pub entity: String,
    /// An event of the outbox
    #[arg(long, value_name = "N")]
    pub id: Option<i64>,
    /// A file with a payload, as JSON; - for stdin
    #[arg(long, value_name = "FILE", conflicts_with = "id")]
    pub payload: Option<PathBuf>,
    /// Print a script instead, that runs in psql as it is
    #[arg(long, conflicts_with = "json")]
    pub psql: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// See [`Command::Verify`].
#[derive(Debug, Clone, Default, Args)]
pub struct VerifyArgs {
    /// Entities, by name [default: all that have `legacy`]
    #[arg(value_name = "ENTITY")]
    pub entities: Vec<String>,
    /// Only so many rows of each side, chosen at random
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sample: Option<u32>,
    /// Read at most so many rows a second on each side
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// The tables' writes emit no events: look twice, a second apart, instead of under a lock
    #[arg(long)]
    pub without_events: bool,
    /// Show the last reports instead, newest first
    #[arg(long, conflicts_with_all = ["entities", "sample", "rate", "without_events"])]
    pub history: bool,
    /// Show this report instead, with every difference that was kept
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(i64).range(1..),
          conflicts_with_all = ["entities", "sample", "rate", "without_events", "history"])]
    pub report: Option<i64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Whether to act, and why.
#[derive(Debug, Clone, Default, Args)]
pub struct ApplyArgs {
    /// Do it; without, it is only shown
    #[arg(long, requires = "reason")]
    pub apply: bool,
    /// Only show it: the default
    #[arg(long, conflicts_with = "apply")]
    pub dry_run: bool,
    /// Why; kept with every changed row
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// See [`Command::Repair`].
#[derive(Debug, Clone, Default, Args)]
pub struct RepairArgs {
    /// Only this entity's rows
    pub entity: Option<String>,
    /// What this report found [default: of each entity the last full one that was finished]
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(i64).range(1..))]
    pub report: Option<i64>,
    /// Whether to act.
    #[command(flatten)]
    pub how: ApplyArgs,
}

/// See [`Command::Resync`].
#[derive(Debug, Clone, Default, Args)]
#[command(group = clap::ArgGroup::new("rows").required(true).args(["keys", "since", "divergent"]))]
pub struct ResyncArgs {
    /// The entity's name
    pub entity: String,
    /// These legacy keys; the parts of a key of several columns as a JSON array: '[\"acme\",7]'
    #[arg(long, value_name = "KEY", num_args = 1.., value_delimiter = ',', help_heading = "Which rows")]
    pub keys: Vec<String>,
    /// All that had an event from this time on
    #[arg(long, value_name = "TIMESTAMP", help_heading = "Which rows")]
    pub since: Option<chrono::DateTime<chrono::Utc>>,
    /// ... up to this one [default: now]
    #[arg(long, value_name = "TIMESTAMP", requires = "since", help_heading = "Which rows")]
    pub until: Option<chrono::DateTime<chrono::Utc>>,
    /// All that are divergent: the new database has the effect of events that the outbox lost
    #[arg(long, help_heading = "Which rows")]
    pub divergent: bool,
    /// Whether to act.
    #[command(flatten)]
    pub how: ApplyArgs,
}

/// See [`Command::Plan`].
#[derive(Debug, Clone, Default, Args)]
pub struct PlanArgs {
    /// Look for rows that refer to nothing, within each database and across; reads every table that moves
    #[arg(long)]
    pub orphans: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// See [`Command::Alerts`].
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum AlertsCommand {
    /// Send a message that says it is a test to the configured webhook; exits 2 if it was not taken
    Test,
}

/// See [`Command::Capture`].
#[derive(Debug, Clone, Subcommand)]
pub enum CaptureCommand {
    /// Install the triggers, or replace them by those that are configured now
    Install(CaptureArgs),
    /// Take them away
    Remove(CaptureArgs),
    /// Tell whether they stand; exits 1 if one does not
    Status(CaptureArgs),
}

/// See [`Command::Capture`].
#[derive(Debug, Clone, Default, Args)]
pub struct CaptureArgs {
    /// Which entities [default: all that say of which legacy table they are made]
    #[arg(value_name = "ENTITY")]
    pub entities: Vec<String>,
    /// Only print the SQL, for whoever may run it
    #[arg(long)]
    pub print: bool,
    /// Why; kept in the audit
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "print")]
    pub json: bool,
}

/// See [`Command::Backfill`].
#[derive(Debug, Clone, Args)]
pub struct BackfillArgs {
    /// Which entities [default: all that say of which legacy rows they are made]
    #[arg(value_name = "ENTITY")]
    pub entities: Vec<String>,
    /// Rows a second (backfill.rows_per_second); 0: as fast as it goes
    #[arg(long, value_name = "ROWS")]
    pub rate: Option<u32>,
    /// Forget how far it has come, and copy everything again, from the first row; nothing is deleted. Asks first
    #[arg(long, conflicts_with_all = ["pause", "resume", "status"])]
    pub restart: bool,
    /// Do not ask
    #[arg(long, requires = "restart")]
    pub yes: bool,
    /// How long to wait for rows whose events are on their way, once nothing moves any more
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "30s")]
    pub patience: Duration,
    /// Let whoever copies rest, until --resume
    #[arg(long, conflicts_with_all = ["resume", "status"])]
    pub pause: bool,
    /// Let them go on
    #[arg(long, conflicts_with = "status")]
    pub resume: bool,
    /// Show how far every copy has come
    #[arg(long)]
    pub status: bool,
    /// Why; kept in the audit
    #[arg(long, value_name = "TEXT", conflicts_with = "status")]
    pub reason: Option<String>,
    /// Print JSON: a line for each thing that happens
    #[arg(long)]
    pub json: bool,
}

/// See [`Command::Run`].
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// End when nothing is pending or waiting for its next attempt
    #[arg(long)]
    pub until_empty: bool,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "until_empty")]
    pub timeout: Option<Duration>,
    /// Batches in flight in this process (relay.workers)
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,
    /// Where to serve the admin API (admin.listen)
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
}

/// See [`Command::Completions`].
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// Which shell
    pub shell: clap_complete::Shell,
}

/// See [`Command::Man`].
#[derive(Debug, Clone, Default, Args)]
pub struct ManArgs {
    /// A folder that is there: outbox-relay.1, outbox-relay-run.1 and so on
    #[arg(long, value_name = "FOLDER")]
    pub into: Option<PathBuf>,
}

/// See [`Command::Status`].
#[derive(Debug, Clone, Default, Args)]
pub struct StatusArgs {
    /// Show it again and again, until Ctrl-C; with --json, one line each time
    #[arg(long, value_name = "EVERY", num_args = 0..=1, default_missing_value = "2s", value_parser = duration)]
    pub watch: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// See [`Command::Events`].
#[derive(Debug, Clone, Subcommand)]
pub enum EventsCommand {
    /// List events, oldest first
    #[command(after_long_help = "\
Examples:
  outbox-relay events list --status failed --aggregate-type User
  outbox-relay events list --limit 1000 --json")]
    List(EventsListArgs),
    /// Show one event with its error and the history of its attempts
    Show(EventsShowArgs),
}

/// See [`EventsCommand::List`].
#[derive(Debug, Clone, Default, Args)]
pub struct EventsListArgs {
    /// Which.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// How many, at most
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Go on where an earlier answer ended (its next_cursor)
    #[arg(long, value_name = "CURSOR")]
    pub cursor: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// See [`EventsCommand::Show`].
#[derive(Debug, Clone, Default, Args)]
pub struct EventsShowArgs {
    /// Its id or event_id
    #[arg(value_name = "ID")]
    pub id: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Which events; what is not given matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct FilterArgs {
    /// Where they stand
    #[arg(long, help_heading = WHICH, value_parser = PossibleValuesParser::new(Status::ALL.map(Status::as_str)).try_map(status))]
    pub status: Option<Status>,
    /// What they are about
    #[arg(long, help_heading = WHICH, value_name = "TYPE")]
    pub aggregate_type: Option<String>,
    /// Which one of these
    #[arg(long, help_heading = WHICH, value_name = "ID", requires = "aggregate_type")]
    pub aggregate_id: Option<String>,
    /// What happened
    #[arg(long, help_heading = WHICH, value_name = "TYPE")]
    pub event_type: Option<String>,
    /// Why they failed: a cause as `failures` shows it
    #[arg(long, help_heading = WHICH, value_name = "CAUSE")]
    pub cause: Option<String>,
}

/// See [`Command::Failures`].
#[derive(Debug, Clone, Default, Args)]
pub struct FailuresArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Which events to change, and how.
#[derive(Debug, Clone, Default, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true)
    .args(["ids", "status", "aggregate_type", "aggregate_id", "event_type", "cause", "all"]))]
pub struct ChangeArgs {
    /// These events; may be given several times
    #[arg(long = "id", value_name = "N", value_delimiter = ',', help_heading = WHICH)]
    pub ids: Vec<i64>,
    /// Which.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Every event that can be changed so
    #[arg(long, help_heading = WHICH,
        conflicts_with_all = ["ids", "status", "aggregate_type", "aggregate_id", "event_type", "cause"])]
    pub all: bool,
    /// Why; kept in the audit table
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    pub reason: Option<String>,
    /// Tell how many match; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Change nothing unless so many match
    #[arg(long, value_name = "N")]
    pub expected: Option<u64>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// See [`Command::Replay`].
#[derive(Debug, Clone, Default, Args)]
pub struct ReplayArgs {
    /// Which, and how.
    #[command(flatten)]
    pub change: ChangeArgs,
    /// Even if the event was processed, or a newer one of its aggregate was applied (which it would overwrite)
    #[arg(long, requires = "ids")]
    pub force: bool,
}

/// See [`Command::Skip`].
#[derive(Debug, Clone, Default, Args)]
pub struct SkipArgs {
    /// Which, and how.
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// See [`Command::Pause`].
#[derive(Debug, Clone, Default, Args)]
pub struct PauseArgs {
    /// Only events about this
    #[arg(long, value_name = "TYPE")]
    pub aggregate_type: Option<String>,
    /// Why; kept in the audit table
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// See [`Command::Resume`].
#[derive(Debug, Clone, Default, Args)]
pub struct ResumeArgs {
    /// Only events about this
    #[arg(long, value_name = "TYPE")]
    pub aggregate_type: Option<String>,
    /// Why; kept in the audit table
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Cli {
    /// The values that flags give to keys of the configuration.
    pub fn overrides(&self) -> Overrides {
        let mut overrides = Overrides::default();
        overrides.set("--log-format", "log.format", self.global.log_format.as_ref()).set(
            "--log-filter",
            "log.filter",
            self.global.log_filter.as_ref(),
        );
        if let Command::Run(run) = &self.command {
            overrides.set("--workers", "relay.workers", run.workers.as_ref()).set(
                "--listen",
                "admin.listen",
                run.listen,
            );
        }
        overrides
    }

    /// The configuration, with the process's environment and these flags.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        self.resolve().config
    }

    /// As [`Cli::load`], with the origin of each value.
    pub fn resolve(&self) -> Resolved {
        Config::resolve(self.global.config.as_deref(), &self.overrides(), environment())
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "expected a duration with its unit, such as 30s or 10m".to_owned())
}

fn existing(text: &str) -> Result<Existing, String> {
    text.parse().map_err(|error: UnknownExisting| error.to_string())
}

fn status(word: String) -> Result<Status, String> {
    word.parse().map_err(|()| format!("{word} is no status"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    #[test]
    fn the_definitions_hold_together_and_every_flag_is_explained() {
        fn explained(command: &clap::Command) {
            for argument in command.get_arguments().filter(|argument| argument.get_id() != "help") {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(explained);
        }
        Cli::command().debug_assert();
        explained(&Cli::command());
    }

    #[test]
    fn what_changes_events_needs_to_be_told_which_and_why() {
        assert!(parse("outbox-relay replay --reason x").unwrap_err().contains("required"));
        assert!(parse("outbox-relay replay --id 1").unwrap_err().contains("--reason"));
        assert!(parse("outbox-relay replay --all --id 1 --reason x").is_err());
        assert!(parse("outbox-relay replay --aggregate-id 1 --reason x").is_err());
        assert!(parse("outbox-relay skip --status lost --reason x").unwrap_err().contains("held"));
        let Ok(Command::Replay(args)) = parse("outbox-relay replay --id 1,2 --id 3 --reason x --force") else {
            panic!()
        };
        assert_eq!(args.change.ids, [1, 2, 3]);
        let Ok(Command::Skip(args)) = parse("outbox-relay skip --status failed --dry-run") else { panic!() };
        assert_eq!((args.change.filter.status, args.change.reason), (Some(Status::Failed), None));
    }

    #[test]
    fn init_is_told_what_the_existing_rows_are() {
        let existing = |what: &str| match parse(&format!("outbox-relay init --existing {what}")) {
            Ok(Command::Init(args)) => Ok(args.existing.unwrap()),
            other => Err(other.map(|_| String::new()).unwrap_err()),
        };
        assert_eq!(existing("pending"), Ok(Existing::Pending));
        let time = chrono::DateTime::parse_from_rfc3339("2026-01-31T00:00:00Z").unwrap().to_utc();
        assert_eq!(existing("before=2026-01-31T01:00:00+01:00"), Ok(Existing::Before(time)));
        assert!(existing("before=yesterday").unwrap_err().contains("before=2026-01-31T12:00:00Z"));
        assert!(parse("outbox-relay init --remove --existing pending").is_err());
    }

    #[test]
    fn flags_stand_before_or_behind_the_command_and_reach_the_configuration() {
        for line in ["outbox-relay --config a.toml run --workers 3", "outbox-relay run --workers 3 --config a.toml"] {
            let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
            assert_eq!(cli.global.config, Some(PathBuf::from("a.toml")));
            assert!(format!("{:?}", cli.overrides()).contains("relay.workers"));
        }
        assert!(parse("outbox-relay run --timeout 10m").is_err());
        assert!(parse("outbox-relay run --until-empty --timeout 10").unwrap_err().contains("unit"));
    }
}
