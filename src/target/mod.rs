//! Everything that is said to the target: the database that events are applied to.
//!
//! A [`TargetLane`] is a lane whose row this process has locked there; what it applies takes effect with its commit, together
//! with the log's entry: both, or neither. An entry is appended only onto the newest one, and only with a higher token, so a
//! worker that was overtaken takes no effect. Does not know the source: that its events may be applied is the caller's to prove.

mod backfill;
mod compare;
mod job;
mod lanes;
mod repair;
mod report;
mod statements;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::{PgArguments, PgPool, PgRow, Postgres};
use sqlx::query::{Query, QueryScalar};
use uuid::Uuid;

pub use self::backfill::{Copied, CopyId, HandingOut, LeftRow, Page, Reason};
pub use self::compare::{Found, Looked, Shipped};
pub use self::job::{Job, JobId, Progress};
pub(crate) use self::lanes::{LaneEntry, TargetLanes};
pub use self::repair::{Repair, RepairedLast, RepairedRow};
pub use self::report::{History, KeptReport, ReportId, Verified, Which};
pub use self::statements::{EVENTS, Events, OverRows, Prepared, Rows};
use crate::event::{Aggregate, BatchKey, Event, EventId, Identity, Lane, Token};
use crate::session::{self, Limits, Named, Own, Session};
use crate::source::{ForgottenBatch, ForgottenEvent, Heads, heads};
use crate::sql::{ident, literal, render};

/// The target, as one process sees it, for one source. Cheap to clone: each locked lane has one.
#[derive(Clone)]
pub struct Target {
    /// Connections for batches.
    pub pool: PgPool,
    /// The outbox that feeds it.
    pub source_id: Uuid,
    /// The relay's schema, unquoted.
    pub schema: Arc<str>,
    /// The schema that mappings and handlers see besides `pg_catalog`.
    pub search_path: Arc<str>,
    limits: Limits,
    /// Whether statements may be sent under a name.
    prepared: bool,
    statements: Arc<Statements>,
}

/// The rendered files, once.
struct Statements {
    lock_lane: String,
    read_lane: String,
    append: String,
    heads: String,
    lock_lanes: String,
    read_lanes: String,
    append_lanes: String,
}

/// A locked lane of the target.
pub struct TargetLane {
    target: Target,
    session: Session,
    /// Which.
    pub lane: Lane,
    /// The newest entry of its log, and the source that it names.
    pub newest: Option<(BatchKey, Identity)>,
    /// Who this server is.
    pub identity: Identity,
}

impl Target {
    /// Prepares the statements.
    pub fn new(
        pool: PgPool,
        schema: &str,
        search_path: &str,
        source_id: Uuid,
        deadline: Duration,
        prepared: bool,
    ) -> Target {
        let names = names(schema, source_id);
        Target {
            pool,
            source_id,
            schema: schema.into(),
            search_path: search_path.into(),
            prepared,
            // Below the deadline, or a lane that is locked for ever would look like a server that hangs.
            limits: Limits { deadline, lock: Duration::from_secs(1).min(deadline / 3) },
            statements: Arc::new(Statements {
                lock_lane: render(include_str!("../../sql/target/lock_lane.sql"), &names),
                read_lane: render(include_str!("../../sql/target/read_lane.sql"), &names),
                append: render(include_str!("../../sql/target/append.sql"), &names),
                heads: render(include_str!("../../sql/target/heads.sql"), &names),
                lock_lanes: render(include_str!("../../sql/target/lock_lanes.sql"), &names),
                read_lanes: render(include_str!("../../sql/target/read_lanes.sql"), &names),
                append_lanes: render(include_str!("../../sql/target/append_lanes.sql"), &names),
            }),
        }
    }

    fn query<'q>(&self, sql: &str) -> Query<'q, Postgres, PgArguments> {
        crate::sql::query(sql, self.prepared)
    }

    fn query_scalar<'q, T>(&self, sql: &str) -> QueryScalar<'q, Postgres, T, PgArguments>
    where
        (T,): for<'r> sqlx::FromRow<'r, PgRow>,
    {
        crate::sql::query_scalar(sql, self.prepared)
    }

