//! One transaction on one pooled connection, and what may come of it.
//!
//! Guarantees: a session that is dropped before it was committed or rolled back closes its connection, so that no half-done
//! transaction and no half-read answer ever goes back to the pool; the server rolls it back.

use std::borrow::Cow;
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

/// An open transaction.
pub struct Session {
    connection: Option<PoolConnection<Postgres>>,
}

impl Session {
    /// Opens one: `BEGIN`, then `script`, in one round trip. Read committed, whatever the server's default: what is read after
    /// a lock was taken must be as of after the lock. Gives the rows of all of its statements, in order, in text format.
    pub async fn begin(pool: &PgPool, script: &str) -> sqlx::Result<(Session, Vec<PgRow>)> {
        Session::on(pool.acquire().await?, script).await
    }

    async fn on(connection: PoolConnection<Postgres>, script: &str) -> sqlx::Result<(Session, Vec<PgRow>)> {
        let mut session = Session { connection: Some(connection) };
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
        self.connection.take();
        Ok(())
    }

    /// `ROLLBACK`; a connection that cannot even do that is closed.
    pub async fn rollback(mut self) {
        if self.script("ROLLBACK").await.is_ok() {
            self.connection.take();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }
}

/// Asks one question in a transaction of its own, which sets `limits` and then `settings` for itself. Gives up after the
/// deadline, as [`within`].
pub async fn ask(
    pool: &PgPool,
    limits: Limits,
    settings: &str,
    question: Query<'_, Postgres, PgArguments>,
) -> sqlx::Result<Vec<PgRow>> {
    within(limits.deadline, async {
        let (mut session, _) = Session::begin(pool, &format!("{} {settings}", limits.sql())).await?;
        let rows = question.fetch_all(session.connection()).await?;
        session.commit().await?;
        Ok(rows)
    })
    .await
}

/// Asks one question that has no parameters, likewise, but in one round trip: for what is asked again and again while nothing
/// happens. It is planned anew each time. Rows come in text format.
pub async fn ask_at_once(pool: &PgPool, limits: Limits, settings: &str, question: &str) -> sqlx::Result<Vec<PgRow>> {
    within(limits.deadline, async {
        // A line of its own for what follows, or a comment at the question's end would take it in.
        let script = format!("{} {settings} {question}\n; COMMIT", limits.sql());
        let (mut session, rows) = Session::begin(pool, &script).await?;
        session.connection.take();
        Ok(rows)
    })
    .await
}

/// A statement that is run again and again by its name, in one round trip: planned once a connection, where a script's is planned each time.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// `(text[], boolean)`; empty without parameters.
    pub types: &'a str,
    /// With `$1` and on.
    pub sql: &'a str,
    /// Whether a connection keeps it. Behind a pooler the next transaction has another server, which does not have it.
    pub kept: bool,
}

/// A connection of one's own, for whoever asks the same several times a second while nothing else happens: a pool asks the server about
/// each connection that is given back to it, which is a round trip more a question.
pub struct Own {
    pool: PgPool,
    /// Nobody else's, with a number: a statement may be left behind on a server that is somebody else's by then.
    name: String,
    names: u64,
    /// In no transaction, and since when it is kept.
    connection: Option<(PoolConnection<Postgres>, Instant)>,
    /// A kept statement was not there any more: somebody else hands servers out.
    is_shared: bool,
}

impl Own {
    /// So long it is kept: what a server collects for a session, and where a name leads, grow old.
    const AT_MOST: Duration = Duration::from_secs(600);

    /// Out of this pool, when it is needed.
    pub fn new(pool: PgPool) -> Own {
        let name = format!("outbox_relay_{}", uuid::Uuid::new_v4().simple());
        Own { pool, name, names: 0, connection: None, is_shared: false }
    }

    /// Runs the statement, always the same, in a transaction of its own, which sets `limits` and then `settings` for itself; `arguments` as
    /// SQL has them, in parentheses. Gives up after the deadline, as [`within`]. Rows come in text format. A connection where something went wrong is closed.
    pub async fn execute(
        &mut self,
        limits: Limits,
        settings: &str,
        statement: Named<'_>,
        arguments: &str,
    ) -> sqlx::Result<Vec<PgRow>> {
        within(limits.deadline, async {
            if self.connection.as_ref().is_some_and(|(_, since)| since.elapsed() >= Own::AT_MOST) {
                self.close();
            }
            let before = self.connection.take();
            let keeps = statement.kept && !self.is_shared;
            let has_it = keeps && before.is_some();
            self.names += u64::from(!has_it);
            let name = format!("{}_{}", self.name, self.names);
            let (connection, since) = match before {
                Some(before) => before,
                None => (self.pool.acquire().await?, Instant::now()),
            };
            // A line of its own for what follows, or a comment at the statement's end would take it in.
            let prepare = if has_it {
                String::new()
            } else {
                format!("PREPARE {name} {} AS {}\n;", statement.types, statement.sql)
            };
            let forget = if keeps { String::new() } else { format!("DEALLOCATE {name};") };
            let script = format!("{} {settings} {prepare} EXECUTE {name} {arguments}; {forget} COMMIT", limits.sql());
            let answer = Session::on(connection, &script).await;
            self.is_shared |= has_it && answer.as_ref().is_err_and(|error| sqlstate(error).as_deref() == Some("26000"));
            let (mut session, rows) = answer?;
            self.connection = session.connection.take().map(|connection| (connection, since));
            Ok(rows)
        })
        .await
    }

    /// To be given back to the pool it would need the runtime, which may have ended; and it would keep the statement.
    fn close(&mut self) {
        if let Some((connection, _)) = self.connection.take() {
            drop(connection.detach());
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.close();
    }
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
