//! Everything that is said to the source: the database that holds the outbox.
//!
//! Callers see functions named for what they do. A [`Source`] only looks; a [`SourceLane`] is a lane whose row this process has
//! locked: only it can claim, settle and heal, so nothing can be done to a lane that is not leased. What it does:
//!
//! - `lane`: the lease itself
//! - `lanes`: several leases at once, where nothing is the matter
//! - `scan`, `claim`: where a scan starts, and what it takes
//! - `settle`: what became of a batch
//! - `heal`: the same after an accident
//! - `change`: what operators and the sweep do
//! - `legacy`: the rows of the tables beside it
//! - `compare`: checksums of those rows, and what a look at single ones needs
//! - `retain`: what retention deletes

mod audit;
mod change;
mod claim;
mod compare;
mod heal;
mod lane;
mod lanes;
mod legacy;
mod names;
mod resync;
mod retain;
mod scan;
mod settle;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::{PgArguments, PgPool, PgRow, Postgres};
use sqlx::query::{Query, QueryScalar};

pub use self::audit::AuditId;
pub use self::change::Swept;
pub use self::claim::{Claim, Recheck};
pub use self::compare::Range;
pub(crate) use self::compare::{SAMPLED_ROWS, percentage};
pub use self::heal::{ForgottenBatch, ForgottenEvent, PutBack, Settled};
pub use self::lane::{Entry, SourceLane};
pub(crate) use self::lanes::{Disturbed, Known, Part, SourceLanes, lanes_of};
pub(crate) use self::legacy::NO_AGGREGATE;
pub use self::legacy::{
    Bringing, FirstWaiting, KeyAt, KeyQueue, KeyTrouble, Lanes, Legacy, LegacyRow, OpenAggregates, PageKeys, RowKey,
    Why,
};
pub use self::names::Names;
pub use self::retain::Retired;
pub use self::scan::Scan;
pub use self::settle::{FailureRecord, SettleError, Settlement, Unapplied};
use crate::event::{Aggregate, BatchKey, Lane};
use crate::session::{self, Limits, Named, Own};
use crate::sql::literal;

/// The source, as one process sees it. Cheap to clone: each leased lane has one.
#[derive(Clone)]
pub struct Source {
    /// Connections for batches; the admin API and the CLI use a pool of their own.
    pub pool: PgPool,
    /// What things are called here.
    pub names: Arc<Names>,
    limits: Limits,
    /// Whether statements may be sent under a name.
    prepared: bool,
    delete_on_settle: bool,
    /// The identity sequence, if it may be used to find a start position.
    sequence: Option<Arc<str>>,
    statements: Arc<Statements>,
}

/// The rendered files, once.
struct Statements {
    claim: String,
    claim_due: String,
    recheck: String,
    pending_ids: String,
    settle_processed: String,
    settle_other: String,
    append: String,
    release: String,
    record_failures: String,
    look: String,
    heads: String,
    lock_lane: String,
    read_lane: String,
    lock_lanes: String,
    read_lanes: String,
    claim_lanes: String,
    disturbed_lanes: String,
    append_lanes: String,
}

/// A lane with something to do, seen without a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// Where.
    pub lane: Lane,
    /// A pending event.
    pub pending: bool,
    /// It lies below the lane's position: only a scan from the start finds it.
    pub below: bool,
    /// A retry whose time has come.
    pub due: bool,
}

fn sighting(row: &PgRow) -> sqlx::Result<Sighting> {
    Ok(Sighting {
        lane: row.try_get("lane")?,
        pending: row.try_get("pending")?,
        below: row.try_get::<Option<bool>, _>("below")?.unwrap_or(false),
        due: row.try_get("due")?,
    })
}