    /// What holds for whatever is applied here: `search_path` is `pg_catalog` and the configured schema, so that a mapping means the same
    /// whoever runs it. And it is the relay's own work, no news to whoever captures the changes of these tables.
    pub fn settings_sql(&self) -> String {
        format!(
            "SET LOCAL search_path = pg_catalog, {}; SET LOCAL outbox_relay.applying = 'on';",
            ident(&self.search_path)
        )
    }

    /// Locks the lane's row, then, in a later statement, reads the newest entry; leaves a savepoint behind that
    /// [`TargetLane::undo`] goes back to. One round trip. Waits for the lock a moment only, for a source transaction is open.
    pub async fn lock_lane(&self, lane: Lane) -> sqlx::Result<Option<TargetLane>> {
        let number = [("lane_number", lane.to_string())];
        // Below the deadline: a statement that takes too long must be heard of, or the same batch is tried for ever.
        let limit = (self.limits.deadline / 3).as_millis().max(1);
        let limits = format!("SET LOCAL lock_timeout = {limit}; SET LOCAL statement_timeout = {limit};");
        let script = self.opening(&self.statements.lock_lane, &self.statements.read_lane, &number, &limits);
        let (session, rows) = Session::begin(&self.pool, &script).await?;
        let [locked, read] = rows.as_slice() else {
            session.rollback().await;
            return Ok(None);
        };
        let _: i32 = locked.try_get("locked")?;
        let newest = BatchKey::of_row(read)?
            .map(|key| Ok::<_, sqlx::Error>((key, Identity(read.try_get("peer")?))))
            .transpose()?;
        Ok(Some(TargetLane {
            lane,
            newest,
            identity: Identity(read.try_get("identity")?),
            session,
            target: self.clone(),
        }))
    }

    /// Locks, reads, and then sets what is to hold for what applies events: before the savepoint, or an undo would take it back.
    fn opening(&self, lock: &str, read: &str, lanes: &[(&str, String)], limits: &str) -> String {
        format!(
            "{} {} {limits} {} {} SAVEPOINT relay;",
            self.limits.sql(),
            render(lock, lanes),
            render(read, lanes),
            self.settings_sql(),
        )
    }

    /// Asks one question without a lock.
    async fn ask(&self, question: Query<'_, Postgres, PgArguments>) -> sqlx::Result<Vec<PgRow>> {
        session::ask(&self.pool, self.limits, "", question).await
    }

    /// How long a round trip takes.
    pub async fn round_trip(&self) -> sqlx::Result<Duration> {
        session::round_trip(&self.pool, self.limits.deadline).await
    }

