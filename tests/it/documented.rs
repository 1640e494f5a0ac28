//! The operations guide lists what the program can say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outbox_relay::event::Lane;
use outbox_relay::metrics::Metrics;

use crate::readme::page;

const GUIDE: &str = "docs/operations.md";

/// The program's own source, without its unit tests and without the demo, which explains itself.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]\nmod ").next().unwrap().to_owned();
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.retain(|(path, _)| !path.to_string_lossy().contains("/src/demo"));
    found
}

/// Whether this is how a code is written: `mapping.column`.
fn is_code(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let word = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    parts.len() == 2 && parts.iter().all(word)
}

/// Keys of the configuration are written likewise, and so are names of files, fields of logs and traces, and columns in SQL.
fn is_something_else(code: &str) -> bool {
    let sections = [
        "legacy",
        "new",
        "relay",
        "retry",
        "retention",
        "admin",
        "alerts",
        "redact",
        "log",
        "verify",
        "backfill",
        "entity",
        "event",
        "service",
    ];
    let (first, last) = code.split_once('.').unwrap();
    sections.contains(&first)
        || first.len() == 1
        || ["sql", "toml", "json", "rs", "pid", "conf", "log", "lock", "org", "css"].contains(&last)
}

#[test]
fn every_code_that_the_program_can_print_is_in_the_operations_guide() {
    let guide = page(GUIDE);
    let mut codes = BTreeSet::new();
    for (path, text) in sources() {
        if path.ends_with("health/matter.rs") {
            codes.extend(text.split("Some(\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
        }
        // Strings without escapes: every second part, if the first is not one.
        codes.extend(text.split('"').filter(|part| is_code(part) && !is_something_else(part)).map(str::to_owned));
        for before in ["\"code\": \"", "code: \"", "refused(\"", "unprocessable(\"", "Problem::new(StatusCode::"] {
            for rest in text.split(before).skip(1) {
                let rest =
                    if before.ends_with("::") { rest.split_once("\"").map_or("", |(_, rest)| rest) } else { rest };
                let code = rest.split('"').next().unwrap();
                if !code.is_empty() && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'.') {
                    codes.insert(code.to_owned());
                }
            }
        }
    }
    for expected in ["config.value", "mapping.column", "unmapped"] {
        assert!(codes.contains(expected), "{expected} is not found any more: {codes:?}");
    }
    let missing: Vec<&String> = codes.iter().filter(|code| !guide.contains(&format!("`{code}`"))).collect();
    assert!(missing.is_empty(), "not in {GUIDE}: {missing:?}");
}

#[test]
fn every_warning_and_error_of_the_log_is_in_the_operations_guide() {
    let guide = page(GUIDE);
    let mut missing = Vec::new();
    for (path, text) in sources() {
        for call in ["tracing::warn!(", "tracing::error!("] {
            for rest in text.split(call).skip(1) {
                // The message is the last string of the call.
                let arguments = &rest[..rest.find(");").or(rest.find(")\n")).unwrap_or(rest.len())];
                let Some(message) = arguments.split('"').skip(1).step_by(2).last() else { continue };
                let fixed = message.split(['{', ':', '\\']).next().unwrap().trim();
                if !fixed.is_empty() && !guide.contains(fixed) {
                    missing.push(format!("{}: {message}", path.display()));
                }
            }
        }
    }
    assert!(missing.is_empty(), "not in {GUIDE}: {missing:#?}");
}

/// The names of all metrics, as they are written in queries.
pub(crate) fn metrics_known() -> BTreeSet<String> {
    let metrics = Metrics::default();
    metrics.batch_settled(Lane(0), Duration::from_millis(1));
    metrics.events("processed", "User", 1);
    metrics.lag(0.1);
    metrics.healed("settled");
    metrics.breaker("target", true);
    metrics.stopped_lanes([Lane(0)]);
    metrics.backlog([("User", "pending", 1)], Some(Duration::from_secs(1)));
    metrics.retention_deleted(1);
    metrics.ghost_ended("source");
    metrics.copied("users", 1, [("refused", 1), ("pending", 0), ("waiting", 0)]);
    metrics.copy_remains("users", 1);
    metrics.verified(
        "users",
        1.0,
        1.0,
        1,
        [("missing_in_new", 0), ("missing_in_legacy", 0), ("differs", 1), ("refused", 0), ("could_not", 0)],
    );
    metrics.repaired("users", 1, 0);
    let text = metrics.encode();
    let samples: BTreeSet<&str> =
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(['{', ' ']).next()).collect();
    let named = |sample: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|s| sample.strip_suffix(s)).unwrap_or(sample).to_owned()
    };
    samples.into_iter().map(named).collect()
}

#[test]
fn the_operations_guide_has_every_metric_and_no_other() {
    let guide = page(GUIDE);
    let written: BTreeSet<String> = guide
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("outbox_relay_"))
        .map(str::to_owned)
        .collect();
    assert_eq!(written, metrics_known());
}
