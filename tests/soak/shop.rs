//! An application that nobody will change: it writes a legacy table, and knows of no events. Capture's triggers write them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor};
use tokio_util::sync::CancellationToken;

use crate::plan::Dice;
use crate::tally::Tally;
use crate::writers;

/// Rows that are there before anybody captures or copies: 1 to so many.
pub const ROWS: i64 = 2000;
/// So many ids there are; those beyond the rows are free at first.
const IDS: i64 = 2500;
/// The first few are hot.
const HOT: i64 = 30;
pub const WRITERS: i64 = 2;

/// Ids that it tried to delete, and when.
pub type Deleted = Arc<Mutex<Vec<(i64, Instant)>>>;

/// Some of its sessions end in the middle of whatever they do.
pub const END_SESSIONS: &str = "
    SELECT count(pg_terminate_backend(pid)) FROM (
        SELECT pid FROM pg_stat_activity WHERE application_name = 'shop' ORDER BY random() LIMIT 2) s";

/// Writes rows of its own share until it is over: two writers never meet at a row, also not two sessions of one writer of which the older
/// one lives on in the server. So a row that comes back is newer than it was when it went.
pub async fn write(
    legacy: String,
    writer: i64,
    mut dice: Dice,
    (deleted, tally): (Deleted, Tally),
    over: CancellationToken,
) -> anyhow::Result<()> {
    let url = format!("{legacy}?application_name=shop");
    let mut connection = None;
    let mut transactions = 0u64;
    while !over.is_cancelled() {
        let sql = transaction(&mut dice, writer, &deleted);
        transactions += 1;
        let look = transactions.is_multiple_of(50);
        let work = async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => {
                    let mut open = writers::connect(&url).await?;
                    open.execute("SET ROLE shop").await?;
                    open
                }
            };
            open.execute(AssertSqlSafe(sql)).await?;
            if look {
                open.execute("RESET ROLE").await?;
                writers::while_much_waits(&mut open, &over).await?;
                open.execute("SET ROLE shop").await?;
            }
            Ok::<_, sqlx::Error>(open)
        };
        let cut = if dice.one_in(40) { dice.millis(0, 20) } else { Duration::from_secs(60) };
        tokio::select! {
            worked = work => match worked {
                Ok(open) => connection = Some(open),
                Err(_) => dice.rest(100, 300, &over).await,
            },
            // Dropped, and with it its connection, in the middle of a transaction.
            () = tokio::time::sleep(cut) => tally.count("shop: a connection cut in the middle of a transaction"),
            () = over.cancelled() => {}
        }
        dice.rest(20, 160, &over).await;
    }
    Ok(())
}

/// Changes, deletes or brings back one to three rows; now and then slowly, or in vain.
fn transaction(dice: &mut Dice, writer: i64, deleted: &Deleted) -> String {
    let mut sql = format!("BEGIN; SELECT pg_advisory_xact_lock({writer});");
    for _ in 0..=dice.below(3) {
        let among = if dice.one_in(3) { HOT } else { IDS };
        let id = 1 + writer + WRITERS * dice.below((among / WRITERS) as u64) as i64;
        sql += &match dice.below(10) {
            0 | 1 => {
                deleted.lock().unwrap_or_else(PoisonError::into_inner).push((id, Instant::now()));
                format!(
                    "WITH d AS (DELETE FROM clients WHERE id = {id} RETURNING id, version)
                     INSERT INTO clients_gone SELECT * FROM d ON CONFLICT (id) DO UPDATE SET version = excluded.version;"
                )
            }
            2 | 3 => format!(
                "INSERT INTO clients SELECT {id}, 'again', 'l', coalesce((SELECT version FROM clients_gone WHERE id = {id}), 0) + 1
                 ON CONFLICT DO NOTHING;"
            ),
            _ => format!("UPDATE clients SET version = version + 1, last = 'l' || version WHERE id = {id};"),
        };
    }
    if dice.one_in(40) {
        sql += &format!("SELECT pg_sleep({} / 1000.0);", dice.below(1500));
    }
    sql + if dice.one_in(15) { "ROLLBACK" } else { "COMMIT" }
}