    /// Whether there are constraints that may be checked as late as the commit.
    pub async fn has_deferrable_constraints(&self) -> sqlx::Result<bool> {
        let rows = self.ask(self.query("SELECT FROM pg_constraint WHERE condeferrable LIMIT 1")).await?;
        Ok(!rows.is_empty())
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

    /// A connection of one's own; see [`Own`].
    pub fn own(&self) -> Own {
        Own::new(self.pool.clone())
    }

    /// A transaction in which no other process of this source is at the same: for what only one of them is to begin.
    async fn alone(&self) -> sqlx::Result<Session> {
        let lock = self.render("SELECT FROM {relay}.source WHERE source_id = {source} FOR NO KEY UPDATE");
        let (session, _) = Session::begin(&self.pool, &format!("{} {lock};", self.limits.sql())).await?;
        Ok(session)
    }

    /// Whether a new connection can be had; see [`crate::connect::reach`].
    pub async fn reach(&self) -> sqlx::Result<()> {
        crate::connect::reach(&self.pool).await
    }

    /// Ends whoever has held this lane's lock for longer than `limit`; see the source's function of the same name.
    pub async fn end_holder(&self, lane: Lane, limit: Duration) -> sqlx::Result<Vec<i32>> {
        let sql = self.render(include_str!("../../sql/target/end_holder.sql"));
        let rows = self.ask(self.query(&sql).bind(lane).bind(limit.as_secs_f64())).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// The oldest entries of every lane, as far as they are older than `age`; at most `entries` of a lane.
    pub async fn old_entries(&self, age: Duration, entries: i64) -> sqlx::Result<Vec<(Lane, BatchKey)>> {
        let sql = self.render(include_str!("../../sql/target/old_entries.sql"));
        let question = self.query(&sql).bind(self.source_id).bind(age.as_secs_f64()).bind(entries);
        let rows = self.ask(question).await?;
        rows.iter()
            .map(|row| {
                Ok((row.try_get("lane")?, BatchKey { token: row.try_get("token")?, nonce: row.try_get("nonce")? }))
            })
            .collect()
    }

    /// Deletes what is older in the lanes' logs than these batches, which both sides have had for long; they stay.
    pub async fn forget_entries(&self, below: &[(Lane, Token)]) -> sqlx::Result<()> {
        let sql = self.render(include_str!("../../sql/target/forget_entries.sql"));
        let (lanes, tokens): (Vec<Lane>, Vec<Token>) = below.iter().copied().unzip();
        self.ask(self.query(&sql).bind(self.source_id).bind(lanes).bind(tokens)).await.map(drop)
    }

    fn render(&self, file: &str) -> String {
        render(file, &names(&self.schema, self.source_id))
    }
}

/// What is put into the files of `sql/target`.
pub fn names(schema: &str, source_id: Uuid) -> Vec<(&'static str, String)> {
    vec![
        ("relay", ident(schema)),
        ("source", format!("{}::uuid", literal(&source_id.to_string()))),
        ("identity", Identity::SQL.to_owned()),
        ("job_columns", job::COLUMNS.to_owned()),
    ]
}

/// What applies events within a transaction, whichever lanes it has locked.
pub struct Hand<'s> {
    session: &'s mut Session,
    prepared: bool,
}

impl Hand<'_> {
    /// Runs one statement that reads `event` over these events.
    pub async fn run(&mut self, statement: &Prepared, events: &Events<'_>) -> sqlx::Result<u64> {
        statement.execute(self.session.connection(), events, self.prepared).await
    }

    /// Checks deferred constraints now, as the commit would, and defers them again.
    pub async fn check_constraints(&mut self) -> sqlx::Result<()> {
        self.session.script("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED").await.map(drop)
    }

    /// Undoes what was done since the savepoint.
    pub async fn undo(&mut self) -> sqlx::Result<()> {
        self.session.script("ROLLBACK TO SAVEPOINT relay").await.map(drop)
    }
}

impl TargetLane {
    /// The token of the newest entry but `n`, `None` if the log is not that long.
    pub async fn token_of(&mut self, n: i64) -> sqlx::Result<Option<Token>> {
        let sql = self.target.render(include_str!("../../sql/target/token_of.sql"));
        self.target
            .query_scalar(&sql)
            .bind(self.target.source_id)
            .bind(self.lane)
            .bind(n)
            .fetch_optional(self.session.connection())
            .await
    }

    /// The lane's log from a token on, newest first.
    pub async fn log(&mut self, from: Token) -> sqlx::Result<Vec<(BatchKey, DateTime<Utc>)>> {
        let sql = self.target.render(include_str!("../../sql/target/log_entries.sql"));
        let rows = self
            .target
            .query(&sql)
            .bind(self.target.source_id)
            .bind(self.lane)
            .bind(from)
            .fetch_all(self.session.connection())
            .await?;
        rows.iter()
            .map(|row| {
                let key = BatchKey { token: Token(row.try_get("token")?), nonce: row.try_get("nonce")? };
                Ok((key, row.try_get("applied_at")?))
            })
            .collect()
    }

    /// The mark: the newest token forgotten on purpose, and the time of its entry.
    pub async fn mark(&mut self) -> sqlx::Result<Option<(Token, DateTime<Utc>)>> {
        let sql = self.target.render(include_str!("../../sql/target/mark.sql"));
        let row = self
            .target
            .query(&sql)
            .bind(self.target.source_id)
            .bind(self.lane)
            .fetch_optional(self.session.connection())
            .await?;
        row.map(|row| Ok((Token(row.try_get("token")?), row.try_get("until")?))).transpose()
    }