impl Source {
    /// Prepares the statements. `sequence` is the outbox's identity sequence, if its cache is 1.
    pub fn new(
        pool: PgPool,
        names: Names,
        deadline: Duration,
        delete_on_settle: bool,
        sequence: Option<String>,
        prepared: bool,
    ) -> Source {
        let limits = Limits { deadline, lock: Duration::from_secs(2).min(deadline / 3) };
        let statements = Statements {
            claim: names.render(include_str!("../../sql/source/claim.sql")),
            claim_due: names.render(include_str!("../../sql/source/claim_due.sql")),
            recheck: names.render(include_str!("../../sql/source/recheck.sql")),
            pending_ids: names.render(include_str!("../../sql/source/pending_ids.sql")),
            settle_processed: if delete_on_settle {
                names.render(include_str!("../../sql/source/settle_deleted.sql"))
            } else {
                names.render(include_str!("../../sql/source/settle_processed.sql"))
            },
            settle_other: names.render(include_str!("../../sql/source/settle_other.sql")),
            append: names.render(include_str!("../../sql/source/append.sql")),
            release: names.render(include_str!("../../sql/source/release.sql")),
            record_failures: names.render(include_str!("../../sql/source/record_failures.sql")),
            look: names.render(include_str!("../../sql/source/look.sql")),
            heads: names.render(include_str!("../../sql/source/heads.sql")),
            lock_lane: names.render(include_str!("../../sql/source/lock_lane.sql")),
            read_lane: names.render(include_str!("../../sql/source/read_lane.sql")),
            lock_lanes: names.render(include_str!("../../sql/source/lock_lanes.sql")),
            read_lanes: names.render(include_str!("../../sql/source/read_lanes.sql")),
            claim_lanes: names.render(include_str!("../../sql/source/claim_lanes.sql")),
            disturbed_lanes: names.render(include_str!("../../sql/source/disturbed_lanes.sql")),
            append_lanes: names.render(include_str!("../../sql/source/append_lanes.sql")),
        };
        Source {
            pool,
            names: Arc::new(names),
            limits,
            prepared,
            delete_on_settle,
            sequence: sequence.map(Arc::from),
            statements: Arc::new(statements),
        }
    }

    pub(crate) fn query<'q>(&self, sql: &str) -> Query<'q, Postgres, PgArguments> {
        crate::sql::query(sql, self.prepared)
    }

    pub(crate) fn query_scalar<'q, T>(&self, sql: &str) -> QueryScalar<'q, Postgres, T, PgArguments>
    where
        (T,): for<'r> sqlx::FromRow<'r, PgRow>,
    {
        crate::sql::query_scalar(sql, self.prepared)
    }

    /// Asks one question without a lock.
    async fn ask(&self, settings: &str, question: Query<'_, Postgres, PgArguments>) -> sqlx::Result<Vec<PgRow>> {
        session::ask(&self.pool, self.limits, settings, question).await
    }

    /// How long a round trip takes.
    pub async fn round_trip(&self) -> sqlx::Result<Duration> {
        session::round_trip(&self.pool, self.limits.deadline).await
    }

    /// A connection of one's own; see [`Own`].
    pub fn own(&self) -> Own {
        Own::new(self.pool.clone())
    }

    /// Lanes with work. `full` scans from the very start, for what lies below the lanes' positions; `due` looks for retries.
    pub async fn look(&self, stopped: &[String], full: bool, due: bool) -> sqlx::Result<Vec<Sighting>> {
        let question = self.query(&self.statements.look).bind(stopped).bind(full).bind(due).bind(None::<&[Lane]>);
        self.ask(PLANS, question).await?.iter().map(sighting).collect()
    }

    /// As [`Source::look`] not from the start, for whoever looks all the time: for pending events in these lanes, for retries in all.
    pub async fn look_again(
        &self,
        own: &mut Own,
        stopped: &[String],
        due: bool,
        lanes: &[Lane],
    ) -> sqlx::Result<Vec<Sighting>> {
        let stopped: Vec<String> = stopped.iter().map(|kind| literal(kind)).collect();
        let arguments = format!("(ARRAY[{}]::text[], false, {due}, {})", stopped.join(", "), Lane::list(lanes));
        let types = "(text[], boolean, boolean, int[])";
        let look = Named { types, sql: &self.statements.look, kept: self.prepared };
        own.execute(self.limits, PLANS, look, &arguments).await?.iter().map(sighting).collect()
    }

