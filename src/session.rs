//! One transaction on one pooled connection, and what may come of it.
//!
//! Guarantees: a session that is dropped before it was committed or rolled back closes its connection, so that no half-done
//! transaction and no half-read answer ever goes back to the pool; the server rolls it back.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{Executor, PgPool};

use crate::sql::trusted;

/// The time limits that a transaction sets for itself (never for the connection: a pooler may hand that to others).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// By when the client gives the whole transaction up. The server's own limits lie a little above.
    pub deadline: Duration,
    /// How long a statement waits for a lock.
    pub lock: Duration,
}

impl Limits {
    /// `SET LOCAL …;` for each. Two seconds above the deadline, so that the client is the first to notice and can say what it was.
    pub fn sql(&self) -> String {
        let server = self.deadline.as_millis() + 2_000;
        let lock = self.lock.as_millis().max(1);
        format!(
            "SET LOCAL statement_timeout = {server}; SET LOCAL idle_in_transaction_session_timeout = {server}; \
             SET LOCAL lock_timeout = {lock}; SET LOCAL tcp_user_timeout = {server}; \
             SET LOCAL client_connection_check_interval = 1000; SET LOCAL jit = off;"
        )
    }
}

/// Where a transaction's connection comes from.
pub trait Origin: Sync {
    /// One that is ready to be used.
    fn connection(&self) -> impl Future<Output = sqlx::Result<PoolConnection<Postgres>>> + Send;

    /// Where it goes if it is well in the end; `None`: back to the pool.
    fn kept(&self) -> Option<Kept>;
}

impl Origin for PgPool {
    async fn connection(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        self.acquire().await
    }

    fn kept(&self) -> Option<Kept> {
        None
    }
}

/// A pool whose connections are used again and again. It asks the server about each that it gives out or that is given back to it, two round
/// trips more for each transaction; one that has just committed is well, and all but two are kept here instead.
#[derive(Clone)]
pub struct Connections {
    pool: PgPool,
    kept: Kept,
}

/// Connections that are well, and in no transaction. Clones are the same.
#[derive(Clone)]
pub struct Kept(Arc<Shelf>);

struct Shelf {
    connections: Mutex<Vec<PoolConnection<Postgres>>>,
    /// How many there may be.
    room: usize,
}

impl Kept {
    fn new(room: usize) -> Kept {
        Kept(Arc::new(Shelf { connections: Mutex::default(), room }))
    }

    fn take(&self) -> Option<PoolConnection<Postgres>> {
        self.connections().pop()
    }

    fn put(&self, connection: PoolConnection<Postgres>) {
        let mut connections = self.connections();
        if connections.len() < self.0.room {
            connections.push(connection);
        }
    }

    fn close_all(&self) {
        self.connections().drain(..).for_each(|connection| drop(connection.detach()));
    }

    fn connections(&self) -> MutexGuard<'_, Vec<PoolConnection<Postgres>>> {
        self.0.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        // Closed. To be given back to the pool they would need the runtime, which may have ended.
        let connections = self.connections.get_mut().unwrap_or_else(PoisonError::into_inner);
        connections.drain(..).for_each(|connection| drop(connection.detach()));
    }
}

impl Connections {
    /// Of this pool.
    pub fn new(pool: PgPool) -> Connections {
        let room = pool.options().get_max_connections().saturating_sub(2);
        Connections { pool, kept: Kept::new(room as usize) }
    }
}

impl Origin for Connections {
    async fn connection(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        match self.kept.take() {
            Some(connection) => Ok(connection),
            None => self.pool.acquire().await,
        }
    }

    fn kept(&self) -> Option<Kept> {
        Some(self.kept.clone())
    }
}

impl Deref for Connections {
    type Target = PgPool;

    fn deref(&self) -> &PgPool {
        &self.pool
    }
}

/// An open transaction.
pub struct Session {
    connection: Option<PoolConnection<Postgres>>,
    kept: Option<Kept>,
}

impl Session {
    /// Opens one: `BEGIN`, then `script`, in one round trip. Read committed, whatever the server's default: what is read after
    /// a lock was taken must be as of after the lock. Gives the rows of all of its statements, in order, in text format.
    pub async fn begin(from: &impl Origin, script: &str) -> sqlx::Result<(Session, Vec<PgRow>)> {
        let mut session = Session { connection: Some(from.connection().await?), kept: from.kept() };
        let rows = session.script(&format!("BEGIN ISOLATION LEVEL READ COMMITTED; {script}")).await?;
        Ok((session, rows))
    }

