//! Operators, over HTTP, to whichever relay answers: they look, replay, skip, pause and resume while everything else goes on.

use std::sync::PoisonError;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::dba::Urls;
use crate::plan::{Dice, pause};
use crate::relays::{Admin, TOKEN};
use crate::tally::Tally;

/// All relays' admin APIs.
#[derive(Clone)]
pub struct Desk {
    pub relays: Vec<Admin>,
    pub urls: Urls,
    pub tally: Tally,
    /// Whether the relay knows long enough what came after an event to refuse a replay that would go back: where retention takes
    /// newer events within seconds, only those are replayed that nothing newer can have passed.
    pub long_memory: bool,
}

/// An answer: status and body.
type Reply = (u16, Value);

impl Desk {
    /// `None`: none is up, or it hangs, or its connection broke.
    async fn call(&self, dice: &mut Dice, method: &'static str, path: String, body: Option<Value>) -> Option<Reply> {
        let which = dice.below(self.relays.len() as u64) as usize;
        let port = (*self.relays[which].lock().unwrap_or_else(PoisonError::into_inner))?;
        let call = move || -> Result<Reply, ureq::Error> {
            let time = Some(Duration::from_secs(10));
            let agent: ureq::Agent =
                ureq::Agent::config_builder().http_status_as_error(false).timeout_global(time).build().into();
            let request = ureq::http::Request::builder()
                .method(method)
                .uri(format!("http://127.0.0.1:{port}{path}"))
                .header("Authorization", format!("Bearer {TOKEN}"))
                .header("Content-Type", "application/json");
            let mut response = match body {
                Some(body) => agent.run(request.body(body.to_string())?)?,
                None => agent.run(request.body(())?)?,
            };
            let text = response.body_mut().read_to_string()?;
            Ok((response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text))))
        };
        tokio::task::spawn_blocking(call).await.ok()?.ok()
    }

    /// An event that failed or waits, and is young enough for the relay to know what came after it. Its id. None that capture wrote: of
    /// these none is poison, and whoever skipped one would have to resync its row.
    async fn failing(&self, statuses: &str) -> Option<(i64, uuid::Uuid)> {
        let look = async {
            let mut connection = PgConnection::connect(&self.urls.legacy).await?;
            let sql = format!(
                "SELECT id, event_id FROM outbox WHERE status IN ({statuses}) AND created_at > now() - interval '15 s'
                 AND coalesce(last_error, '') NOT LIKE 'overtaken%' AND aggregate_type <> 'Customer' AND ({long} OR aggregate_type <> 'Order' AND status <> 'skipped')
                 ORDER BY random() LIMIT 1",
                long = self.long_memory
            );
            sqlx::query_as(AssertSqlSafe(sql)).fetch_optional(&mut connection).await
        };
        look.await.ok().flatten()
    }

    async fn cure(&self, event: uuid::Uuid) -> sqlx::Result<()> {
        let mut connection = PgConnection::connect(&self.urls.new).await?;
        let sql = "INSERT INTO cures VALUES ($1) ON CONFLICT DO NOTHING";
        sqlx::query(sql).bind(event).execute(&mut connection).await.map(|_| ())
    }
}

const READS: [&str; 9] = [
    "/healthz",
    "/readyz",
    "/metrics",
    "/v1/backlog",
    "/v1/events?status=failed&limit=5",
    "/v1/events?aggregate_type=Order&limit=50",
    "/v1/failures",
    "/v1/pause",
    "/v1/audit",
];

/// Until it is over.
pub async fn happen(desk: Desk, mut dice: Dice, over: CancellationToken) -> anyhow::Result<()> {
    while !over.is_cancelled() {
        dice.rest(50, 1200, &over).await;
        let done = deed(&desk, &mut dice, &over).await;
        if let Some((what, Some((status, body)))) = done {
            desk.tally.count(what);
            match status {
                200..=299 => {}
                400..=499 => desk.tally.count("operator: refused (4xx)"),
                _ => desk.tally.count("operator: not now (503, or a database that is away)"),
            }
            anyhow::ensure!(body["code"] != "bug", "the admin API says: {body}");
        }
    }
    Ok(())
}

