//! What people do to the databases by hand: locks, ended sessions, long transactions, schema changes in the wrong order.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::ground::MEND;
use crate::plan::{Deck, Dice, pause};
use crate::shop;
use crate::tally::Tally;

/// Where both databases are, for their superuser.
#[derive(Clone)]
pub struct Urls {
    pub legacy: String,
    pub new: String,
}

#[derive(Clone, Copy)]
enum Deed {
    EndSessions,
    EndApplications,
    CancelStatements,
    LockOutboxRows,
    LockLanes,
    LockTable,
    LongTransaction,
    SchemaChange,
}

const DEEDS: [Deed; 9] = [
    Deed::EndSessions,
    Deed::EndSessions,
    Deed::EndApplications,
    Deed::CancelStatements,
    Deed::LockOutboxRows,
    Deed::LockLanes,
    Deed::LockTable,
    Deed::LongTransaction,
    Deed::SchemaChange,
];

/// How schemas are broken, as what it counts; [`MEND`] undoes each.
const CHANGES: [(&str, &str); 5] = [
    ("ALTER TABLE applied RENAME TO applied_elsewhere", "operator's error: a handler's table renamed for a while"),
    ("ALTER TABLE users RENAME TO users_elsewhere", "operator's error: an entity's table renamed for a while"),
    ("ALTER TABLE users RENAME name TO nickname", "operator's error: a column renamed for a while"),
    ("REVOKE INSERT ON applied FROM relay", "operator's error: a grant revoked for a while"),
    ("ALTER FUNCTION accept(uuid, jsonb) RENAME TO accept_no_more", "operator's error: a function gone for a while"),
];

/// Until it is over; what was changed is mended then.
pub async fn happen(urls: Urls, mut dice: Dice, tally: Tally, over: CancellationToken) -> anyhow::Result<()> {
    let mut deck = Deck::of(&DEEDS);
    while !over.is_cancelled() {
        dice.rest(300, 3000, &over).await;
        let deed = deck.draw(&mut dice);
        // A database that is away just now: somebody else is at work on it.
        if let Ok(what) = does(&urls, deed, &mut dice, &over).await {
            tally.count(what);
        }
    }
    Ok(())
}

/// Again and again: whatever stands in the way now is about to end.
pub async fn mend(urls: &Urls) -> anyhow::Result<()> {
    let mut last = String::new();
    for _ in 0..60 {
        let mended = async {
            let mut dba = PgConnection::connect(&urls.new).await?;
            dba.execute(MEND).await
        };
        match mended.await {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
        pause(Duration::from_secs(1), &CancellationToken::new()).await;
    }
    anyhow::bail!("the schema could not be mended: {last}")
}

async fn does(urls: &Urls, deed: Deed, dice: &mut Dice, over: &CancellationToken) -> sqlx::Result<&'static str> {
    let on_source = dice.one_in(2);
    let url = if on_source { &urls.legacy } else { &urls.new };
    let mut dba = PgConnection::connect(url).await?;
    dba.execute("SET lock_timeout = '2s'").await?;
    let relays = "SELECT pid FROM pg_stat_activity WHERE usename = 'relay' AND backend_type = 'client backend'";
    let what = match deed {
        Deed::EndSessions => {
            let sql = format!("SELECT count(pg_terminate_backend(pid)) FROM ({relays} ORDER BY random() LIMIT 3) s");
            dba.execute(AssertSqlSafe(sql)).await?;
            "dba: sessions of relays ended"
        }
        Deed::EndApplications => {
            let mut dba = PgConnection::connect(&urls.legacy).await?;
            dba.execute(shop::END_SESSIONS).await?;
            "dba: sessions of the shop ended"
        }
        Deed::CancelStatements => {
            for _ in 0..10 {
                let sql = format!("SELECT count(pg_cancel_backend(pid)) FROM ({relays} AND state = 'active') s");
                dba.execute(AssertSqlSafe(sql)).await?;
                dice.rest(5, 50, over).await;
            }
            "dba: statements of relays cancelled"
        }
        Deed::LockOutboxRows => {
            let mut dba = PgConnection::connect(&urls.legacy).await?;
            let sql = "BEGIN; SELECT FROM outbox WHERE status <> 'processed' ORDER BY random() LIMIT 5 FOR UPDATE SKIP LOCKED";
            dba.execute(sql).await?;
            dice.rest(100, 5000, over).await;
            "dba: rows of the outbox locked for a while"
        }
        Deed::LockLanes => {
            let sql = "BEGIN; SELECT FROM outbox_relay.lane ORDER BY random() LIMIT 3 FOR UPDATE";
            dba.execute(sql).await?;
            dice.rest(100, 5000, over).await;
            "dba: rows of lanes locked for a while"
        }
        Deed::LockTable => {
            let table = match on_source {
                true => dice.pick(&["outbox", "outbox_relay.batch_log", "clients"]),
                false => dice.pick(&["users", "applied", "outbox_relay.batch_log", "customers"]),
            };
            let mode = dice.pick(&["ACCESS EXCLUSIVE", "SHARE"]);
            dba.execute(AssertSqlSafe(format!("BEGIN; LOCK TABLE {table} IN {mode} MODE"))).await?;
            dice.rest(100, 5000, over).await;
            "dba: a table locked for a while"
        }
        Deed::LongTransaction => {
            // As a report does: nothing can be vacuumed.
            dba.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox_relay.batch_log").await?;
            dice.rest(5000, 12_000, over).await;
            "dba: a snapshot held for many seconds"
        }
        Deed::SchemaChange => {
            let (change, what) = dice.pick(&CHANGES);
            let mut dba = PgConnection::connect(&urls.new).await?;
            dba.execute("SET lock_timeout = '2s'").await?;
            dba.execute(change).await?;
            dice.rest(300, 4000, over).await;
            what
        }
    };
    // Also what an earlier change left, or a failover brought back.
    let _ = mend(urls).await;
    Ok(what)
}
