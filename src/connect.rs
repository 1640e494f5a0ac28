//! From a configuration to two databases that the relay may work on: connected, and known to be the pair that `init` made.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Row};
use uuid::Uuid;

use crate::config::{Config, DatabaseUrl};
use crate::disposition::told;
use crate::session::{Session, sqlstate, within};
use crate::source::{Names, Source};
use crate::sql::{query, query_scalar};
use crate::target::Target;
use crate::tls;

/// Why the relay cannot work on these databases.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A database is away, or refuses the connection.
    #[error("{side}: {}", told(error))]
    Away {
        /// `legacy` or `new`.
        side: &'static str,
        /// What was said.
        error: sqlx::Error,
    },
    /// It answers, but is not ready: what to do is in the text.
    #[error("{0}")]
    NotReady(String),
}

/// What `init` left on the source.
#[derive(Debug, Clone)]
pub struct Installation {
    /// Names this outbox towards targets.
    pub source_id: Uuid,
    /// The target that it feeds.
    pub target_id: Option<Uuid>,
    /// Lanes, fixed.
    pub lanes: u16,
}

impl ConnectError {
    /// What a database said, if one did.
    pub fn database(&self) -> Option<&sqlx::Error> {
        match self {
            ConnectError::Away { error, .. } => Some(error),
            ConnectError::NotReady(_) => None,
        }
    }

    /// Whether it is a matter of TLS, which no waiting mends.
    pub fn is_about_tls(&self) -> bool {
        matches!(self, ConnectError::Away { error, .. } if tls::refusal(error).is_some())
    }
}

/// Opens a pool that connects when it is used. What a pooler refuses at start-up is not sent.
///
/// # Errors
/// The URL cannot be read, or a file that it names for TLS cannot be used.
pub fn pool(url: &DatabaseUrl, prepared_statements: bool, connections: u32) -> Result<PgPool, sqlx::Error> {
    let mut options: PgConnectOptions = url.expose().parse()?;
    tls::files(url, &options)?;
    options = options.application_name("outbox-relay").extra_float_digits(None);
    // What is slow or away is told in the relay's own words, not as the text of its statements.
    options = options.disable_statement_logging();
    if !prepared_statements {
        options = options.statement_cache_capacity(0);
    }
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        .acquire_slow_threshold(Duration::from_secs(3600))
        .test_before_acquire(false)
        .connect_lazy_with(options))
}

/// A pool for the source, as configured.
pub fn source(config: &Config, connections: u32) -> Result<PgPool, ConnectError> {
    pool(&config.legacy.url, config.legacy.prepared_statements, connections)
        .map_err(|error| ConnectError::Away { side: "legacy", error })
}

/// A pool for the target, as configured.
pub fn target(config: &Config, connections: u32) -> Result<PgPool, ConnectError> {
    pool(&config.new.url, config.new.prepared_statements, connections)
        .map_err(|error| ConnectError::Away { side: "new", error })
}

/// As [`reach`], and tells which side (`legacy`, `new`) it is that cannot be reached.
pub async fn reached(side: &'static str, pool: &PgPool) -> Result<(), ConnectError> {
    reach(pool).await.map_err(|error| ConnectError::Away { side, error })
}

/// Whether the database can be reached at all. A pool goes on trying where nobody listens, and then tells that it ran out of time:
/// here the reason is told, and at once.
pub async fn reach(pool: &PgPool) -> sqlx::Result<()> {
    within(Duration::from_secs(10), async { PgConnection::connect_with(&pool.connect_options()).await?.close().await })
        .await
}

/// Reads what `init` left on the source.
pub async fn installation(pool: &PgPool, config: &Config) -> Result<Installation, ConnectError> {
    let away = |error: sqlx::Error| ConnectError::Away { side: "legacy", error };
    let names = Names::new(&config.legacy, config.relay.lanes);
    let sql = names.render("SELECT version, source_id, target_id, lanes, outbox, test_lanes FROM {relay}.installation");
    reached("legacy", pool).await?;
    let mut session = begin(pool).await.map_err(away)?;
    let row = match query(&sql, false).fetch_optional(session.connection()).await {
        Ok(Some(row)) => row,
        Ok(None) => return Err(not_initialised()),
        Err(error) if is_undefined(&error) => return Err(not_initialised()),
        Err(error) => return Err(away(error)),
    };
    let version: i32 = row.try_get("version").map_err(away)?;
    if version > SCHEMA_VERSION {
        return Err(ConnectError::NotReady(format!(
            "the relay's tables are of version {version}, made by a newer outbox-relay; this one knows version {}: use the newer \
             program",
            SCHEMA_VERSION
        )));
    }
    let lanes: i32 = row.try_get("lanes").map_err(away)?;
    let outbox: String = row.try_get("outbox").map_err(away)?;
    if lanes != i32::from(config.relay.lanes) {
        return Err(ConnectError::NotReady(format!(
            "relay.lanes is {}, but init made {lanes} lanes, and they are fixed: set lanes = {lanes}",
            config.relay.lanes
        )));
    }
    if outbox != names.outbox {
        return Err(ConnectError::NotReady(format!(
            "legacy.outbox is {}, but the schema {} belongs to {outbox}: give this outbox its own schema with [legacy] schema",
            names.outbox, names.relay
        )));
    }
    let then: Vec<i32> = row.try_get("test_lanes").map_err(away)?;
    let sql = names.render(TEST_LANES);
    let now: Vec<i32> = query_scalar(&sql, false).fetch_one(session.connection()).await.map_err(away)?;
    session.rollback().await;
    if then != now {
        return Err(ConnectError::NotReady(
            "this server hashes aggregates to other lanes than the one that init ran on (a major upgrade may do that): stop all \
             relays, let the old server's outbox drain, then init anew"
                .to_owned(),
        ));
    }
    Ok(Installation {
        source_id: row.try_get("source_id").map_err(away)?,
        target_id: row.try_get("target_id").map_err(away)?,
        lanes: config.relay.lanes,
    })
}

