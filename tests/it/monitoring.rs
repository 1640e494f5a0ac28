//! What `deploy/` holds: alert rules and the dashboard speak of metrics that there are, the rules do what they say, and the
//! configurations are understood.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use outbox_relay::config::{Config, Overrides};

use crate::documented::metrics_known;
use crate::readme::page;

const RULES: &str = "deploy/prometheus/alerts.yaml";
const TESTS: [&str; 2] = ["deploy/prometheus/alerts.test.yaml", "deploy/prometheus/alerts.days.test.yaml"];
const DASHBOARD: &str = "deploy/grafana/outbox-relay.json";

/// Words of a text that begin as our metrics do, without what a histogram adds.
fn named(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("outbox_relay_"))
        .map(|word| ["_bucket", "_sum", "_count"].iter().find_map(|s| word.strip_suffix(s)).unwrap_or(word).to_owned())
        .collect()
}

fn expressions() -> Vec<String> {
    let dashboard: serde_json::Value = serde_json::from_str(&page(DASHBOARD)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn alert_rules_and_the_dashboard_name_only_metrics_that_there_are() {
    let known = metrics_known();
    for path in [RULES, TESTS[0], TESTS[1], DASHBOARD] {
        let unknown: Vec<String> = named(&page(path)).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{path}: {unknown:?}");
    }
}

#[test]
fn every_alert_has_a_remedy_in_the_operations_guide_and_leads_to_a_heading_of_it() {
    let guide = page("docs/operations.md");
    let anchors: BTreeSet<String> = guide
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')))
        .map(|heading| heading.to_lowercase().replace(' ', "-").replace(['.', ','], ""))
        .collect();
    let rules = page(RULES);
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(guide.contains(&format!("| {alert} |")), "{alert} has no remedy");
        let fires = |tests: &&str| page(tests).contains(&format!("alertname: {alert}\n"));
        assert!(TESTS.iter().any(fires), "{alert} is never seen to fire");
    }
    for runbook in rules.lines().filter_map(|line| line.trim().strip_prefix("runbook: docs/operations.md#")) {
        assert!(anchors.contains(runbook), "{runbook}: no such heading among {anchors:?}");
    }
}

#[test]
fn the_alert_rules_fire_when_they_should_and_no_sooner() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = Command::new(root.join("scripts/promtool")).output().unwrap();
    if !found.status.success() {
        eprintln!("skipped: {}", String::from_utf8_lossy(&found.stderr));
        return;
    }
    let promtool = String::from_utf8(found.stdout).unwrap();
    for arguments in [["check", "rules", RULES], ["test", "rules", TESTS[0]], ["test", "rules", TESTS[1]]] {
        let output = Command::new(promtool.trim()).args(arguments).current_dir(root).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}\n{said}");
    }
    // The dashboard's expressions, as rules: whatever Prometheus cannot parse is found.
    let folder = tempfile::tempdir().unwrap();
    let mut rules = String::from("groups:\n- name: dashboard\n  rules:\n");
    for (at, expression) in expressions().iter().enumerate() {
        let expression = expression.replace("$__rate_interval", "1m").replace("$instance", ".*");
        rules += &format!("  - record: panel:{at}\n    expr: {expression:?}\n");
    }
    let file = folder.path().join("dashboard.yaml");
    std::fs::write(&file, rules).unwrap();
    let output = Command::new(promtool.trim()).args(["check", "rules"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What a file of `deploy` sets of the relay's variables: `NAME=value` or `NAME: value`.
fn variables_of(path: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let words = lines
        .flat_map(|line| line.trim().strip_prefix("ENV ").map_or(vec![line.trim()], |all| all.split(' ').collect()));
    let pair = |word: &str| {
        let (name, value) = word.split_once(": ").or_else(|| word.split_once('='))?;
        name.starts_with("OUTBOX_RELAY_").then(|| (name.to_owned(), value.trim_matches('"').to_owned()))
    };
    words.filter_map(pair).collect()
}

#[test]
fn the_image_starts_in_the_clear_only_where_somebody_says_that_a_proxy_has_tls() {
    let image = variables_of("Dockerfile");
    assert!(
        image.iter().any(|(name, value)| name == "OUTBOX_RELAY_ADMIN__LISTEN" && value == "0.0.0.0:8080"),
        "{image:?}"
    );
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/compose/outbox-relay.toml");
    let refusal = |more: Vec<(String, String)>| {
        let all = image.iter().cloned().chain(more);
        Config::load(Some(&file), &Overrides::default(), all)
            .unwrap_or_else(|errors| panic!("{errors}"))
            .admin
            .refusal()
    };
    let compose = variables_of("compose.yaml");
    assert_eq!(refusal(compose.clone()), None);
    let without = compose.into_iter().filter(|(name, _)| name != "OUTBOX_RELAY_ADMIN__BEHIND_PROXY").collect();
    assert!(refusal(without).unwrap().contains("admin.behind_proxy = true"));
}

#[test]
fn the_configurations_that_are_deployed_are_understood() {
    for path in ["deploy/compose/outbox-relay.toml", "deploy/kubernetes/outbox-relay.toml"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let secrets = [
            ("OUTBOX_RELAY_LEGACY__URL", "postgres://relay@legacy/monolith"),
            ("OUTBOX_RELAY_NEW__URL", "postgres://relay@new/users"),
            ("OUTBOX_RELAY_ADMIN_TOKEN", "0123456789abcdef0123456789abcdef"),
        ];
        let variables = secrets.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let config = Config::load(Some(&file), &Overrides::default(), variables);
        let config = config.unwrap_or_else(|errors| panic!("{path}:\n{errors}"));
        assert_eq!(config.admin.refusal(), None, "{path}");
    }
}
