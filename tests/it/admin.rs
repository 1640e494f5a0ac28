//! The admin API: real HTTP on a real listener, in front of a real relay.

#![allow(unreachable_pub, reason = "there is nobody outside")]

use std::sync::Arc;
use std::time::Duration;

use outbox_relay::admin::{self, AdminState};
use outbox_relay::config::{Config, OnFailure, Role, Token};
use outbox_relay::event::Lane;
use outbox_relay::metrics::Metrics;
use outbox_relay::operator::backlog::Sampler;
use outbox_relay::operator::history::History;
use outbox_relay::operator::{self, Operator};
use outbox_relay::relay::Shared;
use outbox_relay::source::Names;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::contract;
use crate::support::stage::{Stage, oracle, users};
use crate::support::{DEADLINE, eventually};

/// The API of a process, with or without a relay.
pub struct Api {
    pub client: Client,
    operator: Operator,
    stop: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
    sampler: JoinHandle<()>,
}

/// Somebody with a token, or without.
#[derive(Clone)]
pub struct Client {
    pub url: String,
    token: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
    redirects: u32,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The answer of a call that worked.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }

    /// The code of a call that did not, which must be a problem document.
    #[track_caller]
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        let body = self.json();
        assert_eq!(body["status"], status, "{self:?}");
        assert!(["type", "title", "detail"].iter().all(|key| body[key].is_string()), "{self:?}");
        body["code"].as_str().unwrap().to_owned()
    }
}

impl Client {
    /// Nobody, at a server.
    pub fn at(url: String) -> Client {
        Client { url, token: None, headers: Vec::new(), redirects: 10 }
    }

    pub fn with(&self, token: Option<&'static str>) -> Client {
        Client { token, ..self.clone() }
    }

    pub fn header(mut self, name: &'static str, value: &'static str) -> Client {
        self.headers.push((name, value));
        self
    }

    pub fn without_redirects(mut self) -> Client {
        self.redirects = 0;
        self
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send("POST", path, Some(body.to_string())).await
    }

