//! What the README says to type does what it says; and what it names exists.

use std::path::Path;
use std::process::{Command, Output};

use clap::CommandFactory as _;
use outbox_relay::cli::Cli;
use outbox_relay::config::{Code, Config, Overrides};

use crate::support::pair;

/// The fenced blocks of a page that carry this tag, as in ```` ```sh test-five-minutes ````.
pub(crate) fn blocks(page: &str, tag: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if info.split_whitespace().any(|word| word == tag) {
            found.push(block.join("\n") + "\n");
        }
    }
    found
}

/// A page of this repository.
pub(crate) fn page(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// All pages for users, with their paths.
pub(crate) fn pages() -> Vec<(String, String)> {
    let mut paths = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            paths.push(format!("docs/{name}"));
        }
    }
    paths.sort();
    paths.into_iter().map(|path| (page(&path), path)).map(|(text, path)| (path, text)).collect()
}

fn shell(script: &str, folder: &Path, legacy: &str, new: &str) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_outbox-relay")).parent().unwrap();
    let path = std::env::join_paths(
        std::iter::once(program.to_owned()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let mut command = Command::new("sh");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OUTBOX_RELAY_")) {
        command.env_remove(name);
    }
    command
        .args(["-eu", "-c", script])
        .current_dir(folder)
        .env("PATH", path.unwrap())
        .env("PAGER", "cat")
        .env("OUTBOX_RELAY_LEGACY__URL", legacy)
        .env("OUTBOX_RELAY_NEW__URL", new)
        // Whoever runs tests may have something on the usual port.
        .env("OUTBOX_RELAY_ADMIN__LISTEN", "127.0.0.1:0")
        .output()
        .unwrap()
}

