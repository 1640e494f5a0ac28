//! The admin API against its own description, by schemathesis: thousands of requests that the description allows, and such
//! that it forbids. `scripts/setup --tests` installs it; where that was not possible, this test says so and passes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;

use crate::admin::{Api, tokens};
use crate::support::{copying, pair};

/// What no idle machine comes near.
const AT_MOST: std::time::Duration = std::time::Duration::from_secs(400);

/// Whose requests.
struct Caller {
    token: Option<&'static str>,
    phases: &'static str,
    examples: u32,
    /// What does not hold for this caller, and is no fault.
    exclude: &'static str,
}

const CALLERS: [Caller; 3] = [
    Caller { token: None, phases: "fuzzing", examples: 2, exclude: "" },
    Caller { token: Some("only-look"), phases: "coverage,fuzzing", examples: 6, exclude: "" },
    // What a schema cannot say: a reason is needed unless this is a dry run; everything, or one aggregate type.
    Caller {
        token: Some("all-of-it"),
        phases: "coverage,fuzzing,stateful",
        examples: 8,
        exclude: "positive_data_acceptance",
    },
];

fn installed() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools").join("schemathesis");
    if !folder.join("bin/schemathesis").exists() {
        eprintln!(
            "skipped: schemathesis is not installed; scripts/setup --tests does so where there are python3 and pip"
        );
        return None;
    }
    Some(folder)
}

#[tokio::test]
async fn no_request_gets_a_5xx_or_an_answer_that_is_not_described() {
    let Some(folder) = installed() else { return };
    // With legacy rows, so that copies, verifications and repairs begin.
    let stage = copying::stage(pair().await, 30, |config| config.retry.attempts = 1).await;
    let running = stage.start().await;
    let api = Api::start(&stage.config, tokens(), Some(running.shared.clone())).await;
    // Something in every state.
    for id in 1..=30 {
        stage.event("User", &id.to_string(), "UserCreated", &json!({"id": id, "name": null}).to_string()).await;
        stage.user(id, "UserUpdated", "Ada", 2).await;
        stage.thing(&id.to_string(), 1).await;
    }
    stage.drained().await;
    let started = Instant::now();
    for caller in CALLERS {
        let who = caller.token;
        let run = command(&folder, &api.client.url, &caller);
        let (ended, said) = tokio::task::spawn_blocking(move || run_within(run)).await.unwrap();
        assert!(ended, "{who:?}:\n{said}");
        eprintln!("schemathesis as {who:?}: {:?}\n{}", started.elapsed(), summary(&said));
    }
    // It still works, and so does the relay.
    let admin = api.client.with(Some("all-of-it"));
    for paused in admin.get("/v1/pause").await.ok()["paused"].as_array().unwrap() {
        let body = json!({"aggregate_type": paused["aggregate_type"], "reason": "on we go"});
        admin.post("/v1/resume", body).await.ok();
    }
    let last = stage.thing("the last", 1).await;
    crate::support::eventually(crate::support::DEADLINE, "it flows", || async {
        stage.status(last).await == "processed"
    })
    .await;
    api.stop().await;
    running.stop().await;
}

fn command(folder: &Path, url: &str, caller: &Caller) -> Command {
    let mut command = Command::new("python3");
    command
        .arg(folder.join("bin/schemathesis"))
        .args(["run", &format!("{url}/v1/openapi.json"), "--no-color"])
        .args(["--seed", "1", "--generation-deterministic", "--workers", "2", "--request-timeout", "60"])
        .args(["--suppress-health-check", "all", "--warnings", "off"])
        .args(["--phases", caller.phases, "--max-examples", &caller.examples.to_string()])
        .env("PYTHONPATH", folder)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::null());
    if let Some(token) = caller.token {
        command.args(["--header", &format!("Authorization: Bearer {token}")]);
    }
    if !caller.exclude.is_empty() {
        command.args(["--exclude-checks", caller.exclude]);
    }
    command
}

/// Whether it ended well, and what it said.
fn run_within(mut command: Command) -> (bool, String) {
    let out = tempfile::NamedTempFile::new().unwrap();
    let (stdout, stderr) = (out.reopen().unwrap(), out.reopen().unwrap());
    let mut child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
    let started = Instant::now();
    let ended = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.success();
        }
        if started.elapsed() > AT_MOST {
            let _ = child.kill();
            let _ = child.wait();
            break false;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    (ended, std::fs::read_to_string(out.path()).unwrap_or_default())
}

fn summary(said: &str) -> &str {
    said.rfind("Test cases:").map_or("", |at| &said[at..])
}
