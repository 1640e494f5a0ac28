//! What operators may see and do: the backlog, events and failures; replay, skip, pause. The admin API and the command line both
//! stand on this, so that they cannot differ.
//!
//! Guarantees: everything happens on the source, under the lock of the lane concerned where events change, in transactions of a
//! few hundred events; every change is kept in the audit table in the transaction that made it; repeating a call is harmless. What
//! is told of payloads is what the one who asks may see ([`crate::redact`]).
//! Does not guarantee what retention has taken away: whether an event that was deleted was newer than one that is replayed.

pub(crate) mod alerts;
mod audit;
pub mod backlog;
mod change;
mod events;
mod failures;
pub mod history;
mod holders;
mod pause;
pub mod render;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgPool, PgRow};

pub use self::audit::{Audit, Audits, By};
pub use self::backlog::Backlog;
pub use self::change::{Bulk, BulkResult, Changed, Verb};
pub use self::events::{Attempt, Event, EventRef, Events, Failure, Filter, Listed};
pub use self::failures::Cause;
pub use self::holders::Holder;
pub use self::pause::{Pause, Paused, What};
use crate::config::{Config, Entity, OnFailure, Role};
use crate::connect;
use crate::event::Lane;
use crate::redact::{Rules, Sight};
use crate::relay::Shared;
use crate::session::{Limits, Session};
use crate::source::{Names, Source};

/// Connections of the pool that operators share.
const CONNECTIONS: u32 = 6;