fn told(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn the_five_minute_path_of_the_readme_works() {
    let pair = pair().await;
    let folder = tempfile::tempdir().unwrap();
    let readme = page("README.md");
    let script = blocks(&readme, "test-five-minutes").concat();
    assert!(script.contains("outbox-relay init\n") && script.contains("SELECT * FROM users"), "{script}");
    let output = shell(&script, folder.path(), &pair.legacy.url, &pair.new.url);
    assert!(output.status.success(), "{}", told(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 | Ada Lovelace"), "{}", told(&output));
    assert_eq!(pair.new.value::<String>("SELECT name FROM users WHERE id = 1").await, "Ada Lovelace");
    assert_eq!(pair.legacy.value::<String>("SELECT string_agg(status, ',') FROM outbox").await, "processed");

    let script = blocks(&readme, "test-uninstall").concat();
    let output = shell(&script, folder.path(), &pair.legacy.url, &pair.new.url);
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(pair.legacy.value::<i64>("SELECT count(*) FROM outbox").await, 1, "the outbox stays");
    assert_eq!(pair.new.value::<i64>("SELECT count(*) FROM users").await, 1, "the service's table stays");
    for database in [&pair.legacy, &pair.new] {
        let left: i64 = database.value("SELECT count(*) FROM pg_namespace WHERE nspname = 'outbox_relay'").await;
        assert_eq!(left, 0, "the relay's own schema is gone");
    }
}

/// The commands of `docs/migration.md`, in the order of a migration, and the code that each exits with; between them, what is done by
/// hand. A number of a report is the last one's.
const MIGRATION: &[(&str, i32)] = &[
    ("outbox-relay capture status", 1),
    ("outbox-relay capture install users", 0),
    ("outbox-relay capture status", 0),
    ("legacy: UPDATE users SET name = 'changed' WHERE id = 1", 0),
    ("outbox-relay run --until-empty", 0),
    ("outbox-relay backfill", 0),
    ("outbox-relay backfill users --rate 2000", 0),
    ("outbox-relay backfill --status", 0),
    ("outbox-relay backfill --pause", 0),
    ("outbox-relay backfill --resume", 0),
    ("outbox-relay plan", 0),
    ("outbox-relay plan --orphans", 0),
    ("outbox-relay verify", 0),
    (
        "new: UPDATE users SET name = 'wrong' WHERE id = 4711; DELETE FROM users WHERE id = 4712; INSERT INTO users VALUES (9999, 'x')",
        0,
    ),
    ("outbox-relay verify users --rate 20000", 1),
    ("outbox-relay verify --report 12", 1),
    ("outbox-relay verify --sample 10000", 1),
    ("outbox-relay verify --history", 0),
    ("outbox-relay repair", 1),
    ("outbox-relay repair users --report 12", 1),
    // Nobody is there to be asked.
    ("outbox-relay repair --apply --reason 'handler mended'", 2),
    ("outbox-relay repair --apply --reason 'handler mended' --yes", 0),
    ("outbox-relay verify", 0),
    ("new: UPDATE users SET name = 'wrong' WHERE id = 4711", 0),
    ("outbox-relay resync users --keys 4711,4712", 1),
    ("outbox-relay resync users --keys 4711,4712 --apply --reason 'by hand' --yes", 0),
    ("outbox-relay resync users --since 2026-11-24T03:00:00Z --until 2026-11-24T04:00:00Z", 0),
    ("outbox-relay resync users --divergent --apply --reason 'after the failover'", 0),
    ("outbox-relay verify --json", 0),
    ("outbox-relay verify --without-events", 0),
    ("outbox-relay capture remove users", 0),
    ("outbox-relay capture status", 1),
];

#[tokio::test]
async fn every_command_of_the_migrations_page_does_what_it_says() {
    let text = page("docs/migration.md");
    let block = text.split("\n```toml\n").find(|block| block.starts_with("[[entity]]")).expect("an entity");
    let (pair, folder) = (pair().await, tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("outbox-relay.toml"), block.split("\n```").next().unwrap()).unwrap();
    let table = "CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, score numeric, seen_at timestamptz)";
    pair.legacy.run(table).await;
    pair.legacy.run("INSERT INTO users SELECT i, 'n' || i, 1, now() FROM generate_series(1, 5000) i").await;
    pair.new.run(table).await;
    let told_of = |command: &str| {
        let output = shell(command, folder.path(), &pair.legacy.url, &pair.new.url);
        (output.status.code(), told(&output))
    };
    assert_eq!(told_of("outbox-relay init").0, Some(0));
    let mut said = Vec::new();
    for (command, code) in MIGRATION {
        if let Some(sql) = command.strip_prefix("legacy: ") {
            pair.legacy.run(sql).await;
        } else if let Some(sql) = command.strip_prefix("new: ") {
            pair.new.run(sql).await;
        } else {
            let last = || pair.new.value::<i64>("SELECT max(id) FROM outbox_relay.verify_report");
            let typed = match command.strip_suffix("--report 12") {
                Some(command) => format!("{command}--report {}", last().await),
                None => (*command).to_owned(),
            };
            let (ended, told) = told_of(&typed);
            assert_eq!(ended, Some(*code), "{typed}\n{told}");
            said.push((*command, told));
        }
    }
    let all =
        |command: &str| said.iter().filter(|(c, _)| *c == command).map(|(_, told)| told.as_str()).collect::<String>();
    for (command, expected) in [
        (
            "outbox-relay verify users --rate 20000",
            "3 differences. To mend from the legacy database: outbox-relay repair\n",
        ),
        ("outbox-relay repair users --report 12", "users 9999 would be deleted: is missing in legacy"),
        ("outbox-relay repair --apply --reason 'handler mended'", "give --yes. Nothing was changed"),
        ("outbox-relay repair --apply --reason 'handler mended' --yes", "users 4712 written: is missing in new"),
        ("outbox-relay resync users --keys 4711,4712", "1 to be written, 0 to be deleted, 1 right already"),
        ("outbox-relay verify", "users: not compared: seen_at (set by a trigger)"),
    ] {
        assert!(all(command).contains(expected), "{command}\n{}", all(command));
    }
    // And it says no other.
    let lines = blocks(&text, "sh").concat();
    let typed = lines.lines().map(|line| line.split(" #").next().unwrap().trim()).filter(|line| !line.is_empty());
    for command in typed {
        assert!(command.starts_with("make ") || MIGRATION.iter().any(|(known, _)| *known == command), "{command}");
    }
}

#[test]
fn every_link_of_the_documentation_leads_somewhere() {
    for (path, text) in pages() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(&path).parent().unwrap().to_owned();
        for link in links(&text) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let target =
                if file.is_empty() { Path::new(env!("CARGO_MANIFEST_DIR")).join(&path) } else { folder.join(file) };
            assert!(target.exists(), "{path}: {link}");
            if let Some(anchor) = anchor {
                let text = std::fs::read_to_string(&target).unwrap();
                assert!(headings(&text).iter().any(|heading| heading == anchor), "{path}: {link}");
            }
        }
    }
}

/// What stands in the round brackets of `[…](…)`, outside code.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link).collect()
}

