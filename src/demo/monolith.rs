//! The demo's monolith: an application that changes its users and orders, and tells of each change in the same transaction.
//!
//! Several writers at once, so that ids are drawn in another order than transactions commit; now and then one changes its mind
//! and rolls back, which leaves a gap.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{Postgres, Row, Transaction};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::disposition;

/// A kind of change: how often it is made, and the statement that makes it and yields its events.
struct Change {
    weight: u32,
    sql: &'static str,
}

const CREATE_USER: &str = include_str!("../../sql/demo/monolith/create_user.sql");
const UPDATE_ORDER: &str = include_str!("../../sql/demo/monolith/update_order.sql");
const OUTGROW: &str = include_str!("../../sql/demo/monolith/outgrow.sql");
const WRITE_EVENT: &str = include_str!("../../sql/demo/monolith/write_event.sql");

/// More is created than deleted: the tables grow slowly.
const CHANGES: [Change; 7] = [
    Change { weight: 12, sql: CREATE_USER },
    Change { weight: 15, sql: include_str!("../../sql/demo/monolith/update_user.sql") },
    Change { weight: 25, sql: include_str!("../../sql/demo/monolith/credit_user.sql") },
    Change { weight: 4, sql: include_str!("../../sql/demo/monolith/delete_user.sql") },
    Change { weight: 20, sql: include_str!("../../sql/demo/monolith/create_order.sql") },
    Change { weight: 19, sql: UPDATE_ORDER },
    Change { weight: 5, sql: include_str!("../../sql/demo/monolith/delete_order.sql") },
];

/// Every so many transactions, one is rolled back.
const CHANGES_ITS_MIND: u32 = 50;
/// A writer that is further behind its rate than this gives that part up, rather than flood the database later.
const BEHIND_AT_MOST: Duration = Duration::from_secs(1);

/// A pause before the next try, when the database is away.
const AWAY: Duration = Duration::from_millis(500);

/// A running monolith.
pub(super) struct Monolith {
    pool: PgPool,
    written: Arc<AtomicI64>,
    stop: CancellationToken,
    writers: JoinSet<()>,
}

/// An event that the new database is going to refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unfit {
    pub(super) event: i64,
    pub(super) order: String,
}

impl Monolith {
    /// Starts to write, `rate` events a second.
    pub(super) async fn start(url: &str, rate: u32) -> anyhow::Result<Monolith> {
        // Each transaction takes about a millisecond; at low rates there are still several.
        let writers = (rate / 50).clamp(4, 32);
        let options: PgConnectOptions = url.parse()?;
        let pool = PgPoolOptions::new()
            .max_connections(writers + 2)
            .connect_with(options.application_name("monolith"))
            .await
            .context("the monolith cannot connect")?;
        let mut monolith =
            Monolith { pool, written: Arc::default(), stop: CancellationToken::new(), writers: JoinSet::new() };
        let pause = Duration::from_secs_f64(f64::from(writers) / f64::from(rate));
        for _ in 0..writers {
            let writer = Writer { pool: monolith.pool.clone(), written: monolith.written.clone() };
            monolith.writers.spawn(writer.write(pause, monolith.stop.clone()));
        }
        Ok(monolith)
    }

    /// How many events were committed so far.
    pub(super) fn written(&self) -> i64 {
        self.written.load(Ordering::Relaxed)
    }