    /// The newest entry of every lane.
    pub async fn heads(&self) -> sqlx::Result<Heads> {
        heads(&session::ask_at_once(&self.pool, self.limits, "", &self.statements.heads).await?)
    }

    /// The same, for whoever asks all the time.
    pub async fn heads_again(&self, own: &mut Own) -> sqlx::Result<Heads> {
        let statement = Named { types: "", sql: &self.statements.heads, kept: self.prepared };
        heads(&own.execute(self.limits, "", statement, "").await?)
    }

    /// Lanes that have a held event.
    pub async fn holding(&self) -> sqlx::Result<Vec<Lane>> {
        let sql = self.names.render(include_str!("../../sql/source/holding.sql"));
        let rows = self.ask(PLANS, self.query(&sql)).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// What keeps a drain from being over.
    pub async fn remaining(&self, stopped: &[String]) -> sqlx::Result<Remaining> {
        let sql = self.names.render(include_str!("../../sql/source/remaining.sql"));
        let rows = self.ask("", self.query(&sql).bind(stopped)).await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        Ok(Remaining {
            pending: row.try_get("pending")?,
            retry: row.try_get("retry")?,
            stopped: row.try_get("stopped")?,
            failed: row.try_get("failed")?,
            held: row.try_get("held")?,
        })
    }

    /// How busy the server is.
    pub async fn load(&self) -> sqlx::Result<Load> {
        let rows = self.ask("", self.query(include_str!("../../sql/source/load.sql"))).await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let lag: Option<f64> = row.try_get("replica_lag")?;
        Ok(Load {
            active: row.try_get("active")?,
            is_shown: row.try_get("is_shown")?,
            replica_lag: lag.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        })
    }

    /// Who has had rows of the outbox locked for a while, for people; `None` if nobody has.
    pub async fn row_lockers(&self) -> sqlx::Result<Option<String>> {
        let sql = self.names.render(include_str!("../../sql/source/row_lockers.sql"));
        let rows = self.ask("", self.query(&sql)).await?;
        rows.first().map_or(Ok(None), |row| row.try_get(0))
    }

    /// Ends whoever has held this lane's lock for longer than `limit`: a client that is frozen, or a host that died without a
    /// word. The same role may. Returns the process ids that were ended.
    pub async fn end_holder(&self, lane: Lane, limit: Duration) -> sqlx::Result<Vec<i32>> {
        let sql = self.names.render(include_str!("../../sql/source/end_holder.sql"));
        let rows = self.ask("", self.query(&sql).bind(lane).bind(limit.as_secs_f64())).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }
}

/// The newest entry of a log, lane by lane; `None`: it has none.
pub type Heads = HashMap<Lane, Option<BatchKey>>;

/// As `heads.sql` of either side answers.
pub(crate) fn heads(rows: &[PgRow]) -> sqlx::Result<Heads> {
    rows.iter().map(|row| Ok((row.try_get("lane")?, BatchKey::of_row(row)?))).collect()
}

/// The indexes give every order that the relay's statements need: no plan of theirs may sort or bitmap a lane's backlog.
const PLANS: &str = "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; \
                     SET LOCAL plan_cache_mode = force_generic_plan;";

/// How busy the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Sessions that run something, the relay's own aside.
    pub active: i64,
    /// How far the slowest replica is behind; `None`: there is none.
    pub replica_lag: Option<Duration>,
    /// Whether the role is shown what others do. Else both are too low.
    pub is_shown: bool,
}

/// Whether any event is left in these states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the design's words")]
pub struct Remaining {
    pub pending: bool,
    pub retry: bool,
    pub stopped: bool,
    pub failed: bool,
    pub held: bool,
}

fn json_list(row: &PgRow, column: &str) -> sqlx::Result<Vec<String>> {
    let text: Option<String> = row.try_get(column)?;
    text.map_or_else(|| Ok(Vec::new()), |text| crate::sql::from_json(&text))
}

fn aggregate(row: &PgRow) -> sqlx::Result<Aggregate> {
    Ok(Aggregate { kind: row.try_get("aggregate_type")?, id: row.try_get("aggregate_id")? })
}