/// As anchors, the way GitHub makes them.
fn headings(text: &str) -> Vec<String> {
    let heading = |line: &str| {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    text.lines().filter(|line| line.starts_with('#')).map(heading).collect()
}

#[test]
fn every_test_that_the_documentation_names_exists() {
    let mut named = 0;
    for (path, text) in pages() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(&path).parent().unwrap().to_owned();
        for (before, rest) in text.match_indices("`](").map(|(at, _)| (&text[..at], &text[at + 3..])) {
            let (name, link) = (before.rsplit('`').next().unwrap(), rest.split(')').next().unwrap());
            if link.ends_with(".rs") && link.contains("tests/it/") {
                let file = std::fs::read_to_string(folder.join(link)).unwrap();
                assert!(file.contains(&format!("fn {name}(")), "{path}: {name} is not in {link}");
                named += 1;
            }
        }
    }
    assert!(named > 0);
}

#[test]
fn every_configuration_in_the_documentation_is_understood() {
    let urls = [("OUTBOX_RELAY_LEGACY__URL", "postgres://l/m"), ("OUTBOX_RELAY_NEW__URL", "postgres://n/u")];
    let mut tried = 0;
    for (path, text) in pages() {
        for block in text.split("\n```toml\n").skip(1).map(|rest| rest.split("\n```").next().unwrap()) {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("outbox-relay.toml");
            std::fs::write(&file, block).unwrap();
            let env = urls.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let problems: Vec<String> = Config::load(Some(&file), &Overrides::default(), env)
                .err()
                .map_or(vec![], |errors| errors.problems().to_vec())
                .into_iter()
                // The SQL files that it names are not here.
                .filter(|problem| problem.code != Code::File)
                .map(|problem| problem.to_string())
                .collect();
            assert!(problems.is_empty(), "{path}: {}\n{block}", problems.join("\n"));
            tried += 1;
        }
    }
    assert!(tried > 3);
}

#[test]
fn every_promise_of_the_readme_names_its_tests() {
    let readme = page("README.md");
    let (_, rest) = readme.split_once("<!-- promises -->").unwrap();
    let (promises, _) = rest.split_once("<!-- /promises -->").unwrap();
    for promise in promises.split("\n").collect::<Vec<_>>().join("\n").split(". **").skip(1) {
        assert!(promise.contains("(tests/it/"), "{promise}");
    }
}

#[test]
fn every_command_and_flag_in_the_documentation_exists() {
    fn commands(command: &clap::Command, found: &mut Vec<String>, flags: &mut Vec<String>) {
        found.push(command.get_name().to_owned());
        flags.extend(command.get_arguments().filter_map(|a| a.get_long()).map(|long| format!("--{long}")));
        command.get_subcommands().for_each(|sub| commands(sub, found, flags));
    }
    let (mut known, mut flags) = (Vec::new(), vec!["--help".to_owned(), "--version".to_owned()]);
    commands(&Cli::command(), &mut known, &mut flags);
    // Of other programs that the documentation shows.
    let others = [
        "--release",
        "--profile",
        "--locked",
        "--build",
        "--detach",
        "--volumes",
        "--all-features",
        "--features",
        "--tests",
        "--edit",
    ];
    for (path, text) in pages() {
        for word in text.split(|c: char| !(c.is_alphanumeric() || c == '-')) {
            let is_flag = word.starts_with("--") && word.len() > 2 && !word[2..].starts_with('-');
            if is_flag && !others.contains(&word) {
                assert!(flags.iter().any(|flag| flag == word), "{path}: {word} is no flag of any command");
            }
        }
        for (at, _) in text.match_indices("outbox-relay ") {
            let follows = text[at + 13..].split(|c: char| !(c.is_alphanumeric() || c == '-')).next().unwrap();
            let in_code = text[..at].ends_with(['`', '\n', '|', ' '])
                && text[..at].rsplit('\n').next().unwrap().matches('`').count() % 2 == 1;
            if in_code && !follows.is_empty() && !follows.starts_with('-') {
                assert!(known.iter().any(|command| command == follows), "{path}: `outbox-relay {follows}`");
            }
        }
    }
}
