//! The program itself, as a shell meets it.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

use clap::CommandFactory as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outbox_relay::cli::Cli;
use serde_json::{Value, json};

use crate::support::certificates::Authority;
use crate::support::stage::Stage;
use crate::support::{copying, pair};

/// The program, in a folder, without what the environment would have it use.
pub(crate) fn outbox_relay(folder: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OUTBOX_RELAY_")) {
        command.env_remove(name);
    }
    command.current_dir(folder);
    command
}

/// A folder with a configuration that names the stage's databases, and says more.
pub(crate) fn folder_of(stage: &Stage, more: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (legacy, new) = (&stage.pair.legacy.url, &stage.pair.new.url);
    let text = format!("[legacy]\nurl = \"{legacy}\"\n[new]\nurl = \"{new}\"\n{more}");
    std::fs::write(folder.path().join("outbox-relay.toml"), text).unwrap();
    folder
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_mistake_on_the_command_line_or_in_the_configuration_exits_2_and_is_told_on_stderr() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["rnu"][..], &["run", "--timeout", "1s"], &["replay", "--id", "1"], &[]] {
        let output = outbox_relay(&folder).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && told(&output).contains("Usage"), "{}", told(&output));
    }
    let output = outbox_relay(&folder).arg("check").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(told(&output).contains("OUTBOX_RELAY_LEGACY__URL"), "{}", told(&output));
    let output = outbox_relay(&folder).args(["check", "--config", "none.toml"]).output().unwrap();
    assert!(told(&output).contains("none.toml cannot be read"), "{}", told(&output));
}

#[test]
fn the_printed_configuration_is_found_in_the_working_directory_and_the_environment_wins() {
    let folder = tempfile::tempdir().unwrap();
    let template = outbox_relay(&folder).arg("config").output().unwrap();
    std::fs::write(folder.path().join("outbox-relay.toml"), template.stdout).unwrap();
    let mut resolved = outbox_relay(&folder);
    resolved.args(["config", "--resolved", "--log-filter", "debug"]);
    let output = resolved.env("OUTBOX_RELAY_NEW__URL", "postgres://relay:s3cret@new/users").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for (of, origin) in [
        ("url = \"postgres://relay@legacy", "# outbox-relay.toml:"),
        ("url = \"postgres://relay:***@new/users\"", "# OUTBOX_RELAY_NEW__URL"),
        ("filter = \"debug\"", "# --log-filter"),
        ("batch = 2000", "# default"),
    ] {
        assert!(text.lines().any(|line| line.starts_with(of) && line.contains(origin)), "{of} {origin}\n{text}");
    }
    assert!(!text.contains("s3cret"), "{text}");
}

#[test]
fn a_reader_that_leaves_early_is_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = outbox_relay(&folder).arg("config").stdout(Stdio::from(writer)).output().unwrap();
    assert_eq!((output.status.code(), told(&output).as_str()), (Some(0), ""));
}

