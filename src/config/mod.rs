//! The configuration: what every other module may ask of the operator's file.
//!
//! Guarantees: a [`Config`] that exists is complete and plausible in itself (defaults filled in, units parsed, names
//! unique). It says nothing about the databases; `check` does that.

mod entities;
mod load;
mod names;
mod problem;
mod reader;
mod rows;
mod template;
mod tokens;
mod value;
mod verify;
mod webhook;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use load::{Resolved, environment};
pub use problem::{Code, ConfigErrors, Place, Problem};
pub use reader::{Origin, Overrides, Setting};
pub use template::template;

use crate::redact::Rules;

/// The configuration file, where none is named.
pub const DEFAULT_FILE: &str = "outbox-relay.toml";

/// The whole configuration, after flag over environment over file over default.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from, if any; relative paths in it start at the folder of this file.
    pub file: Option<PathBuf>,
    /// `[legacy]`: the database that the monolith writes.
    pub legacy: Legacy,
    /// `[new]`: the database that the service owns.
    pub new: New,
    /// `[relay]`
    pub relay: Relay,
    /// `[retry]`
    pub retry: Retry,
    /// `[retention]`
    pub retention: Retention,
    /// `[admin]`
    pub admin: Admin,
    /// `[alerts]`
    pub alerts: Alerts,
    /// `[redact]`
    pub redact: Arc<Rules>,
    /// `[log]`
    pub log: Log,
    /// `[backfill]`
    pub backfill: Backfill,
    /// `[verify]`
    pub verify: Verify,
    /// `[[entity]]`, in the order of the file.
    pub entities: Vec<Entity>,
}

/// A connection string. Its `Debug` and `Display` never show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(pub(super) String);

/// `schema.table`, both unquoted as the operator wrote them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    /// Schema; `public` where the operator named none.
    pub schema: String,
    /// Table.
    pub table: String,
}

/// `[legacy]`
#[derive(Debug, Clone)]
pub struct Legacy {
    /// Where it is.
    pub url: DatabaseUrl,
    /// The schema of the relay's own tables there. Default `outbox_relay`.
    pub schema: String,
    /// The outbox. Default `public.outbox`.
    pub outbox: TableName,
    /// `[legacy.columns]`: the outbox's column names.
    pub columns: Columns,
    /// `[legacy.status]`: the words in the status column.
    pub status: StatusWords,
    /// Whether statements may be prepared once a connection. False behind PgBouncer in transaction mode. Default true.
    pub prepared_statements: bool,
}

/// `[new]`
#[derive(Debug, Clone)]
pub struct New {
    /// Where it is.
    pub url: DatabaseUrl,
    /// The schema of the relay's own tables there. Default `outbox_relay`.
    pub schema: String,
    /// The schema that mappings, handlers and unqualified tables of entities refer to. Default `public`.
    pub search_path: String,
    /// Whether statements may be prepared once a connection. Default true.
    pub prepared_statements: bool,
}

/// `[legacy.columns]`: the outbox's column names, the design's own by default.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the name of the column that the contract calls so")]
pub struct Columns {
    pub id: String,
    pub event_id: String,
    pub aggregate_type: String,
    pub aggregate_id: String,
    pub event_type: String,
    pub payload: String,
    pub headers: String,
    pub created_at: String,
    pub status: String,
    pub attempts: String,
    pub next_attempt_at: String,
    pub processed_at: String,
    pub last_error: String,
}

/// `[legacy.status]`: the words in the status column, the design's own by default.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the word for the status that the contract calls so")]
pub struct StatusWords {
    pub pending: String,
    pub retry: String,
    pub held: String,
    pub processed: String,
    pub failed: String,
    pub skipped: String,
}

/// `[relay]`
#[derive(Debug, Clone)]
pub struct Relay {
    /// Batches in flight in this process. Default 4.
    pub workers: u16,
    /// Events a batch. Default 2000.
    pub batch: u32,
    /// Payload bytes a batch (a single larger event passes alone). Default 16 MiB.
    pub batch_bytes: u64,
    /// Lanes, fixed at `init`. Default 16.
    pub lanes: u16,
    /// For one batch. Default 30 s.
    pub deadline: Duration,
    /// The longest pause between looks when idle. Default 250 ms.
    pub poll_max: Duration,
    /// The pause after events were brought, before others are looked for. Default 0.
    pub linger: Duration,
    /// How far back a failover is healed. Default 1 h.
    pub replica_lag: Duration,
}