/// The source, as operators use it. Clones share one pool, which is not the relay's: a slow list keeps no batch waiting.
#[derive(Clone)]
pub struct Operator {
    source: Source,
    entities: Arc<Vec<Entity>>,
    batch: u32,
    deadline: Duration,
    rules: Arc<Rules>,
    sight: Sight,
    relay: Arc<OnceLock<Arc<Shared>>>,
    waits_for: Arc<Mutex<Option<String>>>,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// No such event.
    #[error("there is no event {0}")]
    NotFound(String),
    /// As things stand, it must not be done.
    #[error("{message}")]
    Refused {
        /// Stable: `newer_applied`, `processed`, `held`, `not_failing`.
        code: &'static str,
        /// What stands in the way, and what to do.
        message: String,
    },
    /// Not as many events as the caller expected.
    #[error("{matched} events match, {expected} were expected: nothing was changed")]
    NotAsExpected {
        /// What the caller said.
        expected: u64,
        /// What is so.
        matched: u64,
    },
    /// The call itself makes no sense.
    #[error("{message}")]
    Invalid {
        /// Stable: `filter.unknown`, `filter.empty`, `filter.too_broad`, `reason.missing`.
        code: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// A lane, or rows in it, are locked by somebody else.
    #[error("{0}")]
    Busy(String),
    /// A call for many events ended early; what it did is kept.
    #[error("{why}; {changed} of {matched} events were changed: repeat the call for the others")]
    Unfinished {
        /// Why.
        why: String,
        /// How many matched.
        matched: u64,
        /// How many were changed.
        changed: u64,
    },
    /// The backlog has not been counted yet.
    #[error("the backlog has not been counted yet")]
    NotCounted,
    /// The source was away, or said no.
    #[error("the legacy database: {}", crate::disposition::told(.0))]
    Database(#[from] sqlx::Error),
}

/// What operators' calls answer.
pub type Result<T, E = OperatorError> = std::result::Result<T, E>;

impl Operator {
    /// Connects when it is first used. It tells what a reader may see: see [`Operator::seen_by`]. Whether `init` was run there is for [`connect::installation`] to tell.
    pub fn new(config: &Config) -> Result<Operator, connect::ConnectError> {
        let pool = connect::source(config, CONNECTIONS)?;
        let names = Names::new(&config.legacy, config.relay.lanes);
        let deadline = config.relay.deadline;
        Ok(Operator {
            source: Source::new(
                pool,
                names,
                deadline,
                config.retention.processed.is_zero(),
                None,
                config.legacy.prepared_statements,
            ),
            entities: Arc::new(config.entities.clone()),
            batch: config.relay.batch,
            deadline,
            rules: config.redact.clone(),
            sight: config.redact.for_readers(),
            relay: Arc::default(),
            waits_for: Arc::default(),
        })
    }

    /// The same, but what it tells is what this role may see.
    pub fn seen_by(&self, role: Role) -> Operator {
        let sight = match role {
            Role::Admin => self.rules.for_admins(),
            Role::Read => self.rules.for_readers(),
        };
        Operator { sight, ..self.clone() }
    }

    /// What the one who asks may see.
    pub fn sight(&self) -> &Sight {
        &self.sight
    }

    /// From now on, all clones ask this relay what is stopped and what is mapped. Only the first one counts.
    pub fn attach(&self, relay: Arc<Shared>) {
        let _ = self.relay.set(relay);
    }

    /// Notes what a relay that is starting waits for.
    pub fn wait_for(&self, what: String) {
        *self.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
    }

    /// What the relay of this process waits for, until it is there.
    pub fn waits_for(&self) -> Option<String> {
        self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The relay of this process, once it is there.
    pub fn relay(&self) -> Option<&Arc<Shared>> {
        self.relay.get()
    }

    /// The pool that operators share.
    pub fn pool(&self) -> &PgPool {
        &self.source.pool
    }

    fn names(&self) -> &Names {
        &self.source.names
    }

    fn entities(&self) -> Arc<Vec<Entity>> {
        self.relay().map_or_else(|| self.entities.clone(), |relay| relay.entities())
    }

    /// Aggregate types that some entity takes, in order.
    pub fn mapped(&self) -> Vec<String> {
        let kinds: BTreeSet<String> = self.entities().iter().map(|entity| entity.aggregate_type.clone()).collect();
        kinds.into_iter().collect()
    }

    /// Aggregate types whose failed events hold nobody back: every entity lets them pass.
    fn passing(&self) -> Vec<String> {
        let entities = self.entities();
        let of = |failure: OnFailure| {
            let entities = entities.iter().filter(move |e| e.on_failure == failure);
            entities.map(|e| e.aggregate_type.clone()).collect::<BTreeSet<_>>()
        };
        of(OnFailure::Pass).difference(&of(OnFailure::Hold)).cloned().collect()
    }

    fn lanes(&self) -> impl Iterator<Item = Lane> + use<> {
        (0..i32::from(self.names().lanes())).map(Lane)
    }

    fn limits(at_most: Duration) -> Limits {
        Limits { deadline: at_most, lock: Duration::from_secs(2) }
    }

    /// A transaction that only reads, planned for the values at hand, and pinned to the order that indexes give.
    async fn reading(&self, at_most: Duration) -> sqlx::Result<Session> {
        let limits = Self::limits(at_most);
        let script = format!(
            "SET TRANSACTION READ ONLY; {} SET LOCAL statement_timeout = {}; SET LOCAL plan_cache_mode = force_custom_plan;",
            limits.sql(),
            at_most.as_millis()
        );
        Session::begin(self.pool(), &script).await.map(|(session, _)| session)
    }
}

/// For lists: the order that is asked for is an index's own.
const ORDERED: &str = "SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off";

fn count(row: &PgRow, column: &str) -> sqlx::Result<u64> {
    use sqlx::Row as _;
    row.try_get::<i64, _>(column).map(i64::unsigned_abs)
}

/// Every statement of `sql/operator`, as it is sent for this outbox; for a test that prepares them all.
pub fn statements(names: &Names) -> Vec<(&'static str, String)> {
    let plain = [
        ("backlog", include_str!("../../sql/operator/backlog.sql")),
        ("event_id", include_str!("../../sql/operator/event_id.sql")),
        ("attempts", include_str!("../../sql/operator/attempts.sql")),
        ("neighbours", include_str!("../../sql/operator/neighbours.sql")),
        ("failures", include_str!("../../sql/operator/failures.sql")),
        ("newer_applied", include_str!("../../sql/operator/newer_applied.sql")),
        ("audit_insert", include_str!("../../sql/operator/audit_insert.sql")),
        ("audit_add", include_str!("../../sql/operator/audit_add.sql")),
        ("audit_done", include_str!("../../sql/operator/audit_done.sql")),
        ("audits", include_str!("../../sql/operator/audits.sql")),
        ("pause", include_str!("../../sql/operator/pause.sql")),
        ("resume", include_str!("../../sql/operator/resume.sql")),
        ("paused", include_str!("../../sql/operator/paused.sql")),
        ("divergent", include_str!("../../sql/operator/divergent.sql")),
        ("lane_holders", include_str!("../../sql/operator/lane_holders.sql")),
        ("alerts", include_str!("../../sql/operator/alerts.sql")),
        ("alert_begin", include_str!("../../sql/operator/alert_begin.sql")),
        ("alert_again", include_str!("../../sql/operator/alert_again.sql")),
        ("alert_told", include_str!("../../sql/operator/alert_told.sql")),
        ("alert_over", include_str!("../../sql/operator/alert_over.sql")),
        ("alert_release", include_str!("../../sql/operator/alert_release.sql")),
        ("alert_seen", include_str!("../../sql/operator/alert_seen.sql")),
        ("alert_adopt", include_str!("../../sql/operator/alert_adopt.sql")),
        ("alert_forget", include_str!("../../sql/operator/alert_forget.sql")),
        ("history_write", include_str!("../../sql/operator/history_write.sql")),
        ("history_read", include_str!("../../sql/operator/history_read.sql")),
        ("history_forget", include_str!("../../sql/operator/history_forget.sql")),
    ];
    let mut all: Vec<_> = plain.into_iter().map(|(name, file)| (name, names.render(file))).collect();
    all.extend(events::statements(names));
    all
}