    /// Runs several statements in one round trip.
    pub async fn script(&mut self, script: &str) -> sqlx::Result<Vec<PgRow>> {
        self.connection().fetch_all(sqlx::raw_sql(trusted(script))).await
    }

    /// For `sqlx::query(…).execute(session.connection())`.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.connection.as_mut().unwrap_or_else(|| unreachable!("a session keeps its connection until it ends"))
    }

    /// `COMMIT`. An error here tells nothing about what the server did. Postgres answers the COMMIT of a transaction that is
    /// already broken with a ROLLBACK that is no error: the statement before it is.
    pub async fn commit(mut self) -> sqlx::Result<()> {
        self.script("SELECT; COMMIT").await?;
        self.give_back();
        Ok(())
    }

    /// `ROLLBACK`; a connection that cannot even do that is closed.
    pub async fn rollback(mut self) {
        if self.script("ROLLBACK").await.is_ok() {
            self.give_back();
        }
    }

    /// The transaction is over, and the connection well.
    fn give_back(&mut self) {
        if let (Some(connection), Some(kept)) = (self.connection.take(), &self.kept) {
            kept.put(connection);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
            // If the server went away, it did so for all: they need not be found out one by one.
            if let Some(kept) = &self.kept {
                kept.close_all();
            }
        }
    }
}

/// Asks one question in a transaction of its own, which sets `limits` and then `settings` for itself. Gives up after the
/// deadline, as [`within`].
pub async fn ask(
    from: &impl Origin,
    limits: Limits,
    settings: &str,
    question: Query<'_, Postgres, PgArguments>,
) -> sqlx::Result<Vec<PgRow>> {
    within(limits.deadline, async {
        let (mut session, _) = Session::begin(from, &format!("{} {settings}", limits.sql())).await?;
        let rows = question.fetch_all(session.connection()).await?;
        session.commit().await?;
        Ok(rows)
    })
    .await
}

/// Asks one question that has no parameters, likewise, but in one round trip: for what is asked again and again while nothing
/// happens. It is planned anew each time. Rows come in text format.
pub async fn ask_at_once(
    from: &impl Origin,
    limits: Limits,
    settings: &str,
    question: &str,
) -> sqlx::Result<Vec<PgRow>> {
    within(limits.deadline, async {
        // A line of its own for what follows, or a comment at the question's end would take it in.
        let script = format!("{} {settings} {question}\n; COMMIT", limits.sql());
        let (mut session, rows) = Session::begin(from, &script).await?;
        session.give_back();
        Ok(rows)
    })
    .await
}

/// How long the quickest of a few round trips takes, once there is a connection.
pub async fn round_trip(pool: &PgPool, deadline: Duration) -> sqlx::Result<Duration> {
    within(deadline, async {
        let (mut session, _) = Session::begin(pool, "").await?;
        let mut quickest = Duration::MAX;
        for _ in 0..2 {
            let asked = Instant::now();
            session.script("SELECT").await?;
            quickest = quickest.min(asked.elapsed());
        }
        session.rollback().await;
        Ok(quickest)
    })
    .await
}

/// Gives up after `deadline`, as a batch does: a server whose host died without a word never answers, and whoever waits for it
/// without a limit waits for TCP's, a quarter of an hour.
pub async fn within<T>(deadline: Duration, work: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {deadline:?}"));
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| Err(sqlx::Error::Io(late())))
}

/// Whether somebody else held a lock for longer than `lock_timeout`.
pub fn is_lock_timeout(error: &sqlx::Error) -> bool {
    sqlstate(error).as_deref() == Some("55P03")
}

/// Whether a statement took longer than `statement_timeout`.
pub fn is_statement_timeout(error: &sqlx::Error) -> bool {
    sqlstate(error).as_deref() == Some("57014")
}

/// Whether it took too long, by the client's clock or the server's, or waited too long for a lock.
pub fn is_late(error: &sqlx::Error) -> bool {
    let given_up = matches!(error, sqlx::Error::Io(why) if why.kind() == std::io::ErrorKind::TimedOut);
    given_up || is_statement_timeout(error) || is_lock_timeout(error)
}

/// What the server called its error; `None` if it is not the server's.
pub fn sqlstate(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error().and_then(|error| error.code())
}