/// `[retry]`
#[derive(Debug, Clone)]
pub struct Retry {
    /// Pause after the first failed attempt. Default 1 s.
    pub initial: Duration,
    /// The longest pause. Default 5 min.
    pub max: Duration,
    /// Attempts, the first one included, before an event is `failed`. Default 10.
    pub attempts: u32,
    /// How long an event waits for another row (a parent on its way) before that counts as its own failure. Default 10 min.
    pub patience: Duration,
}

/// `[retention]`
#[derive(Debug, Clone)]
pub struct Retention {
    /// Age at which processed events are deleted. Zero: on settling. Default 7 d.
    pub processed: Duration,
    /// Age at which skipped events are deleted. Default 30 d.
    pub skipped: Duration,
}

/// `[admin]`
#[derive(Debug, Clone)]
pub struct Admin {
    /// Default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// Names, beside those of this machine, under which browsers may reach it. Default none.
    pub hosts: Vec<String>,
    /// Open connections at a time; one address gets half of them. Default 512.
    pub max_connections: u16,
    /// What it shows over TLS; `None`: it speaks plain HTTP.
    pub tls: Option<CertificateFiles>,
    /// Whether whatever reaches it from outside does so through something that speaks TLS. Default false.
    pub behind_proxy: bool,
    /// The address at which people open the page, without a slash at its end; empty, the default: alerts have no link to it.
    pub url: String,
    /// All tokens: `OUTBOX_RELAY_ADMIN_TOKEN`, `OUTBOX_RELAY_READ_TOKEN`, `[[admin.token]]`.
    pub tokens: Vec<Token>,
    /// The files that some of them are in.
    pub token_files: Vec<TokenFile>,
}

/// `admin.tls_cert` and `admin.tls_key`, as paths that can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: the server's certificate, then those between it and its authority.
    pub certificate: PathBuf,
    /// PEM: its key, not encrypted.
    pub key: PathBuf,
}

/// One token of the admin API. `Debug` does not show the secret.
#[derive(Clone)]
pub struct Token {
    /// By which the audit knows its holder.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The secret itself.
    pub secret: String,
}

/// A file that holds a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile {
    /// The token's name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// As it can be opened.
    pub path: PathBuf,
}

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Read.
    Read,
    /// Read and change.
    Admin,
}

/// `[alerts]`: messages to a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alerts {
    /// Where they are posted; `None`, the default: nowhere.
    pub webhook: Option<Webhook>,
    /// Age of the oldest pending event that is one; zero: never. Default 5 min.
    pub lag: Duration,
    /// So many failed events are one; 0: never. Default 1.
    pub failures: u32,
    /// The causes of a degraded readiness, `starting` and `rows_left`, that are one.
    pub causes: Vec<&'static str>,
    /// For how long it must be so. Default 1 min.
    pub after: Duration,
    /// For how long it must be over. Default 2 min.
    pub recovery: Duration,
    /// After how long one that goes on is told again; zero: never. Default 4 h.
    pub repeat: Duration,
}

/// Where alerts are posted. Who knows it may post: its `Debug` and `Display` show the host only.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook(pub(super) String);

/// `[backfill]`: how fast tables are copied, and when the copy rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backfill {
    /// Lanes copied at once. Default 4.
    pub workers: u16,
    /// How long a chunk should hold its lane. Default 50 ms.
    pub lock_time: Duration,
    /// Rows a second; 0, the default: as fast as it goes.
    pub rows_per_second: u32,
    /// Rests while the legacy database has more active sessions; 0, the default: never.
    pub max_sessions: u32,
    /// Rests while a replica of the legacy database is further behind; zero, the default: never.
    pub max_replica_lag: Duration,
    /// Gives up after so many refused rows. Default 1000.
    pub max_refused: u32,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// Text for people or JSON lines. Default text.
    pub format: LogFormat,
    /// A `tracing` filter, as in `info,outbox_relay=debug`. Default `info`.
    pub filter: String,
}

/// See [`Log::format`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogFormat {
    Text,
    Json,
}