/// The version of the relay's own tables.
pub const SCHEMA_VERSION: i32 = 1;

/// The lanes of a few keys: must be the same for ever. The third key is é and 日本 in UTF-8; written as bytes, for a database in
/// another encoding could not even be told of them.
pub const TEST_LANES: &str = "SELECT array_agg({lane_of_key} ORDER BY k.n) FROM (VALUES (1, 'User', '1'), (2, 'Order', 'a-b-c'), \
    (3, convert_from(decode('c3a9', 'hex'), getdatabaseencoding()), convert_from(decode('e697a5e69cac', 'hex'), getdatabaseencoding())), \
    (4, '', '')) AS k (n, aggregate_type, aggregate_id)";

fn not_initialised() -> ConnectError {
    ConnectError::NotReady("the relay's tables are not there yet: run outbox-relay init".to_owned())
}

/// Undefined table or schema.
pub fn is_undefined(error: &sqlx::Error) -> bool {
    matches!(sqlstate(error).as_deref(), Some("42P01" | "3F000"))
}

/// Undefined column: of a table that an older version made.
pub fn is_undefined_column(error: &sqlx::Error) -> bool {
    sqlstate(error).as_deref() == Some("42703")
}

/// Both sides, ready for batches: as many connections as workers need, and a few for looking.
pub async fn open(config: &Config) -> Result<(Source, Target), ConnectError> {
    let connections = u32::from(config.relay.workers) + 6;
    let legacy = |error: sqlx::Error| ConnectError::Away { side: "legacy", error };
    let (source, target) = (self::source(config, connections)?, self::target(config, connections)?);
    let installation = installation(&source, config).await?;
    check_target(&target, config, &installation).await?;
    let mut names = Names::new(&config.legacy, config.relay.lanes);
    if is_partitioned(&source, config, &names).await.map_err(legacy)? {
        names = names.partitioned();
    }
    let sequence = sequence(&source, config).await.map_err(legacy)?;
    let deadline = config.relay.deadline;
    let source = Source::new(
        source,
        names,
        deadline,
        config.retention.processed.is_zero(),
        sequence,
        config.legacy.prepared_statements,
    );
    let target = Target::new(
        target,
        &config.new.schema,
        &config.new.search_path,
        installation.source_id,
        deadline,
        config.new.prepared_statements,
    );
    Ok((source, target))
}

pub(crate) async fn check_target(
    pool: &PgPool,
    config: &Config,
    installation: &Installation,
) -> Result<(), ConnectError> {
    let sql = format!("SELECT target_id FROM {}.installation", crate::sql::ident(&config.new.schema));
    let away = |error: sqlx::Error| ConnectError::Away { side: "new", error };
    reached("new", pool).await?;
    let mut session = begin(pool).await.map_err(away)?;
    let found = query_scalar(&sql, false).fetch_optional(session.connection()).await;
    session.rollback().await;
    let found: Option<Uuid> = match found {
        Ok(found) => found,
        Err(error) if is_undefined(&error) => None,
        Err(error) => return Err(ConnectError::Away { side: "new", error }),
    };
    match (found, installation.target_id) {
        (Some(found), Some(known)) if found == known => Ok(()),
        (Some(_), Some(_)) => Err(ConnectError::NotReady(
            "this outbox feeds another new database already; a second service gets its own outbox and its own [legacy] schema. \
             If the database was moved: outbox-relay init --moved"
                .to_owned(),
        )),
        _ => Err(ConnectError::NotReady("the new database does not have the relay's tables yet: run outbox-relay init".to_owned())),
    }
}

/// Whether each of the outbox's partitions holds the events of a time.
pub(crate) async fn is_partitioned(pool: &PgPool, config: &Config, names: &Names) -> sqlx::Result<bool> {
    let sql = include_str!("../sql/source/partitioned.sql");
    let mut session = begin(pool).await?;
    let question = query_scalar(sql, false).bind(&config.legacy.columns.created_at).bind(&names.outbox);
    let found = question.fetch_one(session.connection()).await?;
    session.rollback().await;
    Ok(found)
}

/// The sequence behind the outbox's ids, if a position may be trusted to it: none is used when it hands out ids ahead.
async fn sequence(pool: &PgPool, config: &Config) -> sqlx::Result<Option<String>> {
    let names = Names::new(&config.legacy, config.relay.lanes);
    let sql = "SELECT s::regclass::text FROM pg_get_serial_sequence($1, $2) AS s JOIN pg_sequence q ON q.seqrelid = s::regclass \
               WHERE q.seqcache = 1 AND q.seqincrement > 0 AND NOT q.seqcycle";
    let mut session = begin(pool).await?;
    let sequence = query_scalar(sql, false).bind(&names.outbox).bind(&config.legacy.columns.id);
    let sequence = sequence.fetch_optional(session.connection()).await?;
    session.rollback().await;
    Ok(sequence)
}

/// Even to ask: behind PgBouncer each transaction has a server of its own, and so has each step of a statement outside of one.
async fn begin(pool: &PgPool) -> sqlx::Result<Session> {
    Session::begin(pool, "").await.map(|(session, _)| session)
}