    /// An error if a writer has ended, as none should.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match self.writers.try_join_next() {
            Some(ended) => ended.context("a writer of the monolith broke"),
            None => Ok(()),
        }
    }

    /// Ends the writers; transactions in flight end first.
    pub(super) async fn stop_writing(&mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.writers.join_next().await {
            ended.context("a writer of the monolith broke")?;
        }
        Ok(())
    }

    /// Changes some order so that the new database refuses it, and then once more: that event waits behind the first. `None`:
    /// there is no order yet.
    pub(super) async fn outgrow(
        &self,
        total_cents: Option<i64>,
        note: Option<String>,
    ) -> anyhow::Result<Option<Unfit>> {
        let mut transaction = self.pool.begin().await?;
        let change = sqlx::query(OUTGROW).bind(total_cents).bind(note).fetch_all(&mut *transaction).await?;
        let (Some(event), Some(row)) = (write_events(&mut transaction, &change).await?, change.first()) else {
            return Ok(None);
        };
        transaction.commit().await?;
        self.written.fetch_add(1, Ordering::Relaxed);
        let order: String = row.try_get("aggregate_id")?;
        // Should only this go wrong, the first event is on its way all the same.
        let _ = self.update(order.parse()?).await;
        Ok(Some(Unfit { event, order }))
    }

    async fn update(&self, order: i64) -> sqlx::Result<()> {
        let mut transaction = self.pool.begin().await?;
        let change = sqlx::query(UPDATE_ORDER).bind(order).fetch_all(&mut *transaction).await?;
        write_events(&mut transaction, &change).await?;
        transaction.commit().await?;
        self.written.fetch_add(change.len() as i64, Ordering::Relaxed);
        Ok(())
    }
}

struct Writer {
    pool: PgPool,
    written: Arc<AtomicI64>,
}

impl Writer {
    async fn write(self, pause: Duration, stop: CancellationToken) {
        let mut due = Instant::now() + pause.mul_f64(f64::from(random() % 1000) / 1000.0);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(due.into()) => {}
            }
            let events = match self.transaction(random()).await {
                Ok(events) => events,
                // Two writers met: an order for a user who is just being deleted. Applications live with that, too.
                Err(error) if !disposition::is_transient(&error) => 0,
                Err(_) => {
                    tokio::time::sleep(AWAY).await;
                    0
                }
            };
            self.written.fetch_add(i64::from(events), Ordering::Relaxed);
            due = due.max(Instant::now().checked_sub(BEHIND_AT_MOST).unwrap_or(due)) + pause * events.max(1);
        }
    }

    /// One transaction; how many events it committed.
    async fn transaction(&self, dice: u32) -> sqlx::Result<u32> {
        let mut transaction = self.pool.begin().await?;
        let sql = pick(dice);
        let query = sqlx::query(sql);
        let query = if sql == UPDATE_ORDER { query.bind(None::<i64>) } else { query };
        let mut rows = query.fetch_all(&mut *transaction).await?;
        if rows.is_empty() {
            rows = sqlx::query(CREATE_USER).fetch_all(&mut *transaction).await?;
        }
        write_events(&mut transaction, &rows).await?;
        if (dice >> 16).is_multiple_of(CHANGES_ITS_MIND) {
            transaction.rollback().await?;
            return Ok(0);
        }
        transaction.commit().await?;
        Ok(rows.len() as u32)
    }
}

/// The change first, then its rows in the outbox; the first event's id.
async fn write_events(
    transaction: &mut Transaction<'static, Postgres>,
    change: &[sqlx::postgres::PgRow],
) -> sqlx::Result<Option<i64>> {
    let mut first = None;
    for row in change {
        let id: i64 = sqlx::query_scalar(WRITE_EVENT)
            .bind(row.try_get::<String, _>("aggregate_type")?)
            .bind(row.try_get::<String, _>("aggregate_id")?)
            .bind(row.try_get::<String, _>("event_type")?)
            .bind(row.try_get::<String, _>("payload")?)
            .fetch_one(&mut **transaction)
            .await?;
        first.get_or_insert(id);
    }
    Ok(first)
}

/// A change, each as often as its weight says.
fn pick(dice: u32) -> &'static str {
    let mut left = (dice & 0xffff) % CHANGES.iter().map(|change| change.weight).sum::<u32>();
    for change in &CHANGES {
        if left < change.weight {
            return change.sql;
        }
        left -= change.weight;
    }
    CREATE_USER
}

fn random() -> u32 {
    Uuid::new_v4().as_u64_pair().1 as u32
}