/// `[[entity]]`: an aggregate type with its mapping to a table of the new database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entity {
    /// By which every command knows it. Default: its table, or without one its aggregate type.
    pub name: String,
    /// The line of its `[[entity]]` in the file, from 1.
    pub line: usize,
    /// The aggregate type whose events it takes.
    pub aggregate_type: String,
    /// The table of the new database; `None` when all of its actions are own SQL or `ignore`.
    pub table: Option<TableName>,
    /// Key columns of that table.
    pub key: Vec<String>,
    /// The owner's columns: rows of an owner that the mapping no longer yields are deleted.
    pub replace_by: Vec<String>,
    /// The file of the mapping, `None`: columns of the same name.
    pub mapping: Option<SqlFile>,
    /// Whether payloads may be JSON strings, which are refused otherwise: somebody serialised them twice.
    pub string_payloads: bool,
    /// Whether a failed event holds back the later ones of its aggregate.
    pub on_failure: OnFailure,
    /// What to do with each event type.
    pub events: BTreeMap<String, Action>,
    /// The rows of the legacy database that it is made of: for the first copy, capture, verification and repair.
    pub legacy: Option<LegacyRows>,
    /// `[entity.verify]`
    pub verify: VerifyRules,
}

/// `[entity.verify]`: what is not compared, or not exactly.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VerifyRules {
    /// Columns that are left out.
    pub ignore: Vec<Ignored>,
    /// Columns whose values may lie a little apart.
    pub tolerance: Vec<Tolerance>,
    /// The table's writes emit no events: rows are looked at twice, a second apart, instead of under a lock.
    pub without_events: bool,
}

/// A column that is not compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// Of the new table.
    pub column: String,
    /// Why; shown in every report.
    pub reason: String,
}

/// A column of numbers or times that may lie a little apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tolerance {
    /// Of the new table.
    pub column: String,
    /// How far, in millionths: of the number, or of a second.
    pub micros: u64,
    /// Why.
    pub reason: String,
}

impl Tolerance {
    /// How far: a number, or seconds.
    pub fn within(&self) -> f64 {
        self.micros as f64 / 1e6
    }
}

impl Backfill {
    /// Whether it rests while the legacy database has enough to do, which it must be shown for that.
    pub fn heeds_the_load(&self) -> bool {
        self.max_sessions > 0 || !self.max_replica_lag.is_zero()
    }
}

/// `[verify]`: verification that goes on by itself beside the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verify {
    /// How often it begins; zero: never. Default zero.
    pub every: Duration,
    /// Rows a second that it reads on each side, at most. Default 20000.
    pub rate: u32,
}

/// `entity.legacy`: rows of the legacy database, each with its aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyRows {
    /// Where they are.
    pub from: RowsFrom,
    /// The columns that tell them apart; at least one.
    pub key: Vec<String>,
    /// An SQL expression over the row: the `aggregate_id` of its events. Default: the key's text, if it is one column.
    pub aggregate_id: String,
    /// `[entity.capture]`
    pub capture: Capture,
}

/// See [`LegacyRows::from`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowsFrom {
    /// A table.
    Table(TableName),
    /// One `SELECT`, such as a join.
    Query(SqlFile),
}

/// `[entity.capture]`: what the events of captured changes are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// The event type of an insert.
    pub insert: String,
    /// The event type of an update.
    pub update: String,
    /// The event type of a delete.
    pub delete: String,
    /// What the event of a delete holds.
    pub delete_payload: DeletePayload,
}

/// See [`Capture::delete_payload`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeletePayload {
    /// The key's columns.
    Key,
    /// The whole row as it was: for a mapping that filters, or makes its key of other columns.
    Row,
}

/// An SQL file of the operator's, read when the configuration was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlFile {
    /// As it is shown to the operator: as written in the configuration, relative to it.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// See [`Entity::on_failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// Later events of the aggregate wait until it is replayed or skipped.
    #[default]
    Hold,
    /// Later events of the aggregate go on.
    Pass,
}

/// What an event does to the new database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write the rows that the mapping yields.
    Upsert,
    /// Delete the rows whose key the mapping yields.
    Delete,
    /// Nothing; the event is processed.
    Ignore,
    /// One statement that reads `event`.
    Sql(SqlFile),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("name", &self.name).field("role", &self.role).finish_non_exhaustive()
    }
}
