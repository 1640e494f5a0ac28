//! What every integration test stands on: databases of its own, and waiting without sleeping.
#![allow(dead_code, unreachable_pub, reason = "a file of tests uses the part that it needs; there is nobody outside")]

pub mod certificates;
pub mod child;
pub mod contract;
pub mod copying;
pub mod past;
pub mod program;
pub mod proxy;
pub mod stage;

use std::future::Future;
use std::time::{Duration, Instant};

use outbox_relay::demo::server::{Options, Server};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Row};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// Long enough for anything on a slow machine; what waits this long has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// An empty database of a test's own. Dropping it drops the database, in the background.
#[derive(Debug)]
pub struct Database {
    pub name: String,
    /// As superuser.
    pub url: String,
    /// As superuser. Opens connections as they are needed.
    pub pool: PgPool,
    admin_url: String,
}

/// A legacy and a new database, each on its own server.
#[derive(Debug)]
pub struct Pair {
    pub legacy: Database,
    pub new: Database,
}

/// A legacy and a new server.
#[derive(Debug)]
pub struct Servers {
    pub legacy: Server,
    pub new: Server,
}

/// An empty pair of databases on two servers that all tests of this process share. Do nothing to the servers.
pub async fn pair() -> Pair {
    // Never dropped, as statics are not: the servers' guards see this process end, and clean up.
    static SHARED: OnceCell<Servers> = OnceCell::const_new();
    SHARED.get_or_init(own_servers).await.pair().await
}

/// Two servers of the test's own, to kill, freeze and send back in time. They take a second or two; prefer [`pair`].
pub async fn own_servers() -> Servers {
    let (legacy, new) = tokio::try_join!(
        Server::start(Options::for_tests("test-legacy")),
        Server::start(Options::for_tests("test-new")),
    )
    .expect("two test servers");
    Servers { legacy, new }
}

impl Servers {
    /// An empty pair of databases on these servers.
    pub async fn pair(&self) -> Pair {
        let (legacy, new) = tokio::join!(database(&self.legacy), database(&self.new));
        Pair { legacy, new }
    }
}

/// An empty database on a server.
pub async fn database(server: &Server) -> Database {
    let name = format!("test_{}", Uuid::new_v4().simple());
    server.create_database(&name).await.expect("an empty database");
    let url = server.url(&name);
    // Connections that a kill or a freeze left broken are found out before they are used.
    let pool = PgPoolOptions::new().max_connections(5).acquire_timeout(DEADLINE).test_before_acquire(true);
    let pool = pool.connect_lazy(&url).expect("a pool");
    Database { name, url, pool, admin_url: server.url("postgres") }
}

impl Database {
    /// Runs statements, several at once if need be.
    pub async fn run(&self, sql: &str) {
        if let Err(error) = self.pool.execute(AssertSqlSafe(sql.to_owned())).await {
            panic!("{error}\n{sql}");
        }
    }

    /// The one value that a query yields.
    pub async fn value<T>(&self, sql: &str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        match sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&self.pool).await {
            Ok(value) => value,
            Err(error) => panic!("{error}\n{sql}"),
        }
    }
}

/// How a statement was run.
pub struct Plan {
    pub text: String,
    /// All that it touched.
    pub buffers: i64,
}

/// The settings that the relay makes for its own transactions on the source.
pub const PLANS: &str =
    "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off;
     SET LOCAL jit = off;";

impl Database {
    /// Runs a statement under the relay's settings, and takes back what it did.
    pub async fn explain(&self, sql: &str) -> Plan {
        let script = format!("BEGIN; {PLANS} EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) {sql}; ROLLBACK");
        let rows = self.pool.fetch_all(sqlx::raw_sql(AssertSqlSafe(script))).await.expect(sql);
        let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        // The first line of the kind is the topmost node's, which counts those below it.
        let line = lines.iter().find(|line| line.contains("Buffers: ")).expect("buffers");
        let number = |word: &str| {
            line.split_whitespace()
                .find_map(|part| part.strip_prefix(word))
                .map_or(0, |n| n.parse::<i64>().expect("a number"))
        };
        Plan { buffers: number("hit=") + number("read="), text: lines.join("\n") }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (url, name) = (self.admin_url.clone(), self.name.clone());
        // On a thread of its own, since a drop cannot await; not joined, since nothing depends on it: the server goes
        // anyway, this only keeps a long run of tests from filling the disk.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut connection = PgConnection::connect(&url).await.map_err(std::io::Error::other)?;
                let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                connection.execute(AssertSqlSafe(sql)).await.map_err(std::io::Error::other)
            })
        });
    }
}

/// Returns when the condition holds; panics, naming it, when it does not by the deadline.
pub async fn eventually<F>(deadline: Duration, what: &str, mut condition: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