    pub async fn send(&self, method: &'static str, path: &str, body: Option<String>) -> Reply {
        let (uri, said) = (format!("{}{path}", self.url), path.to_owned());
        let Client { token, headers, redirects, .. } = self.clone();
        let call = move || {
            let config = ureq::Agent::config_builder().http_status_as_error(false).max_redirects(redirects);
            let config = config.timeout_global(Some(DEADLINE)).build();
            let agent: ureq::Agent = config.into();
            let mut request = ureq::http::Request::builder().method(method).uri(uri);
            if let Some(token) = token {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if body.is_some() && !headers.iter().any(|(name, _)| *name == "Content-Type") {
                request = request.header("Content-Type", "application/json");
            }
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let response = match body {
                Some(body) => agent.run(request.body(body).unwrap()),
                None => agent.run(request.body(()).unwrap()),
            };
            let mut response = response.expect("an answer");
            let text = response.body_mut().read_to_string().unwrap();
            contract::holds(method, &said, &response, &text);
            Reply { status: response.status().as_u16(), headers: response.headers().clone(), text }
        };
        tokio::task::spawn_blocking(call).await.unwrap()
    }
}

impl Api {
    pub async fn start(config: &Config, tokens: Vec<Token>, relay: Option<Arc<Shared>>) -> Api {
        let operator = Operator::new(config).unwrap();
        if let Some(relay) = relay {
            operator.attach(relay);
        }
        let stop = CancellationToken::new();
        let (sampler, backlog) = Sampler::new(operator.clone());
        let sampler = tokio::spawn(sampler.run(stop.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = AdminState {
            operator: operator.clone(),
            backlog,
            tokens,
            metrics: Metrics::default(),
            history: History::default(),
            config: config.clone(),
        };
        let server = tokio::spawn(admin::serve(listener, state, stop.clone()));
        Api { client: Client::at(url), operator, stop, server, sampler }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.server.await.unwrap().unwrap();
        self.sampler.await.unwrap();
    }
}

impl Stage {
    /// The API without tokens, beside a relay whose batches the test does by hand.
    pub async fn api(&self) -> (Arc<Shared>, Api) {
        let shared = self.shared().await;
        let api = Api::start(&self.config, Vec::new(), Some(shared.clone())).await;
        (shared, api)
    }

    /// A user's event that the new database refuses while names are NOT NULL.
    pub async fn nameless(&self, id: i64, version: i32) -> i64 {
        let payload = json!({"id": id, "name": null, "version": version}).to_string();
        self.event("User", &id.to_string(), "UserCreated", &payload).await
    }

    pub async fn mend(&self) {
        self.pair.new.run("ALTER TABLE users ALTER name DROP NOT NULL").await;
    }

    /// All users as the new database has them.
    async fn rows(&self) -> String {
        let sql = "SELECT coalesce(string_agg(format('%s %s %s', id, coalesce(name, '-'), version), ', ' ORDER BY id), '') FROM users";
        self.pair.new.value(sql).await
    }

    pub async fn audits(&self) -> i64 {
        self.pair.legacy.value("SELECT count(*) FROM outbox_relay.audit").await
    }
}

/// Gives up at the first failure.
pub async fn strict() -> Stage {
    Stage::with(|config| config.retry.attempts = 1).await
}

pub fn tokens() -> Vec<Token> {
    vec![
        Token { name: "ops".into(), role: Role::Admin, secret: "all-of-it".into() },
        Token { name: "board".into(), role: Role::Read, secret: "only-look".into() },
    ]
}

#[tokio::test]
async fn tokens_decide_who_may_read_and_who_may_change() {
    let stage = strict().await;
    let shared = stage.shared().await;
    let id = stage.nameless(1, 1).await;
    stage.drain_by_hand(&shared).await;
    let api = Api::start(&stage.config, tokens(), Some(shared)).await;
    let (nobody, ops, board) =
        (api.client.clone(), api.client.with(Some("all-of-it")), api.client.with(Some("only-look")));
    let body = json!({"reason": "mended"});
    for path in ["/v1/backlog", "/v1/events", "/v1/failures", "/v1/audit", "/v1/pause", "/metrics", "/nowhere"] {
        let refused = nobody.get(path).await;
        assert_eq!(refused.problem(401), "unauthorized", "{path}");
        assert!(refused.headers["www-authenticate"].to_str().unwrap().starts_with("Bearer "));
        assert_eq!(nobody.with(Some("all-of-i")).get(path).await.problem(401), "unauthorized", "{path}");
        let expected = if path == "/nowhere" { 404 } else { 200 };
        assert_eq!(board.get(path).await.status, expected, "{path}");
    }
    for path in [&format!("/v1/events/{id}/replay"), "/v1/events/skip", "/v1/pause", "/v1/resume"] {
        assert_eq!(nobody.post(path, body.clone()).await.problem(401), "unauthorized", "{path}");
        assert_eq!(board.post(path, body.clone()).await.problem(403), "read_only", "{path}");
    }
    assert_eq!((stage.status(id).await, stage.audits().await), ("failed".to_owned(), 0));
    assert_eq!(nobody.get("/healthz").await.ok(), json!({"status": "ok"}));

    let by_alice = ops.header("X-Actor", "alice@example.org");
    assert_eq!(by_alice.post(&format!("/v1/events/{id}/replay"), body).await.ok()["changed"], true);
    let actor: String = stage.pair.legacy.value("SELECT actor FROM outbox_relay.audit").await;
    assert_eq!(actor, "ops (alice@example.org)");
    api.stop().await;
}

#[tokio::test]
async fn without_tokens_only_this_machine_is_served() {
    let stage = Stage::new().await;
    let (_, api) = stage.api().await;
    assert_eq!(api.client.clone().header("Host", "rebound.example.org").get("/v1/backlog").await.problem(403), "host");
    let form = api.client.clone().header("Content-Type", "text/plain");
    assert_eq!(form.post("/v1/pause", json!({"reason": "a page in a browser"})).await.problem(415), "content_type");
    for by_a_proxy in ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"] {
        let proxied = api.client.clone().header(by_a_proxy, "192.0.2.1");
        assert_eq!(proxied.get("/v1/backlog").await.problem(403), "forwarded", "{by_a_proxy}");
    }
    api.client.get("/v1/backlog").await.ok();
    api.stop().await;
}

#[tokio::test]
async fn every_error_is_a_problem_document() {
    let stage = Stage::new().await;
    let (_, api) = stage.api().await;
    let call = &api.client;
    assert_eq!(call.get("/v1/nothing").await.problem(404), "not_found");
    assert_eq!(call.get("/v1/events/41").await.problem(404), "not_found");
    assert_eq!(call.get("/v1/events/00000000-0000-4000-8000-000000000000").await.problem(404), "not_found");
    assert_eq!(call.get("/v1/events/x").await.problem(400), "malformed");
    assert_eq!(call.get("/v1/events/%ff").await.problem(400), "malformed");
    assert_eq!(call.send("DELETE", "/v1/events/41", None).await.problem(405), "method");
    assert_eq!(call.get("/v1/resume").await.problem(405), "method");
    for query in ["limit=0", "limit=1001", "limit=x", "cursor=x", "limit=1&limit=2"] {
        assert_eq!(call.get(&format!("/v1/events?{query}")).await.problem(400), "malformed", "{query}");
    }
    for query in ["stauts=failed", "status=Failed"] {
        assert_eq!(call.get(&format!("/v1/events?{query}")).await.problem(422), "filter.unknown", "{query}");
    }
    let posted = async |path: &str, body: &str| call.send("POST", path, Some(body.to_owned())).await;
    assert_eq!(posted("/v1/events/skip", "{").await.problem(400), "malformed");
    assert_eq!(posted("/v1/events/skip", r#"{"filtre": {}}"#).await.problem(400), "malformed");
    assert_eq!(posted("/v1/events/skip", r#"{"filter": {"state": "failed"}}"#).await.problem(422), "filter.unknown");
    assert_eq!(posted("/v1/events/skip", r#"{"filter": {"status": "sad"}}"#).await.problem(422), "filter.unknown");
    assert_eq!(posted("/v1/events/skip", r#"{"reason": "x"}"#).await.problem(422), "filter.empty");
    let processed = r#"{"filter": {"status": "processed"}, "reason": "x"}"#;
    assert_eq!(posted("/v1/events/replay", processed).await.problem(422), "filter.status");
    for body in ["{}", r#"{"reason": "  "}"#] {
        for path in ["/v1/events/41/replay", "/v1/events/41/skip", "/v1/pause", "/v1/resume"] {
            assert_eq!(posted(path, body).await.problem(422), "reason.missing", "{path}");
        }
    }
    assert_eq!(posted("/v1/events/41/replay", r#"{"reason": "x"}"#).await.problem(404), "not_found");
    let large = format!(r#"{{"reason": "{}"}}"#, "x".repeat(1 << 20));
    assert_eq!(posted("/v1/pause", &large).await.problem(413), "too_large");
    assert_eq!(stage.audits().await, 0);
    api.stop().await;
}

#[tokio::test]
async fn what_failed_flows_when_it_is_replayed_after_its_cause_was_mended() {
    let stage = strict().await;
    let running = stage.start().await;
    let api = Api::start(&stage.config, Vec::new(), Some(running.shared.clone())).await;
    let call = &api.client;
    let failed = stage.nameless(1, 1).await;
    eventually(DEADLINE, "it fails", || async { stage.status(failed).await == "failed" }).await;
    let behind = stage.user(1, "UserUpdated", "Ada", 2).await;
    let other = stage.user(2, "UserCreated", "Bob", 1).await;
    eventually(DEADLINE, "the other flows, the later one is held", || async {
        stage.status(other).await == "processed" && stage.status(behind).await == "held"
    })
    .await;

    let causes = call.get("/v1/failures").await.ok();
    let cause = &causes["items"][0];
    assert_eq!((&cause["count"], &cause["sample_ids"], &cause["code"]), (&json!(1), &json!([failed]), &json!("23502")));
    assert_eq!(cause["entity"], "users");
    let query = format!("/v1/events?cause={}&status=failed", cause["cause"].as_str().unwrap());
    let listed = call.get(&query).await.ok();
    assert_eq!((&listed["items"][0]["id"], &listed["next_cursor"]), (&json!(failed), &Value::Null));
    assert!(listed["items"][0].get("payload").is_none());

    let event = call.get(&format!("/v1/events/{failed}")).await.ok();
    assert_eq!(event["payload"], json!({"id": 1, "name": null, "version": 1}));
    assert_eq!(
        (&event["status"], &event["holds_back"], &event["held_behind"]),
        (&json!("failed"), &json!(1), &Value::Null)
    );
    assert_eq!((&event["failure"]["column"], &event["failure"]["disposition"]), (&json!("name"), &json!("event")));
    assert_eq!(event["history"].as_array().unwrap().len(), 1);
    let by_uuid = call.get(&format!("/v1/events/{}", event["event_id"].as_str().unwrap())).await.ok();
    assert_eq!(by_uuid["id"], failed);
    assert_eq!(call.get(&format!("/v1/events/{behind}")).await.ok()["held_behind"], failed);
    let held = call.post(&format!("/v1/events/{behind}/replay"), json!({"reason": "?"})).await;
    assert_eq!(held.problem(409), "held");

    stage.mend().await;
    let replayed =
        call.post(&format!("/v1/events/{failed}/replay"), json!({"reason": "names may be null now"})).await.ok();
    assert_eq!(
        (&replayed["changed"], &replayed["id"], &replayed["attempts"]),
        (&json!(true), &json!(failed), &json!(0))
    );
    eventually(DEADLINE, "both flow", || async { stage.status(behind).await == "processed" }).await;
    assert_eq!(
        (stage.status(failed).await, stage.rows().await),
        ("processed".to_owned(), "1 Ada 2, 2 Bob 1".to_owned())
    );
    assert_eq!(call.get("/v1/failures").await.ok(), json!({"items": []}));
    let event = call.get(&format!("/v1/events/{failed}")).await.ok();
    assert_eq!((&event["failure"], event["history"].as_array().unwrap().len()), (&Value::Null, 1));

    let audit = call.get("/v1/audit").await.ok();
    let row = &audit["items"][0];
    assert_eq!((&row["actor"], &row["action"]), (&json!("local"), &json!("replay")));
    assert_eq!((&row["reason"], &row["changed"]), (&json!("names may be null now"), &json!(1)));
    assert_eq!((&row["subject"]["id"], audit["items"].as_array().unwrap().len()), (&json!(failed), 1));
    api.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_repeated_call_is_harmless() {
    let stage = strict().await;
    let (shared, api) = stage.api().await;
    let (first, second) = (stage.nameless(1, 1).await, stage.nameless(2, 1).await);
    stage.drain_by_hand(&shared).await;
    let (replay, skip) = (format!("/v1/events/{first}/replay"), format!("/v1/events/{second}/skip"));
    for changed in [true, false, false] {
        assert_eq!(api.client.post(&replay, json!({"reason": "again"})).await.ok()["changed"], changed);
        assert_eq!(api.client.post(&skip, json!({"reason": "again"})).await.ok()["changed"], changed);
        let paused = api.client.post("/v1/pause", json!({"aggregate_type": "User", "reason": "again"})).await.ok();
        assert_eq!(paused["changed"], changed);
    }
    for changed in [true, false] {
        let resumed = api.client.post("/v1/resume", json!({"aggregate_type": "User", "reason": "again"})).await.ok();
        assert_eq!((&resumed["changed"], &resumed["paused"]), (&json!(changed), &json!([])));
    }
    let actions: Vec<String> =
        api.operator.audits(10, None).await.unwrap().items.into_iter().map(|a| a.action).collect();
    assert_eq!(actions, ["resume", "pause", "skip", "replay"]);
    api.stop().await;
}

#[tokio::test]
async fn a_skip_releases_what_was_held_in_order() {
    let stage = Stage::with(|config| {
        config.retry.attempts = 1;
        config.relay.batch = 3;
        let mut things = oracle();
        things.aggregate_type = "User".into();
        things.events = [("UserMerged".to_owned(), things.events["Happened"].clone())].into();
        config.entities = vec![users(), things];
    })
    .await;
    let (shared, api) = stage.api().await;
    let failed = stage.nameless(1, 1).await;
    stage.drain_by_hand(&shared).await;
    let mut held = Vec::new();
    for version in 2..12 {
        held.push(stage.event("User", "1", "UserMerged", &format!("{{\"version\": {version}}}")).await);
    }
    stage.drain_by_hand(&shared).await;
    assert_eq!(stage.count("held").await, 10);
    stage.pass_by().await;
    let skipped = api.client.post(&format!("/v1/events/{failed}/skip"), json!({"reason": "a test user"})).await.ok();
    assert_eq!((&skipped["changed"], &skipped["status"]), (&json!(true), &json!("skipped")));
    let released: Vec<i64> = stage
        .pair
        .legacy
        .value("SELECT coalesce(array_agg(id ORDER BY id), '{}') FROM outbox WHERE status = 'pending'")
        .await;
    assert_eq!(released, held[..3], "the lowest, a batch of them");
    // As the relay does when it does not look from the very start: what was released must have been announced.
    stage.drain_from_positions(&shared).await;
    assert_eq!((stage.count("held").await, stage.count("processed").await), (0, 10));
    let applied: Vec<i64> = stage.pair.new.value("SELECT array_agg(event ORDER BY n) FROM applied").await;
    assert_eq!(applied, held);
    api.stop().await;
}

#[tokio::test]
async fn a_replay_that_would_overwrite_newer_state_is_refused_without_force() {
    let stage = strict().await;
    let (shared, api) = stage.api().await;
    let call = &api.client;
    let old = stage.nameless(1, 1).await;
    stage.drain_by_hand(&shared).await;
    call.post(&format!("/v1/events/{old}/skip"), json!({"reason": "later ones are right"})).await.ok();
    stage.user(1, "UserUpdated", "Ada", 2).await;
    stage.drain_by_hand(&shared).await;
    stage.mend().await;
    assert_eq!(stage.rows().await, "1 Ada 2");

    let path = format!("/v1/events/{old}/replay");
    assert_eq!(call.post(&path, json!({"reason": "why not"})).await.problem(409), "newer_applied");
    let bulk = json!({"filter": {"status": "skipped"}, "reason": "all of them"});
    let answer = call.post("/v1/events/replay", bulk).await.ok();
    assert_eq!(answer, json!({"matched": 1, "changed": 0, "refused": 1}));
    stage.drain_by_hand(&shared).await;
    assert_eq!((stage.rows().await, stage.status(old).await), ("1 Ada 2".to_owned(), "skipped".to_owned()));

    assert_eq!(call.post(&path, json!({"reason": "I know", "force": true})).await.ok()["changed"], true);
    stage.drain_by_hand(&shared).await;
    assert_eq!(stage.rows().await, "1 - 1");
    assert_eq!(call.post(&path, json!({"reason": "x"})).await.problem(409), "processed");
    assert_eq!(call.post(&path, json!({"reason": "x", "force": true})).await.ok()["changed"], true);
    assert_eq!(call.post(&format!("/v1/events/{old}/skip"), json!({"reason": "x"})).await.problem(409), "not_failing");
    api.stop().await;
}

#[tokio::test]
async fn what_is_applied_while_a_replay_looks_for_newer_events_is_seen_too() {
    let stage = Stage::with(|config| {
        config.retry.attempts = 1;
        config.entities[0].on_failure = OnFailure::Pass;
    })
    .await;
    let (shared, api) = stage.api().await;
    let old = stage.nameless(1, 1).await;
    stage.drain_by_hand(&shared).await;
    let newer = stage.user(1, "UserUpdated", "Ada", 2).await;
    // The lane is kept busy, so that the replay has looked around before it gets the lane.
    let lane: i32 = api.operator.event(&old.to_string().parse().unwrap()).await.unwrap().lane.0;
    let mut busy = stage.pair.legacy.pool.begin().await.unwrap();
    let sql = format!("SELECT 1 FROM outbox_relay.lane WHERE lane = {lane} FOR UPDATE");
    busy.execute(AssertSqlSafe(sql)).await.unwrap();
    let client = api.client.clone();
    let replay =
        tokio::spawn(async move { client.post(&format!("/v1/events/{old}/replay"), json!({"reason": "x"})).await });
    waits_for_the_lane(&stage).await;
    // The newer one is settled, as a worker would have done that held the lane all along.
    busy.execute(AssertSqlSafe(format!(
        "UPDATE outbox SET status = 'processed', processed_at = now() WHERE id = {newer};
         INSERT INTO outbox_relay.batch_log (lane, token, nonce, peer, ids)
         SELECT {lane}, nextval('outbox_relay.token'), gen_random_uuid(), '', '{{{newer}}}'"
    )))
    .await
    .unwrap();
    busy.commit().await.unwrap();
    assert_eq!(replay.await.unwrap().problem(409), "newer_applied");
    api.stop().await;
}

async fn waits_for_the_lane(stage: &Stage) {
    eventually(DEADLINE, "somebody waits for the lane", || async {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        stage.pair.legacy.value::<i64>(sql).await > 0
    })
    .await;
}

#[tokio::test]
async fn a_replayed_event_does_not_overtake_an_earlier_one_that_waits() {
    let stage = strict().await;
    let (shared, api) = stage.api().await;
    let first = stage.nameless(1, 1).await;
    stage.drain_by_hand(&shared).await;
    let second = stage.nameless(1, 2).await;
    stage.drain_by_hand(&shared).await;
    // Both failed, as under on_failure = "pass" that has been changed to "hold" since.
    stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'failed' WHERE id = {second}")).await;
    let third = stage.user(1, "UserUpdated", "Ada", 3).await;
    stage.drain_by_hand(&shared).await;
    stage.mend().await;
    api.client.post(&format!("/v1/events/{second}/replay"), json!({"reason": "mended"})).await.ok();
    stage.drain_from_positions(&shared).await;
    assert_eq!((stage.status(second).await, stage.status(third).await), ("held".to_owned(), "held".to_owned()));
    assert_eq!(stage.rows().await, "");
    api.client.post(&format!("/v1/events/{first}/replay"), json!({"reason": "mended"})).await.ok();
    stage.drain_from_positions(&shared).await;
    assert_eq!((stage.count("processed").await, stage.rows().await), (3, "1 Ada 3".to_owned()));
    api.stop().await;
}

#[tokio::test]
async fn a_call_for_many_changes_just_what_was_expected() {
    let stage = Stage::with(|config| config.relay.lanes = 2).await;
    let (shared, api) = stage.api().await;
    let call = &api.client;
    // More than one transaction a lane, and processed ones among them.
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, status, attempts)
             SELECT 'Thing', i::text, 'Happened', '{\"version\": 1}', CASE WHEN i % 10 = 0 THEN 'processed' ELSE 'failed' END, 3
             FROM generate_series(1, 3000) i;
             INSERT INTO outbox_relay.failure (id, lane, entity, aggregate_type, cause, disposition, code, message, first_at, last_at)
             SELECT id, 0, 'applied', 'Thing', CASE WHEN id % 2 = 0 THEN 'even' ELSE 'odd' END, 'event', '22P02', 'no', now(), now()
             FROM outbox WHERE status = 'failed'",
        )
        .await;
    let body = |expected: u64, dry_run: bool| json!({"filter": {"cause": "odd", "aggregate_type": "Thing"}, "expected": expected, "dry_run": dry_run, "reason": "mended"});
    let differs = call.post("/v1/events/replay", body(7, false)).await;
    assert_eq!((differs.problem(409).as_str(), &differs.json()["matched"]), ("not_as_expected", &json!(1500)));
    let counted = call.post("/v1/events/replay", body(1500, true)).await.ok();
    assert_eq!(counted, json!({"matched": 1500, "changed": 0, "refused": 0}));
    assert_eq!((stage.count("failed").await, stage.audits().await), (2700, 0));
    stage.pass_by().await;
    let replayed = call.post("/v1/events/replay", body(1500, false)).await.ok();
    assert_eq!(replayed, json!({"matched": 1500, "changed": 1500, "refused": 0}));
    assert_eq!((stage.count("pending").await, stage.count("failed").await), (1500, 1200));
    let skipped = call.post("/v1/events/skip", json!({"all": true, "reason": "the rest"})).await.ok();
    assert_eq!(skipped, json!({"matched": 1200, "changed": 1200, "refused": 0}));
    assert_eq!(call.post("/v1/events/replay", body(0, false)).await.ok()["changed"], 0);
    let audited: Vec<String> = stage
        .pair
        .legacy
        .value("SELECT array_agg(format('%s %s %s', action, matched, changed) ORDER BY id) FROM outbox_relay.audit")
        .await;
    assert_eq!(audited, ["replay 1500 1500", "skip 1200 1200"]);
    stage.drain_from_positions(&shared).await;
    let applied: i64 = stage.pair.new.value("SELECT count(*) FROM applied").await;
    assert_eq!((applied, stage.count("pending").await), (1500, 0));
    let left: i64 = stage.pair.legacy.value("SELECT count(*) FROM outbox_relay.failure").await;
    assert_eq!(left, 0);
    api.stop().await;
}

#[tokio::test]
async fn lists_are_oldest_first_and_page_by_page_whatever_the_status() {
    let stage = Stage::new().await;
    let (_, api) = stage.api().await;
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, status)
             SELECT CASE WHEN i / 6 % 3 = 0 THEN 'User' ELSE 'Thing' END, (i % 7)::text, 'Happened', '{}',
                    (ARRAY['pending','retry','held','processed','failed','skipped'])[1 + i % 6]
             FROM generate_series(1, 600) i",
        )
        .await;
    for status in ["", "pending", "retry", "held", "processed", "failed", "skipped"] {
        for kind in ["", "User"] {
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let mut query = format!("/v1/events?limit=17{cursor}");
                query += &if status.is_empty() { String::new() } else { format!("&status={status}") };
                query += &if kind.is_empty() { String::new() } else { format!("&aggregate_type={kind}") };
                let page = api.client.get(&query).await.ok();
                seen.extend(page["items"].as_array().unwrap().iter().map(|e| e["id"].as_i64().unwrap()));
                match page["next_cursor"].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => break,
                }
            }
            let sql = format!(
                "SELECT coalesce(array_agg(id ORDER BY id), '{{}}') FROM outbox
                 WHERE '{status}' IN ('', status) AND '{kind}' IN ('', aggregate_type)"
            );
            assert_eq!(seen, stage.pair.legacy.value::<Vec<i64>>(&sql).await, "{status} {kind}");
        }
    }
    for status in ["pending", "failed", "processed"] {
        let query = format!("/v1/events?status={status}&aggregate_type=Thing&aggregate_id=3&event_type=Happened");
        let listed = api.client.get(&query).await.ok()["items"].as_array().unwrap().len() as i64;
        let sql = format!(
            "SELECT count(*) FROM outbox WHERE (status, aggregate_type, aggregate_id) = ('{status}', 'Thing', '3')"
        );
        assert_eq!((listed > 0, listed), (true, stage.pair.legacy.value::<i64>(&sql).await), "{status}");
    }
    api.stop().await;
}

#[tokio::test]
async fn a_rare_status_is_listed_by_its_index() {
    let stage = Stage::new().await;
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, status)
             SELECT 'Thing', i::text, 'Happened', '{}', CASE WHEN i > 45000 THEN 'failed' ELSE 'processed' END
             FROM generate_series(1, 50000) i",
        )
        .await;
    stage.pair.legacy.run("ANALYZE outbox").await;
    let names = Names::new(&stage.config.legacy, stage.config.relay.lanes);
    for (name, index) in [("events_by_status", "outbox_relay_unprocessed"), ("events_pending", "outbox_relay_pending")]
    {
        let (_, sql) = operator::statements(&names).into_iter().find(|(found, _)| *found == name).unwrap();
        let mut connection = stage.pair.legacy.pool.acquire().await.unwrap();
        let prepare =
            format!("SET enable_sort = off; SET enable_bitmapscan = off; SET enable_seqscan = off; PREPARE l AS {sql}");
        connection.execute(AssertSqlSafe(prepare)).await.unwrap();
        let explain = "EXPLAIN EXECUTE l (NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 101)";
        let plan: Vec<String> =
            sqlx::query_scalar(explain).persistent(false).fetch_all(&mut *connection).await.unwrap();
        assert!(plan.join("\n").contains(index), "{}", plan.join("\n"));
        connection.close().await.unwrap();
    }
}

#[tokio::test]
async fn the_backlog_is_counted_beside_the_requests_and_never_in_one() {
    let stage = strict().await;
    let (shared, api) = stage.api().await;
    stage.nameless(1, 1).await;
    stage.drain_by_hand(&shared).await;
    stage.nameless(1, 2).await;
    stage.event("Thing", "x", "Unheard", "{}").await;
    stage.event("Parcel", "1", "Sent", "{}").await;
    stage.drain_by_hand(&shared).await;
    stage.event("User", "7", "UserCreated", "{}").await;
    stage
        .pair
        .legacy
        .run("INSERT INTO outbox_relay.pause (aggregate_type, reason, actor) VALUES ('User', 'x', 'x')")
        .await;
    stage.thing("y", 1).await;
    let counted = serde_json::to_value(api.operator.count_backlog().await.unwrap()).unwrap();
    for (word, n) in [("pending", 1), ("retry", 0), ("held", 1), ("failed", 1), ("stopped", 3)] {
        assert_eq!(counted[word], n, "{word}: {counted}");
    }
    let kinds = json!({"User": {"held": 1, "failed": 1, "stopped": 1}, "Thing": {"pending": 1, "stopped": 1}, "Parcel": {"stopped": 1}});
    assert_eq!(counted["by_aggregate_type"], kinds);
    assert!(counted["oldest_pending_seconds"].as_f64().unwrap() >= 0.0 && counted["as_of"].is_string());

    // A statement that read the outbox would wait for this lock.
    api.client.get("/v1/backlog").await.ok();
    let mut lock = stage.pair.legacy.pool.begin().await.unwrap();
    lock.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE").await.unwrap();
    for _ in 0..20 {
        api.client.get("/v1/backlog").await.ok();
    }
    lock.rollback().await.unwrap();
    api.stop().await;
}

#[tokio::test]
async fn pause_returns_when_no_batch_of_its_kind_is_in_flight_and_holds_across_restarts() {
    let stage = Stage::with(|config| config.relay.lanes = 1).await;
    let running = stage.start().await;
    let api = Api::start(&stage.config, Vec::new(), Some(running.shared.clone())).await;
    // A batch that cannot end: the target's table is locked.
    let mut slow = stage.pair.new.pool.begin().await.unwrap();
    slow.execute("LOCK TABLE applied IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let in_flight = stage.thing("a", 1).await;
    eventually(DEADLINE, "the batch waits on the target", || async {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        stage.pair.new.value::<i64>(sql).await > 0
    })
    .await;
    let client = api.client.clone();
    let body = json!({"aggregate_type": "Thing", "reason": "maintenance"});
    let pause = tokio::spawn(async move { client.post("/v1/pause", body).await });
    waits_for_the_lane(&stage).await;
    assert!(!pause.is_finished(), "a batch is in flight");
    slow.commit().await.unwrap();
    let paused = pause.await.unwrap().ok();
    let after: (String, i64) =
        (stage.status(in_flight).await, stage.pair.new.value("SELECT count(*) FROM applied").await);
    assert_eq!((&paused["in_flight"], &paused["paused"][0]["aggregate_type"]), (&json!([]), &json!("Thing")));
    // It either ended before the pause did, or was given up: nothing in between.
    assert!(after == ("processed".to_owned(), 1) || after == ("pending".to_owned(), 0), "{after:?}");

    running.stop().await;
    let running = stage.start().await;
    let waits = stage.thing("b", 1).await;
    let flows = stage.user(1, "UserCreated", "Ada", 1).await;
    eventually(DEADLINE, "another type flows", || async { stage.status(flows).await == "processed" }).await;
    assert_eq!(stage.status(waits).await, "pending");
    let ready = api.client.get("/readyz").await.ok();
    assert_eq!((&ready["status"], &ready["causes"][0]["code"]), (&json!("degraded"), &json!("paused")));
    api.client.post("/v1/resume", json!({"aggregate_type": "Thing", "reason": "done"})).await.ok();
    eventually(DEADLINE, "it flows again", || async { stage.status(waits).await == "processed" }).await;
    stage.oracle_agrees().await;
    api.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_pause_that_was_given_too_little_time_says_which_lanes_are_busy() {
    let stage = Stage::with(|config| config.relay.lanes = 2).await;
    let (_, api) = stage.api().await;
    let mut busy = stage.pair.legacy.pool.begin().await.unwrap();
    busy.execute("SELECT 1 FROM outbox_relay.lane WHERE lane = 1 FOR UPDATE").await.unwrap();
    let by = operator::By::new("test", "x").unwrap();
    let paused = api.operator.pause(&operator::What::All, &by, Some(Duration::from_millis(50))).await.unwrap();
    assert_eq!((paused.changed, paused.in_flight), (true, vec![Lane(1)]));
    busy.rollback().await.unwrap();
    let paused = api.operator.pause(&operator::What::All, &by, None).await.unwrap();
    assert_eq!((paused.changed, paused.in_flight), (false, vec![]));
    api.stop().await;
}

#[tokio::test]
async fn readiness_says_what_is_wrong_and_to_strangers_only_its_code() {
    let stage = Stage::new().await;
    let api = Api::start(&stage.config, tokens(), None).await;
    let board = api.client.with(Some("only-look"));
    assert_eq!(board.get("/readyz").await.problem(503), "starting");
    let shared = stage.shared().await;
    api.operator.attach(shared.clone());
    assert_eq!(board.get("/readyz").await.ok(), json!({"status": "ok"}));
    // The page tells it; no event waits for such rows.
    shared.change_state(|state| state.rows_left = Some([("users".to_owned(), 3)].into()));
    assert_eq!(board.get("/readyz").await.ok(), json!({"status": "ok"}));
    assert!(board.get("/").await.text.contains("The first copy of users left 3 rows out."));
    stage.event("Parcel", "1", "Sent", "{}").await;
    stage.drain_by_hand(&shared).await;
    stage
        .pair
        .legacy
        .run(
            "INSERT INTO outbox_relay.divergent (lane, token, id, event_id, aggregate_type, aggregate_id)
             VALUES (0, 1, 1, gen_random_uuid(), 'User', '1')",
        )
        .await;
    shared.change_state(|state| state.stopped_lanes.insert(Lane(3), "run init".to_owned()));
    assert!(shared.breaker.failed("connection refused".to_owned()));
    let known = board.get("/readyz").await.ok();
    let text = known.to_string();
    assert!(text.contains("Parcel") && text.contains("connection refused") && text.contains("run init"), "{text}");
    let stranger = api.client.get("/readyz").await.ok();
    let codes = ["breaker_open", "divergent", "lane_stopped", "unmapped"].map(|code| json!({"code": code}));
    assert_eq!(stranger, json!({"status": "degraded", "causes": codes}));
    assert_eq!(known["causes"].as_array().unwrap().len(), 4);
    api.stop().await;
}

#[tokio::test]
async fn a_sweep_releases_what_a_hand_has_unblocked_and_nothing_else() {
    let stage = Stage::with(|config| {
        config.retry.attempts = 1;
        config.relay.lanes = 1;
    })
    .await;
    let shared = stage.shared().await;
    let mut failed = Vec::new();
    for user in 1..=3 {
        failed.push(stage.nameless(user, 1).await);
    }
    stage.drain_by_hand(&shared).await;
    for user in 1..=3 {
        stage.user(user, "UserUpdated", "Ada", 2).await;
    }
    let unheard = stage.event("Thing", "x", "Unheard", "{}").await;
    stage.drain_by_hand(&shared).await;
    assert_eq!((stage.count("held").await, stage.status(unheard).await), (4, "held".to_owned()));
    // User 1's failed event is deleted by hand, user 2's is marked; user 3's stays.
    stage.pair.legacy.run(&format!("DELETE FROM outbox WHERE id = {}", failed[0])).await;
    stage.pair.legacy.run(&format!("UPDATE outbox SET status = 'skipped' WHERE id = {}", failed[1])).await;
    stage.pass_by().await;
    let mapped = shared.router().mapped();
    let (mut from, mut released, mut calls) = (i64::MIN, Vec::new(), 0);
    loop {
        let mut lane = shared.source.lock_lane(Lane(0)).await.unwrap().unwrap();
        let swept = lane.sweep(from, 2, &mapped, &[], 1000).await.unwrap();
        lane.commit().await.unwrap();
        released.extend(swept.released);
        calls += 1;
        match swept.next {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!((released.len(), calls), (2, 3), "four aggregates, two at a time, and a look at the end");
    stage.drain_from_positions(&shared).await;
    assert_eq!((stage.rows().await, stage.count("held").await), ("1 Ada 2, 2 Ada 2".to_owned(), 2));
}

impl Stage {
    /// The lanes' scans start above everything, as they do when nothing was pending for a while.
    async fn pass_by(&self) {
        assert_eq!(self.count("pending").await, 0);
        let sql = "UPDATE outbox_relay.batch_log SET position = (SELECT max(id) + 1 FROM outbox)";
        self.pair.legacy.run(sql).await;
    }

    /// As [`Stage::drain_by_hand`], but looking only from the lanes' positions on, as the relay does most of the time.
    async fn drain_from_positions(&self, shared: &Shared) {
        use outbox_relay::relay::batch::{self, Errand, Outcome};
        for _ in 0..1000 {
            let mut nothing = true;
            for lane in 0..i32::from(self.config.relay.lanes) {
                let (outcome, _) = batch::run_once(shared, Lane(lane), Errand::default()).await.expect("a batch");
                nothing &= matches!(outcome, Outcome::Nothing | Outcome::Paused);
            }
            if nothing {
                return;
            }
        }
        panic!("it never ends");
    }
}

#[tokio::test]
async fn a_shutdown_ends_calls_that_wait_and_keeps_what_was_done() {
    let stage = Stage::with(|config| config.relay.lanes = 1).await;
    let (_, api) = stage.api().await;
    let insert = "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, status)
                  SELECT 'Thing', i::text, 'Happened', '{}', 'failed' FROM generate_series(1, 1200) i";
    stage.pair.legacy.run(insert).await;
    let mut busy = stage.pair.legacy.pool.begin().await.unwrap();
    busy.execute("SELECT 1 FROM outbox_relay.lane FOR UPDATE").await.unwrap();
    let (pausing, skipping) = (api.client.clone(), api.client.clone());
    let skip = tokio::spawn(async move { skipping.post("/v1/events/skip", json!({"all": true, "reason": "x"})).await });
    waits_for_the_lane(&stage).await;
    let pause = tokio::spawn(async move { pausing.post("/v1/pause", json!({"reason": "x"})).await });
    eventually(DEADLINE, "it is paused", || async {
        stage.pair.legacy.value::<i64>("SELECT count(*) FROM outbox_relay.pause").await == 1
    })
    .await;
    let (operator, stop) = (api.operator.clone(), api.stop.clone());
    let server = tokio::spawn(api.stop());
    stop.cancelled().await;
    assert_eq!(pause.await.unwrap().problem(503), "stopping");
    busy.commit().await.unwrap();
    // The transaction that waited is done; the next one is not begun.
    let ended = skip.await.unwrap();
    assert_eq!((ended.problem(503).as_str(), &ended.json()["changed"]), ("unfinished", &json!(500)));
    server.await.unwrap();
    assert_eq!(stage.count("skipped").await, 500);
    let audits = operator.audits(1, None).await.unwrap();
    assert_eq!((audits.items[0].matched, stage.audits().await), (0, 2), "the pause came last");
    let audits = operator.audits(1, audits.next_cursor.map(|cursor| cursor.parse().unwrap())).await.unwrap();
    assert_eq!((audits.items[0].matched, audits.items[0].changed), (1200, 500));
}
