//! Two throwaway servers that write as safely as Postgres ships, and statements run on them.

use anyhow::{Context, Result};
use outbox_relay::demo::server::{Options, Server};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// Legacy's and the new one's, with these settings besides. `safely`: as Postgres ships.
pub(crate) async fn start(settings: &[(&str, String)], safely: bool) -> Result<(Server, Server)> {
    let safely = if safely { "on" } else { "off" };
    let options = |name: &str| {
        let mut options = Options::new(name)
            .with("fsync", safely)
            .with("synchronous_commit", safely)
            .with("shared_buffers", "'1GB'")
            .with("max_wal_size", "'16GB'")
            .with("min_wal_size", "'2GB'")
            .with("checkpoint_timeout", "'15min'")
            .with("unix_socket_directories", "'.'");
        options.password = false;
        options.wal_segment_megabytes = 16;
        settings.iter().fold(options, |options, (name, value)| options.with(name, value))
    };
    Ok(tokio::try_join!(Server::start(options("bench-legacy")), Server::start(options("bench-new")))?)
}

/// What a run leaves behind would be vacuumed during the next one.
pub(crate) async fn drop_database(servers: [&Server; 2], name: &str) -> Result<()> {
    for server in servers {
        run(&server.url("postgres"), &format!("DROP DATABASE {name} WITH (FORCE)")).await?;
    }
    Ok(())
}

/// What was just written is written down.
pub(crate) async fn checkpoint(servers: [&Server; 2]) -> Result<()> {
    for server in servers {
        run(&server.url("postgres"), "CHECKPOINT").await?;
    }
    Ok(())
}

/// Runs statements, several at once if need be.
pub(crate) async fn run(url: &str, sql: &str) -> Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.with_context(|| sql.to_owned())?;
    Ok(connection.close().await?)
}

/// The one value of a query.
pub(crate) async fn value<T>(url: &str, sql: &str) -> Result<T>
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let mut connection = PgConnection::connect(url).await?;
    let found = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await;
    let found = found.with_context(|| sql.to_owned())?;
    connection.close().await?;
    Ok(found)
}

/// The most memory that a process has had, in MB.
pub(crate) fn peak_memory(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
