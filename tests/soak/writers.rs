//! The monolith: each transaction changes some things and writes their events. Late commits, rollbacks, gaps in the ids, hot things,
//! events that the new service refuses.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::ground::AGGREGATES;
use crate::plan::{Dice, pause};

/// Every event that anybody ever sent, whether it was committed, rolled back or forgotten.
pub type Sent = Arc<Mutex<HashSet<Uuid>>>;

/// Events that are still to be applied, at which writers wait: the run is to end in time.
const BACKLOG: i64 = 2000;

pub async fn write(url: String, mut dice: Dice, sent: Sent, over: CancellationToken) -> anyhow::Result<()> {
    let mut connection = None;
    let mut transactions = 0u64;
    while !over.is_cancelled() {
        let (sql, events) = transaction(&mut dice);
        sent.lock().unwrap_or_else(PoisonError::into_inner).extend(events);
        transactions += 1;
        let look = transactions.is_multiple_of(50);
        let work = async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => connect(&url).await?,
            };
            open.execute(AssertSqlSafe(sql)).await?;
            if look {
                while_much_waits(&mut open, &over).await?;
            }
            Ok::<_, sqlx::Error>(open)
        };
        tokio::select! {
            worked = work => match worked {
                Ok(open) => connection = Some(open),
                // What became of a COMMIT that broke off is not asked: `written` knows.
                Err(_) => pause(Duration::from_millis(200), &over).await,
            },
            () = over.cancelled() => {}
        }
        dice.rest(2, 30, &over).await;
    }
    Ok(())
}

/// Until less is to be applied.
pub async fn while_much_waits(legacy: &mut PgConnection, over: &CancellationToken) -> sqlx::Result<()> {
    let sql = "SELECT count(*) FROM outbox WHERE status IN ('pending', 'retry', 'held')";
    while sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut *legacy).await? > BACKLOG && !over.is_cancelled() {
        pause(Duration::from_millis(500), over).await;
    }
    Ok(())
}

/// As the application's role would be, were it not to be kept out while all connections are taken.
pub async fn connect(url: &str) -> sqlx::Result<PgConnection> {
    let mut connection = PgConnection::connect(url).await?;
    connection.execute("SET statement_timeout = '20s'; SET idle_in_transaction_session_timeout = '20s'").await?;
    Ok(connection)
}

/// One to three things of a kind, their rows locked in order, one to three events each.
fn transaction(dice: &mut Dice) -> (String, Vec<Uuid>) {
    let kind = dice.pick(&["Thing", "User", "User", "Order"]);
    let mut ids: Vec<u64> = (0..=dice.below(3))
        .map(|_| if dice.one_in(3) { 1 + dice.below(3) } else { 1 + dice.below(AGGREGATES) })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    let mut sql = "BEGIN;".to_owned();
    let mut events = Vec::new();
    let mut changes: Vec<u64> = ids.iter().flat_map(|id| vec![*id; 1 + dice.below(3) as usize]).collect();
    // Locked in order; the first event of each may come later.
    for id in &ids {
        let _ = write!(sql, "SELECT FROM things WHERE kind = '{kind}' AND id = {id} FOR UPDATE;");
    }
    if dice.one_in(2) {
        changes.reverse();
    }
    for id in changes {
        let event = dice.uuid();
        let poison = dice.one_in(300);
        sql.push_str(&change(kind, id, event, kind == "User" && dice.one_in(8), poison, dice.below(100)));
        events.push(event);
    }
    // Most are done at once; some are long in committing, while others go by.
    let late = match dice.below(40) {
        0 => dice.below(2500),
        n if n < 5 => dice.below(100),
        _ => 0,
    };
    if late > 0 {
        let _ = write!(sql, "SELECT pg_sleep({late} / 1000.0);");
    }
    sql.push_str(if dice.one_in(10) { "ROLLBACK" } else { "COMMIT" });
    (sql, events)
}

/// A thing changes, its event is written, and what was written is noted: one statement.
fn change(kind: &str, id: u64, event: Uuid, delete: bool, poison: bool, name: u64) -> String {
    let event_type = match (kind, delete) {
        ("User", true) => "Deleted",
        ("User", false) => "Updated",
        _ => "Happened",
    };
    let present = !delete;
    // A number that is none, which no cure helps, or what is refused until it is cured.
    let bad = match (poison, name.is_multiple_of(2)) {
        (true, true) => "|| '{\"version\": \"x\"}'",
        (true, false) => "|| '{\"poison\": true}'",
        (false, _) => "",
    };
    format!(
        "WITH t AS (
            UPDATE things SET version = version + 1, name = 'n{name}', present = {present} WHERE kind = '{kind}' AND id = {id}
            RETURNING id, version, name
        ), e AS (
            INSERT INTO outbox (event_id, aggregate_type, aggregate_id, event_type, payload)
            SELECT '{event}', '{kind}', id::text, '{event_type}',
                   jsonb_build_object('id', id, 'version', version, 'name', name) {bad}
            FROM t
            RETURNING id
        )
        INSERT INTO written SELECT '{event}', e.id, '{kind}', t.id::text, '{event_type}', t.version, {poison} FROM e, t;"
    )
}

/// What the documentation asks for where order is not promised any more: one more event with the full state, or of deletion.
pub fn once_more(kind: &str, aggregate: &str, dice: &mut Dice) -> String {
    let event = dice.uuid();
    format!(
        "WITH t AS (
            UPDATE things SET version = version + 1 WHERE kind = '{kind}' AND id = {aggregate} RETURNING id, version, name, present
        ), e AS (
            INSERT INTO outbox (event_id, aggregate_type, aggregate_id, event_type, payload)
            SELECT '{event}', '{kind}', id::text,
                   CASE WHEN '{kind}' <> 'User' THEN 'Happened' WHEN present THEN 'Updated' ELSE 'Deleted' END,
                   jsonb_build_object('id', id, 'version', version, 'name', name)
            FROM t
            RETURNING id, event_type
        )
        INSERT INTO written SELECT '{event}', e.id, '{kind}', t.id::text, e.event_type, t.version, false FROM e, t"
    )
}
