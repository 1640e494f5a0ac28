//! Alerts to a webhook, by the real program against a real HTTP server.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::StatusCode;
use axum::routing::post;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::run::Relay;
use crate::support::copying;
use crate::support::stage::Stage;
use crate::support::{eventually, pair};

/// Processes start, count their backlog every five seconds and look every two.
const PATIENCE: Duration = Duration::from_secs(90);

/// Known to every process at its next look.
const DIVERGENT: &str = "INSERT INTO outbox_relay.divergent (lane, token, id, event_id, aggregate_type, aggregate_id) \
                         VALUES (0, 1, 1, gen_random_uuid(), 'User', '1')";

/// A webhook that answers these first, and then takes everything.
struct Hook {
    url: String,
    taken: Arc<Mutex<Vec<Value>>>,
    refused: Arc<Mutex<Vec<StatusCode>>>,
}

impl Hook {
    async fn open(refuse: &[StatusCode]) -> Hook {
        Hook::slow(refuse, Duration::ZERO).await
    }

    /// Answers after so long.
    async fn slow(refuse: &[StatusCode], after: Duration) -> Hook {
        let (taken, refused) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(refuse.to_vec())));
        let (keep, answers) = (taken.clone(), refused.clone());
        let handler = move |body: axum::Json<Value>| {
            let answer = answers.lock().unwrap().pop();
            if answer.is_none() {
                keep.lock().unwrap().push(body.0);
            }
            async move {
                tokio::time::sleep(after).await;
                answer.unwrap_or(StatusCode::OK)
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/services/s3cret", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, axum::Router::new().route("/services/s3cret", post(handler))).into_future());
        Hook { url, taken, refused }
    }

    /// What it took: what, and state.
    fn taken(&self) -> Vec<(String, String)> {
        let text = |message: &Value, key: &str| message[key].as_str().unwrap().to_owned();
        self.taken.lock().unwrap().iter().map(|it| (text(it, "what"), text(it, "state"))).collect()
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(what, state)| ((*what).to_owned(), (*state).to_owned())).collect()
}

