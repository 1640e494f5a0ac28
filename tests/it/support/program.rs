//! The program itself on a stage, as an operator has it: in a folder with a configuration, and where nobody can be asked.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use super::stage::Stage;

/// A folder with the stage's configuration: how its databases are reached, and its entity `users`. `backfill` is what stands under that
/// heading.
pub fn folder_of(stage: &Stage, backfill: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let config = &stage.config;
    let file = format!(
        "legacy.url = \"{}\"\nlegacy.prepared_statements = {}\nnew.url = \"{}\"\nnew.prepared_statements = {}\nrelay.lanes = {}
         [backfill]\n{backfill}\n[[entity]]
         aggregate_type = \"User\"\ntable = \"users\"\nkey = [\"id\"]\nmapping = \"user.sql\"
         legacy = {{ table = \"public.users\", key = [\"id\"] }}
         events = {{ UserCreated = \"upsert\", UserUpdated = \"upsert\", UserDeleted = \"delete\" }}\n",
        config.legacy.url.expose(),
        config.legacy.prepared_statements,
        config.new.url.expose(),
        config.new.prepared_statements,
        config.relay.lanes
    );
    std::fs::write(folder.path().join("outbox-relay.toml"), file).expect("a file");
    let mapping = config.entities[0].mapping.as_ref().expect("a mapping");
    std::fs::write(folder.path().join("user.sql"), &mapping.text).expect("a file");
    folder
}

/// `outbox-relay` there.
pub fn program(folder: &tempfile::TempDir, arguments: &[&str]) -> Command {
    let mut command = there(env!("CARGO_BIN_EXE_outbox-relay"), folder);
    command.args(arguments);
    command
}

/// The same on a terminal, which is shown on stdout; `None`, and a word, where there is no `script` to make one.
pub fn on_a_terminal(folder: &tempfile::TempDir, arguments: &str) -> Option<Command> {
    if !Path::new("/usr/bin/script").exists() {
        eprintln!("skipped: there is no script, of util-linux, to make a terminal");
        return None;
    }
    let mut command = there("/usr/bin/script", folder);
    let typed = format!("'{}' {arguments}", env!("CARGO_BIN_EXE_outbox-relay"));
    command.args(["-qec", &typed, "/dev/null"]).env("TERM", "xterm");
    Some(command)
}

fn there(program: &str, folder: &tempfile::TempDir) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OUTBOX_RELAY_")) {
        command.env_remove(name);
    }
    command
}

/// What a process of it came to.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// What it printed, as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr))
    }
}

/// Runs it to its end.
pub async fn ended(folder: &tempfile::TempDir, arguments: &[&str]) -> Ended {
    let output = program(folder, arguments).output().await.expect("the program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// Runs it to its end, which must be with this code; what it said.
pub async fn said(folder: &tempfile::TempDir, arguments: &[&str], code: i32) -> String {
    let ended = ended(folder, arguments).await;
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.code, Some(code), "{arguments:?}: {said}");
    said
}