async fn deed(desk: &Desk, dice: &mut Dice, over: &CancellationToken) -> Option<(&'static str, Option<Reply>)> {
    let because = json!({"reason": "soak"});
    Some(match dice.below(10) {
        0 | 1 => {
            let path = dice.pick(&READS).to_owned();
            ("operator: GET", desk.call(dice, "GET", path, None).await)
        }
        2 | 3 => {
            let (id, event_id) = desk.failing("'failed', 'retry', 'skipped'").await?;
            if dice.one_in(2) {
                desk.cure(event_id).await.ok()?;
            }
            ("operator: replay", desk.call(dice, "POST", format!("/v1/events/{id}/replay"), Some(because)).await)
        }
        4 => {
            let (id, _) = desk.failing("'failed', 'retry'").await?;
            ("operator: skip", desk.call(dice, "POST", format!("/v1/events/{id}/skip"), Some(because)).await)
        }
        5 | 6 => {
            let (id, event_id) = desk.failing("'failed'").await?;
            desk.cure(event_id).await.ok()?;
            let body = json!({"filter": {"ids": [id], "aggregate_type": dice.pick(&["Thing", "User", "Order"])}, "reason": "soak"});
            ("operator: replay of many", desk.call(dice, "POST", "/v1/events/replay".to_owned(), Some(body)).await)
        }
        7 => {
            let kind = dice.pick(&["Thing", "User", "Order"]);
            let dry_run = dice.one_in(3);
            let body =
                json!({"filter": {"aggregate_type": kind, "status": "failed"}, "dry_run": dry_run, "reason": "soak"});
            ("operator: skip of many", desk.call(dice, "POST", "/v1/events/skip".to_owned(), Some(body)).await)
        }
        _ => {
            let what = match dice.pick(&["", "Thing", "User", "Order"]) {
                "" => json!({"all": true, "reason": "soak"}),
                kind => json!({"aggregate_type": kind, "reason": "soak"}),
            };
            let paused = desk.call(dice, "POST", "/v1/pause".to_owned(), Some(what.clone())).await;
            dice.rest(100, 2500, over).await;
            // Even when no answer came, it may have been heard.
            resume(desk, dice, &what, over).await;
            ("operator: pause and resume", paused)
        }
    })
}

async fn resume(desk: &Desk, dice: &mut Dice, what: &Value, over: &CancellationToken) {
    while !over.is_cancelled() {
        if let Some((200, _)) = desk.call(dice, "POST", "/v1/resume".to_owned(), Some(what.clone())).await {
            return;
        }
        dice.rest(100, 500, over).await;
    }
}

/// At the end, when all is calm: nothing is paused any more, and what failed is passed over, so that those behind it go on.
pub async fn resume_all(desk: &Desk, dice: &mut Dice) -> anyhow::Result<()> {
    for what in [
        json!({"all": true}),
        json!({"aggregate_type": "Thing"}),
        json!({"aggregate_type": "User"}),
        json!({"aggregate_type": "Order"}),
    ] {
        let mut body = what;
        body["reason"] = json!("the end");
        let mut said = None;
        for _ in 0..60 {
            said = desk.call(dice, "POST", "/v1/resume".to_owned(), Some(body.clone())).await;
            if matches!(said, Some((200, _))) {
                break;
            }
            pause(Duration::from_secs(1), &CancellationToken::new()).await;
        }
        anyhow::ensure!(matches!(said, Some((200, _))), "could not resume {body}: {said:?}");
    }
    Ok(())
}

/// Skips these.
pub async fn skip(desk: &Desk, dice: &mut Dice, ids: &[i64]) {
    let body = json!({"filter": {"ids": ids}, "reason": "the end"});
    let _ = desk.call(dice, "POST", "/v1/events/skip".to_owned(), Some(body)).await;
}

/// What each relay says of itself, for a report.
pub async fn readiness(desk: &Desk) -> String {
    let mut said = String::new();
    for which in 0..desk.relays.len() {
        let one = Desk { relays: vec![desk.relays[which].clone()], ..desk.clone() };
        let ready = one.call(&mut Dice::of(0, "any"), "GET", "/readyz".to_owned(), None).await;
        said.push_str(&format!("relay {which}: {ready:?}\n"));
    }
    said
}