#[tokio::test]
async fn of_two_processes_one_tells_of_a_failure_and_after_a_restart_that_it_is_over() {
    let stage = Stage::new().await;
    let hook = Hook::open(&[StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE]).await;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("webhook");
    std::fs::write(&secret, format!("{}\n", hook.url)).unwrap();
    let variables = [
        ("OUTBOX_RELAY_ALERTS__WEBHOOK_FILE", secret.to_str().unwrap()),
        ("OUTBOX_RELAY_ALERTS__AFTER", "0s"),
        ("OUTBOX_RELAY_ALERTS__RECOVERY", "10s"),
        ("OUTBOX_RELAY_RETRY__ATTEMPTS", "1"),
        ("OUTBOX_RELAY_ADMIN__URL", "https://relay.example.org/"),
    ];
    let relays = [(); 2].map(|()| Relay::start_with(&stage, &[], &variables));
    stage.event("User", "1", "UserCreated", r#"{"id": 1, "name": null, "version": 1}"#).await;
    let failing = || hook.taken().iter().filter(|(what, _)| what == "failures").cloned().collect::<Vec<_>>();
    eventually(PATIENCE, "the failure is told", || async { !failing().is_empty() }).await;
    assert!(hook.refused.lock().unwrap().is_empty(), "it was tried again until it was taken");
    let noted = "SELECT count(*) FROM outbox_relay.alert WHERE what = 'failures' AND firing";
    eventually(PATIENCE, "and noted", || async { stage.pair.legacy.value::<i64>(noted).await == 1 }).await;
    // Somebody sees it, and both processes end before it is mended.
    let mut logs = String::new();
    for relay in relays {
        logs += &relay.log();
        drop(relay);
    }
    assert_eq!(failing(), pairs(&[("failures", "firing")]), "by one of them, and once");
    stage.pair.legacy.run("UPDATE outbox SET status = 'skipped' WHERE status = 'failed'").await;
    let relay = Relay::start_with(&stage, &[], &variables);
    eventually(PATIENCE, "its end is told", || async { failing().len() > 1 }).await;
    logs += &relay.log();
    assert_eq!(failing(), pairs(&[("failures", "firing"), ("failures", "resolved")]));
    let rows = "SELECT count(*) FROM outbox_relay.alert WHERE what = 'failures'";
    eventually(PATIENCE, "nothing is kept of it", || async { stage.pair.legacy.value::<i64>(rows).await == 0 }).await;
    assert!(logs.contains("an alert could not be posted") && !logs.contains("s3cret"), "{logs}");
    let first = hook.taken.lock().unwrap().iter().find(|it| it["what"] == "failures").cloned().unwrap();
    assert_eq!((&first["value"], &first["threshold"], &first["again"]), (&1.0.into(), &1.0.into(), &false.into()));
    let text = first["text"].as_str().unwrap();
    assert!(
        text.contains("1 event has failed and waits for you.") && text.ends_with("\nhttps://relay.example.org"),
        "{text}"
    );
}

#[tokio::test]
async fn while_one_process_sends_a_message_no_other_sends_it_too() {
    let stage = Stage::new().await;
    // Both look every two seconds: the other one does while the first waits for the answer.
    let hook = Hook::slow(&[], Duration::from_millis(2500)).await;
    let variables = [("OUTBOX_RELAY_ALERTS__WEBHOOK", hook.url.as_str()), ("OUTBOX_RELAY_ALERTS__AFTER", "0s")];
    let relays = [(); 2].map(|()| Relay::start_with(&stage, &[], &variables));
    for relay in &relays {
        eventually(PATIENCE, "it runs", || async { relay.log().contains("the relay runs") }).await;
    }
    stage.pair.legacy.run(DIVERGENT).await;
    let told = "SELECT count(*) FROM outbox_relay.alert WHERE what = 'divergent' AND firing";
    eventually(PATIENCE, "it is told", || async { stage.pair.legacy.value::<i64>(told).await == 1 }).await;
    drop(relays);
    let of_it: Vec<_> = hook.taken().into_iter().filter(|(what, _)| what == "divergent").collect();
    assert_eq!(of_it, pairs(&[("divergent", "firing")]));
}

#[tokio::test]
async fn rows_that_a_first_copy_left_out_are_told_until_a_later_one_has_brought_them() {
    let stage = copying::stage(pair().await, 20, |_| {}).await;
    let hook = Hook::open(&[]).await;
    let variables = [
        ("OUTBOX_RELAY_ALERTS__WEBHOOK", hook.url.as_str()),
        ("OUTBOX_RELAY_ALERTS__AFTER", "0s"),
        ("OUTBOX_RELAY_ALERTS__RECOVERY", "1s"),
    ];
    stage.pair.new.run("ALTER TABLE users ADD CONSTRAINT names CHECK (name NOT IN ('n7', 'n8'))").await;
    assert_eq!(copying::copy(&stage).await.copies[0].refused, 2);
    let relay = Relay::start_with(&stage, &[], &variables);
    let told = || hook.taken().into_iter().filter(|(what, _)| what == "rows_left").collect::<Vec<_>>();
    eventually(PATIENCE, "it is told", || async { told() == pairs(&[("rows_left", "firing")]) }).await;
    stage.pair.new.run("ALTER TABLE users DROP CONSTRAINT names").await;
    assert!(copying::copy(&stage).await.is_whole());
    let both = pairs(&[("rows_left", "firing"), ("rows_left", "resolved")]);
    eventually(PATIENCE, "and that it is over", || async { told() == both }).await;
    let text = hook.taken.lock().unwrap().iter().find(|it| it["what"] == "rows_left").unwrap()["text"].to_string();
    assert!(text.contains("The first copy of users left 2 rows out."), "{text}");
    drop(relay);
}

#[tokio::test]
async fn a_test_message_tells_whether_alerts_arrive() {
    let hook = Hook::open(&[StatusCode::FORBIDDEN]).await;
    let tried = |url: String| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
        command.args(["alerts", "test"]).env("OUTBOX_RELAY_ALERTS__WEBHOOK", url);
        command.env("OUTBOX_RELAY_LEGACY__URL", "postgres://relay@legacy.internal/monolith");
        command.env("OUTBOX_RELAY_NEW__URL", "postgres://relay@new.internal/users");
        command.current_dir(std::env::temp_dir());
        tokio::task::spawn_blocking(move || {
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            (output.status.code(), said.into_owned())
        })
    };
    let (code, said) = tried(hook.url.clone()).await.unwrap();
    assert!(code == Some(2) && said.contains("it answered 403") && !said.contains("s3cret"), "{said}");
    let (code, said) = tried(hook.url.clone()).await.unwrap();
    assert!(code == Some(0) && said.starts_with("sent to http://127.0.0.1:") && !said.contains("s3cret"), "{said}");
    assert_eq!(hook.taken(), pairs(&[("test", "resolved")]));
    let relay = hook.taken.lock().unwrap()[0]["relay"].clone();
    assert_eq!(relay, "public.outbox on legacy.internal/monolith");
    let (code, said) = tried(String::new()).await.unwrap();
    assert!(code == Some(2) && said.contains("no webhook is configured"), "{said}");
}
