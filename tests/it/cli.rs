//! The program itself, as a shell meets it; no database is needed here.

use std::process::{Command, Output, Stdio};

fn outbox_relay(folder: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OUTBOX_RELAY_")) {
        command.env_remove(name);
    }
    command.current_dir(folder);
    command
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
        ("batch = 1000", "# default"),
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