    /// One entry of the log, whole.
    pub async fn log_entry(&mut self, token: Token) -> sqlx::Result<ForgottenBatch> {
        let sql = self.target.render(include_str!("../../sql/target/log_entry.sql"));
        let row = self
            .target
            .query(&sql)
            .bind(self.target.source_id)
            .bind(self.lane)
            .bind(token)
            .fetch_one(self.session.connection())
            .await?;
        let ids: Vec<i64> = row.try_get("ids")?;
        let event_ids: Vec<Uuid> = row.try_get("event_ids")?;
        let kinds: Vec<String> = row.try_get("aggregate_types")?;
        let aggregates: Vec<String> = row.try_get("aggregate_ids")?;
        let given_up: Vec<bool> = row.try_get("given_up")?;
        let events = ids
            .into_iter()
            .zip(event_ids)
            .zip(kinds.into_iter().zip(aggregates))
            .zip(given_up)
            .map(|(((id, event_id), (kind, aggregate)), given_up)| ForgottenEvent {
                id: EventId(id),
                event_id,
                aggregate: Aggregate { kind, id: aggregate },
                given_up,
            })
            .collect();
        Ok(ForgottenBatch { key: BatchKey { token, nonce: row.try_get("nonce")? }, events })
    }

    /// For statements that apply events here.
    pub fn hand(&mut self) -> Hand<'_> {
        Hand { session: &mut self.session, prepared: self.target.prepared }
    }

    /// Runs one statement that reads `event` over these events.
    pub async fn run(&mut self, statement: &Prepared, events: &Events<'_>) -> sqlx::Result<u64> {
        self.hand().run(statement, events).await
    }

    /// Runs one statement over rows of a legacy table.
    pub async fn run_over(&mut self, statement: &OverRows, rows: &Rows<'_>) -> sqlx::Result<()> {
        let prepared = self.target.prepared;
        statement.execute(self.session.connection(), rows, prepared).await
    }

    /// Checks deferred constraints now, as the commit would, and defers them again.
    pub async fn check_constraints(&mut self) -> sqlx::Result<()> {
        self.hand().check_constraints().await
    }

    /// From now on each statement gets a small part of the deadline only: to find one event among thousands by halves, some
    /// ten statements run into it.
    pub async fn isolate(&mut self) -> sqlx::Result<()> {
        let limit = (self.target.limits.deadline / 32).as_millis().max(1);
        let sql = format!(
            "RELEASE SAVEPOINT relay; SET LOCAL lock_timeout = {limit}; SET LOCAL statement_timeout = {limit}; SAVEPOINT relay"
        );
        self.session.script(&sql).await.map(drop)
    }

    /// Keeps what was done since the last `keep` or `undo`.
    pub async fn keep(&mut self) -> sqlx::Result<()> {
        self.session.script("RELEASE SAVEPOINT relay; SAVEPOINT relay").await.map(drop)
    }

    /// Undoes what was done since the last `keep` or `undo`.
    pub async fn undo(&mut self) -> sqlx::Result<()> {
        self.hand().undo().await
    }

    /// Appends the batch's entry. False: the parent is not the newest any more, or the token is too old.
    pub async fn append(
        &mut self,
        key: BatchKey,
        peer: &Identity,
        applied: &[&Event],
        given_up: &[&Event],
    ) -> sqlx::Result<bool> {
        let parent = self.newest.as_ref().map(|(key, _)| *key);
        let all = || applied.iter().chain(given_up);
        let outcome = std::iter::repeat_n(false, applied.len()).chain(std::iter::repeat_n(true, given_up.len()));
        let done = self
            .target
            .query(&self.target.statements.append)
            .bind(self.target.source_id)
            .bind(self.lane)
            .bind(key.token)
            .bind(key.nonce)
            .bind(parent.map(|p| p.token))
            .bind(parent.map(|p| p.nonce))
            .bind(&peer.0)
            .bind(all().map(|e| e.id).collect::<Vec<_>>())
            .bind(all().map(|e| e.event_id).collect::<Vec<_>>())
            .bind(all().map(|e| e.aggregate.kind.as_str()).collect::<Vec<_>>())
            .bind(all().map(|e| e.aggregate.id.as_str()).collect::<Vec<_>>())
            .bind(outcome.collect::<Vec<_>>())
            .execute(self.session.connection())
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// `COMMIT`: from here on the batch has taken effect. An error tells nothing about whether it has.
    pub async fn commit(self) -> sqlx::Result<()> {
        self.session.commit().await
    }

    /// `ROLLBACK`.
    pub async fn abandon(self) {
        self.session.rollback().await;
    }
}