#[test]
fn every_command_is_completed_and_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let commands: Vec<String> = Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = outbox_relay(&folder).args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(commands.iter().all(|command| script.contains(command.as_str())), "{shell}: {script}");
    }
    let output = outbox_relay(&folder).arg("man").output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains(".TH outbox-relay 1"));
    assert!(outbox_relay(&folder).args(["man", "--into", "."]).status().unwrap().success());
    for command in commands {
        let page = std::fs::read_to_string(folder.path().join(format!("outbox-relay-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{command}: {page}");
    }
    let output = outbox_relay(&folder).args(["man", "--into", "nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(told(&output).contains("nowhere cannot be written into"), "{}", told(&output));
}

#[tokio::test]
async fn a_status_is_watched_until_told_to_end_and_has_no_colours_where_there_is_no_terminal() {
    let stage = Stage::new().await;
    stage.event("User\u{1b}[31m", "1", "UserCreated", "{}").await;
    let folder = tempfile::tempdir().unwrap();
    let status = |arguments: &[&str]| {
        let mut command = outbox_relay(&folder);
        command.arg("status").args(arguments);
        command.env("OUTBOX_RELAY_LEGACY__URL", &stage.pair.legacy.url);
        command.env("OUTBOX_RELAY_NEW__URL", &stage.pair.new.url);
        command
    };
    let output = status(&[]).output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert!(text.contains("User [31m") && !text.contains('\u{1b}'), "{text:?}");
    let mut watching = status(&["--watch", "50ms", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines: Vec<String> =
        BufReader::new(watching.stdout.take().unwrap()).lines().take(3).map(Result::unwrap).collect();
    for line in lines {
        let seen: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(seen["backlog"]["stopped"], 1, "{line}");
    }
    kill(Pid::from_raw(i32::try_from(watching.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(watching.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn check_tells_why_run_would_refuse_its_admin_settings() {
    let stage = Stage::new().await;
    let folder = folder_of(&stage, "");
    let authority = Authority::new();
    authority.sign(&["localhost"]).write(folder.path(), "one");
    authority.sign(&["localhost"]).write(folder.path(), "other");
    let certificate = |key| [("OUTBOX_RELAY_ADMIN__TLS_CERT", "one.pem"), ("OUTBOX_RELAY_ADMIN__TLS_KEY", key)];
    let check = |variables: &[(&str, &str)]| {
        let output = outbox_relay(&folder).arg("check").envs(variables.iter().copied()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for (variables, code) in [
        (&[("OUTBOX_RELAY_ADMIN__LISTEN", "0.0.0.0:8080")][..], "problem[admin.listen]"),
        (&certificate("other.key"), "problem[admin.certificate]"),
    ] {
        let (exit, said) = check(variables);
        assert!(exit == Some(1) && said.contains(code) && said.contains("1 problem, "), "{exit:?} {said}");
    }
    let (exit, said) = check(&certificate("one.key"));
    assert_eq!((exit, said.as_str()), (Some(0), "No problems.\n"));
}

/// An entity of a table, and one of a query.
const CAPTURED: &str = "
[[entity]]
aggregate_type = 'User'
table = 'users'
key = ['id']
legacy = { table = 'public.users', key = ['id'] }
events = { UserCreated = 'upsert', UserUpdated = 'upsert', UserDeleted = 'delete' }
[[entity]]
aggregate_type = 'Person'
table = 'people'
key = ['id']
legacy = { query = 'people.sql', key = ['id'] }
events = { PersonCreated = 'upsert' }
";

#[tokio::test]
async fn what_came_of_capture_is_json_where_that_is_asked_for_and_a_query_is_not_among_the_tables() {
    let stage = copying::stage(pair().await, 3, |_| {}).await;
    let folder = folder_of(&stage, CAPTURED);
    std::fs::write(folder.path().join("people.sql"), "SELECT id, name FROM users").unwrap();
    let capture = |arguments: &[&str]| {
        let output = outbox_relay(&folder).arg("capture").args(arguments).arg("--json").output().unwrap();
        let said = serde_json::from_slice::<Value>(&output.stdout);
        (output.status.code(), said.unwrap_or_else(|_| panic!("no JSON: {output:?}")), told(&output))
    };
    let users = |state: &str| json!({"entity": "users", "table": "public.users", "state": state});
    let done = |state: &str, changed: bool| {
        let mut of = users(state);
        of["changed"] = json!(changed);
        json!([of])
    };
    for (arguments, code, said) in [
        (&["status"][..], 1, json!([users("absent")])),
        (&["install"], 0, done("installed", true)),
        (&["install", "--reason", "again"], 0, done("installed", false)),
        (&["status"], 0, json!([users("installed")])),
        (&["remove"], 0, done("absent", true)),
        (&["remove", "users"], 0, done("absent", false)),
        // What was done before the one that is refused is told.
        (&["install", "users", "people"], 2, done("installed", true)),
    ] {
        let (ended, told, errors) = capture(arguments);
        assert_eq!((ended, told), (Some(code), said), "{arguments:?}: {errors}");
        assert_eq!(errors.contains("entity people is made of a query"), code == 2, "{arguments:?}: {errors}");
    }
}
