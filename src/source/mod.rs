//! Everything that is said to the source: the database that holds the outbox.
//!
//! Callers see functions named for what they do. A [`SourceLane`] is a lane whose row this process has locked: only it can
//! claim, settle and heal, so nothing can be done to a lane that is not leased.

mod change;
mod heal;
mod names;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::{PgArguments, PgPool, PgRow, Postgres};
use sqlx::query::{Query, QueryScalar};
use uuid::Uuid;

pub use self::change::Swept;
pub(crate) use self::change::is_lock_timeout;
pub use self::heal::{ForgottenBatch, ForgottenEvent, PutBack, Settled};
pub use self::names::Names;
use crate::event::{Aggregate, BatchKey, Event, EventId, Identity, Lane, Status, Token};
use crate::session::{Limits, Session, within};

/// The source, as one process sees it.
#[derive(Clone)]
pub struct Source {
    /// Connections for batches; the admin API and the CLI use a pool of their own.
    pub pool: PgPool,
    /// What things are called here.
    pub names: Names,
    limits: Limits,
    /// Whether statements may be sent under a name.
    prepared: bool,
    delete_on_settle: bool,
    /// The identity sequence, if it may be used to find a start position.
    sequence: Option<String>,
    statements: std::sync::Arc<Statements>,
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

/// The newest entry of the source's log.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Token and nonce.
    pub key: BatchKey,
    /// The target that it was settled against.
    pub peer: Identity,
    scan: Scan,
}

/// From where the lane's next scan may start. Kept in the log, so that a failover takes it back together with the events.
#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    /// All ids below are decided, and none is pending …
    pub position: i64,
    /// … but events of these aggregate types, which were stopped.
    pub passed: Vec<String>,
    mark: Option<Mark>,
}

/// What was seen of the writers at some moment: once these holders are gone, every id up to `sequence` is decided.
#[derive(Debug, Clone, PartialEq)]
struct Mark {
    sequence: i64,
    holders: Vec<String>,
    age: Duration,
}

impl Mark {
    /// Which of its holders may still commit, by what is open now. A transaction that was prepared meanwhile has another name
    /// (`:-1/<xid>`, without a process): as long as a holder of the mark had a process, an unknown prepared one may be it.
    fn still_open(&self, now: &[String]) -> Vec<String> {
        let is_prepared = |holder: &str| holder.starts_with(':');
        let may_have_turned = self.holders.iter().any(|holder| !is_prepared(holder));
        now.iter().filter(|h| self.holders.contains(h) || (may_have_turned && is_prepared(h))).cloned().collect()
    }
}

/// A locked lane: the lease.
pub struct SourceLane {
    source: Source,
    session: Session,
    /// Which.
    pub lane: Lane,
    /// Drawn for this batch.
    pub token: Token,
    /// The newest entry of the log.
    pub newest: Option<Entry>,
    /// Who this server is.
    pub identity: Identity,
    /// Paused aggregate types; an empty string pauses all.
    pub paused: Vec<String>,
    put_back: Option<i64>,
}

/// What was claimed.
#[derive(Debug, Default)]
pub struct Claim {
    /// In order of their ids.
    pub events: Vec<Event>,
    /// Whether the lane may have more pending events than these.
    pub more: bool,
    /// Where the scan began.
    from: i64,
    /// Nothing was found, and nobody has locked what could have been: all below `decided` is settled or stopped.
    nothing_left: bool,
    /// Where the previous entry would have had it begin.
    position_before: i64,
    /// Aggregate types left out.
    stopped: Vec<String>,
    /// Every id below was committed or rolled back before the scan began.
    decided: i64,
    mark: Option<Mark>,
}

/// What the second look found.
#[derive(Debug, Default)]
pub struct Recheck {
    /// Pending events of the scanned range that somebody else had locked.
    pub unlocked: Vec<(Aggregate, EventId)>,
    /// The lowest event of an aggregate that is in retry, held or failed.
    pub blocked: HashMap<Aggregate, (EventId, Status)>,
}

/// What becomes of a claimed event that was not applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Unapplied {
    /// Which.
    pub id: EventId,
    /// `Retry`, `Held` or `Failed`.
    pub status: Status,
    /// Attempts counted against it, this one included where it counts.
    pub attempts: i32,
    /// Until the next attempt, for `Retry`.
    pub delay: Option<Duration>,
    /// One line for `last_error`.
    pub error: Option<String>,
    /// What to remember of the failure; `None` for `Held`.
    pub failure: Option<FailureRecord>,
}

/// A row of `failure` and of the history of attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureRecord {
    /// The entity that refused it.
    pub entity: String,
    /// Its aggregate type.
    pub aggregate_type: String,
    /// Stable across restarts: a hash of entity, code, constraint, column and message pattern.
    pub cause: String,
    /// The disposition's name.
    pub disposition: &'static str,
    /// SQLSTATE, or our own code.
    pub code: String,
    /// Postgres' primary message.
    pub message: String,
    /// Constraint, if the error names one.
    pub constraint: Option<String>,
    /// Column, if the error names one.
    pub column: Option<String>,
    /// Postgres' DETAIL: personal data, for the API under redaction only.
    pub detail: Option<String>,
    /// The place in the user's file, `mappings/user.sql:4:3`.
    pub place: Option<String>,
}

/// All that a batch settles.
#[derive(Debug, Default)]
pub struct Settlement {
    /// Applied.
    pub processed: Vec<EventId>,
    /// Retry, held, failed.
    pub unapplied: Vec<Unapplied>,
    /// Aggregates whose held events may be free now.
    pub freed: Vec<Aggregate>,
    /// The lowest id of the scanned range that stays pending.
    pub left_lowest: Option<EventId>,
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
        };
        Source {
            pool,
            names,
            limits,
            prepared,
            delete_on_settle,
            sequence,
            statements: std::sync::Arc::new(statements),
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

    /// Lanes with work. `full` scans from the very start, for what lies below the lanes' positions; `due` looks for retries.
    pub async fn look(&self, stopped: &[String], full: bool, due: bool) -> sqlx::Result<Vec<Sighting>> {
        within(self.limits.deadline, self.look_now(stopped, full, due)).await
    }

    async fn look_now(&self, stopped: &[String], full: bool, due: bool) -> sqlx::Result<Vec<Sighting>> {
        let (mut session, _) = Session::begin(&self.pool, &format!("{} {PLANS}", self.limits.sql())).await?;
        let rows = self
            .query(&self.statements.look)
            .bind(stopped)
            .bind(full)
            .bind(due)
            .fetch_all(session.connection())
            .await?;
        session.commit().await?;
        rows.iter()
            .map(|row| {
                Ok(Sighting {
                    lane: row.try_get("lane")?,
                    pending: row.try_get("pending")?,
                    below: row.try_get::<Option<bool>, _>("below")?.unwrap_or(false),
                    due: row.try_get("due")?,
                })
            })
            .collect()
    }

    /// The newest entry of every lane.
    pub async fn heads(&self) -> sqlx::Result<HashMap<Lane, Option<BatchKey>>> {
        within(self.limits.deadline, self.heads_now()).await
    }

    async fn heads_now(&self) -> sqlx::Result<HashMap<Lane, Option<BatchKey>>> {
        let (mut session, _) = Session::begin(&self.pool, &self.limits.sql()).await?;
        let rows = self.query(&self.statements.heads).fetch_all(session.connection()).await?;
        session.commit().await?;
        rows.iter().map(|row| Ok((row.try_get("lane")?, optional_key(row)?))).collect()
    }

    /// Takes the lease of a lane, or `None` if another worker has it. One round trip.
    pub async fn lock_lane(&self, lane: Lane) -> sqlx::Result<Option<SourceLane>> {
        self.lock_lane_for(lane, self.limits, &self.statements.lock_lane).await
    }

    async fn lock_lane_for(&self, lane: Lane, limits: Limits, lock: &str) -> sqlx::Result<Option<SourceLane>> {
        let number = [("lane_number", lane.to_string())];
        let script = format!(
            "{} {PLANS} {} {}",
            limits.sql(),
            crate::sql::render(lock, &number),
            crate::sql::render(&self.statements.read_lane, &number)
        );
        let (session, rows) = Session::begin(&self.pool, &script).await?;
        let [locked, read] = rows.as_slice() else {
            session.rollback().await;
            return Ok(None);
        };
        let _: i32 = locked.try_get("locked")?;
        let newest = optional_key(read)?.map(|key| entry(read, key)).transpose()?;
        Ok(Some(SourceLane {
            lane,
            token: Token(read.try_get("drawn")?),
            newest,
            identity: Identity(read.try_get("identity")?),
            paused: json_list(read, "paused")?,
            put_back: read.try_get("put_back")?,
            session,
            source: self.clone(),
        }))
    }

    /// The time limits of a short transaction, as `SET LOCAL …;`.
    pub fn limits_sql(&self) -> String {
        self.limits.sql()
    }

    /// Whether the lane has a held event. Without a lock.
    pub async fn holds_any(&self, lane: Lane) -> sqlx::Result<bool> {
        let sql = self.names.render("SELECT EXISTS (SELECT FROM {outbox} WHERE {lane} = $1 AND {status} = {held} AND {status} IN ({retry}, {held}, {failed}))");
        let (mut session, _) = Session::begin(&self.pool, &format!("{} {PLANS}", self.limits.sql())).await?;
        let found = self.query_scalar(&sql).bind(lane).fetch_one(session.connection()).await?;
        session.commit().await?;
        Ok(found)
    }

    /// What keeps a drain from being over.
    pub async fn remaining(&self, stopped: &[String]) -> sqlx::Result<Remaining> {
        let sql = self.names.render(include_str!("../../sql/source/remaining.sql"));
        let (mut session, _) = Session::begin(&self.pool, &self.limits.sql()).await?;
        let row = self.query(&sql).bind(stopped).fetch_one(session.connection()).await?;
        session.commit().await?;
        Ok(Remaining {
            pending: row.try_get("pending")?,
            retry: row.try_get("retry")?,
            stopped: row.try_get("stopped")?,
            failed: row.try_get("failed")?,
            held: row.try_get("held")?,
        })
    }

    /// Who has had rows of the outbox locked for a while, for people; `None` if nobody has.
    pub async fn row_lockers(&self) -> sqlx::Result<Option<String>> {
        let sql = self.names.render(include_str!("../../sql/source/row_lockers.sql"));
        within(self.limits.deadline, async {
            let (mut session, _) = Session::begin(&self.pool, &self.limits.sql()).await?;
            let who = self.query_scalar(&sql).fetch_one(session.connection()).await?;
            session.commit().await?;
            Ok(who)
        })
        .await
    }

    /// Ends whoever has held this lane's lock for longer than `limit`: a client that is frozen, or a host that died without a
    /// word. The same role may. Returns the process ids that were ended.
    pub async fn end_holder(&self, lane: Lane, limit: Duration) -> sqlx::Result<Vec<i32>> {
        let sql = self.names.render(include_str!("../../sql/source/end_holder.sql"));
        within(self.limits.deadline, async {
            let (mut session, _) = Session::begin(&self.pool, &self.limits.sql()).await?;
            let ended = self.query_scalar(&sql).bind(lane).bind(limit.as_secs_f64());
            let ended = ended.fetch_all(session.connection()).await?;
            session.commit().await?;
            Ok(ended)
        })
        .await
    }
}

/// The indexes give every order that the relay's statements need: no plan of theirs may sort or bitmap a lane's backlog.
const PLANS: &str = "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; \
                     SET LOCAL plan_cache_mode = force_generic_plan;";

impl SourceLane {
    /// Whether everything is paused.
    pub fn all_paused(&self) -> bool {
        self.paused.iter().any(String::is_empty)
    }

    /// Where a scan that leaves these types out may start.
    fn start(&self, stopped: &[String], full: bool) -> i64 {
        match &self.newest {
            Some(entry) if !full && entry.scan.passed.iter().all(|kind| stopped.contains(kind)) => {
                entry.scan.position.min(self.put_back.unwrap_or(i64::MAX))
            }
            _ => i64::MIN,
        }
    }

    /// Up to where every id is committed or rolled back. Asked before the scan: what an open transaction commits between the
    /// scan and the question would be passed by.
    async fn decided(&mut self) -> sqlx::Result<(i64, Option<Mark>)> {
        let before = self.newest.as_ref().map(|entry| entry.scan.clone());
        let Some(sequence) = self.source.sequence.clone() else { return Ok((i64::MIN, None)) };
        let decided = before.as_ref().map_or(i64::MIN, |scan| scan.position);
        let mark = before.and_then(|scan| scan.mark);
        if mark.as_ref().is_some_and(|mark| mark.age < MARK_EVERY) {
            return Ok((decided, mark));
        }
        // A sequence that was just set has not given out its value yet.
        let sql = format!("SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM {sequence}");
        let last: i64 = self.source.query_scalar(&sql).fetch_one(self.session.connection()).await?;
        let sql = self.source.names.render(include_str!("../../sql/source/holders.sql"));
        let holders: Option<Vec<String>> = self.source.query_scalar(&sql).fetch_one(self.session.connection()).await?;
        let holders = holders.unwrap_or_default();
        let fresh = Mark { sequence: last, holders, age: Duration::ZERO };
        let Some(mark) = mark else { return Ok((decided, Some(fresh))) };
        let holders = mark.still_open(&fresh.holders);
        Ok(if holders.is_empty() {
            (decided.max(mark.sequence.saturating_add(1)), Some(fresh))
        } else {
            (decided, Some(Mark { holders, ..mark }))
        })
    }

    /// Locks the oldest pending events, and the retries whose time has come if `due`. At most `events`, and about `bytes`.
    pub async fn claim(
        &mut self,
        stopped: &[String],
        full: bool,
        due: bool,
        events: u32,
        bytes: u64,
    ) -> sqlx::Result<Claim> {
        let (decided, mark) = self.decided().await?;
        let from = self.start(stopped, full);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let rows = self
            .source
            .query(&self.source.statements.claim)
            .bind(self.lane)
            .bind(from)
            .bind(stopped)
            .bind(i64::from(events))
            .bind(bytes)
            .fetch_all(self.session.connection())
            .await?;
        let locked: i64 = rows.first().map(|row| row.try_get("locked")).transpose()?.unwrap_or(0);
        let mut claimed = rows.iter().map(|row| event(row, Status::Pending)).collect::<sqlx::Result<Vec<_>>>()?;
        let all = locked < i64::from(events) && rows.len() as i64 == locked;
        let bound = if all { i64::MAX } else { claimed.last().map_or(i64::MAX, |e| e.id.0) };
        if due {
            let used: u64 = claimed.iter().map(|e| e.payload.len() as u64).sum();
            let room = bytes.saturating_sub(i64::try_from(used).unwrap_or(i64::MAX)).max(1);
            let rows = self
                .source
                .query(&self.source.statements.claim_due)
                .bind(self.lane)
                .bind(stopped)
                .bind(i64::from(events))
                .bind(room)
                .bind(bound)
                .fetch_all(self.session.connection())
                .await?;
            for row in &rows {
                claimed.push(event(row, Status::Retry)?);
            }
            claimed.sort_by_key(|e| e.id);
        }
        let position_before = self.newest.as_ref().map_or(i64::MIN, |entry| entry.scan.position);
        Ok(Claim {
            events: claimed,
            more: !all,
            from,
            nothing_left: false,
            position_before,
            stopped: stopped.to_vec(),
            decided,
            mark,
        })
    }

    /// Whether a claim that found nothing can move the lane's start past what it walked over: a crowd of stopped events, which
    /// every look would walk over again while nothing else in the lane is settled. Only if nobody has locked a row there.
    pub async fn nothing_left(&mut self, claim: &mut Claim) -> sqlx::Result<bool> {
        if !claim.events.is_empty() || claim.decided <= claim.from.saturating_add(CROWD) {
            return Ok(false);
        }
        let rows = self
            .source
            .query(&self.source.statements.pending_ids)
            .bind(self.lane)
            .bind(claim.from)
            .bind(claim.decided.saturating_sub(1))
            .bind(&claim.stopped)
            .fetch_all(self.session.connection())
            .await?;
        claim.nothing_left = rows.is_empty();
        Ok(claim.nothing_left)
    }

    /// Reads again what the claim may have missed. `pass`: aggregate types whose failed events hold nobody back.
    pub async fn recheck(&mut self, claim: &Claim, pass: &[String]) -> sqlx::Result<Recheck> {
        let mut kinds = Vec::new();
        let mut ids = Vec::new();
        let mut seen = HashSet::new();
        for event in &claim.events {
            if seen.insert(&event.aggregate) {
                kinds.push(event.aggregate.kind.as_str());
                ids.push(event.aggregate.id.as_str());
            }
        }
        let pending = claim.events.iter().filter(|e| e.was == Status::Pending).count() as i64;
        let due: Vec<EventId> = claim.events.iter().filter(|e| e.was == Status::Retry).map(|e| e.id).collect();
        let mut highest = claim.events.last().map_or(i64::MIN, |e| e.id.0);
        // Retries alone: the position stays where it was, above what this scan walked again because it was put back or is no
        // longer stopped. Is that there, but locked by somebody?
        if pending == 0 {
            highest = highest.max(claim.position_before.saturating_sub(1));
        }
        let rows = self
            .source
            .query(&self.source.statements.recheck)
            .bind(self.lane)
            .bind(claim.from)
            .bind(highest)
            .bind(&claim.stopped)
            .bind(&kinds)
            .bind(&ids)
            .bind(pass)
            .bind(&due)
            .fetch_all(self.session.connection())
            .await?;
        let mut found = Recheck::default();
        let mut counted = 0;
        for row in &rows {
            let Some(id) = row.try_get::<Option<i64>, _>("id")? else {
                counted = row.try_get("pending")?;
                continue;
            };
            let word: String = row.try_get("status")?;
            let status = self.source.names.status(&word).unwrap_or(Status::Failed);
            found.blocked.insert(aggregate(row)?, (EventId(id), status));
        }
        if counted != pending {
            let claimed: HashSet<EventId> = claim.events.iter().map(|e| e.id).collect();
            let rows = self
                .source
                .query(&self.source.statements.pending_ids)
                .bind(self.lane)
                .bind(claim.from)
                .bind(highest)
                .bind(&claim.stopped)
                .fetch_all(self.session.connection())
                .await?;
            for row in &rows {
                let id = EventId(row.try_get("id")?);
                if !claimed.contains(&id) {
                    found.unlocked.push((aggregate(row)?, id));
                }
            }
        }
        Ok(found)
    }

    /// Marks what became of the batch, releases what was held behind it, and appends the entry; `COMMIT` is the caller's.
    /// Returns the source's clock.
    pub async fn settle(
        &mut self,
        key: BatchKey,
        peer: &Identity,
        claim: &Claim,
        settlement: &Settlement,
        pass: &[String],
        release_at_most: u32,
    ) -> Result<DateTime<Utc>, SettleError> {
        self.settle_events(settlement).await?;
        let released = self.release(&settlement.freed, pass, release_at_most).await?;
        let lowest = settlement.left_lowest.map(|id| id.0).into_iter().chain(released).min();
        let scan = next_scan(claim, lowest);
        let ids: Vec<EventId> = settlement.processed.clone();
        let at = self.append(key, peer, &ids, &scan).await?;
        if self.put_back.is_some() {
            self.source
                .query(&self.source.names.render("DELETE FROM {relay}.put_back WHERE lane = $1"))
                .bind(self.lane)
                .execute(self.session.connection())
                .await?;
        }
        Ok(at)
    }

    async fn settle_events(&mut self, settlement: &Settlement) -> Result<(), SettleError> {
        if !settlement.processed.is_empty() {
            let done = self
                .source
                .query(&self.source.statements.settle_processed)
                .bind(&settlement.processed)
                .execute(self.session.connection())
                .await?;
            if done.rows_affected() != settlement.processed.len() as u64 {
                return Err(SettleError::Vanished {
                    expected: settlement.processed.len() as u64,
                    found: done.rows_affected(),
                });
            }
        }
        if !settlement.unapplied.is_empty() {
            self.settle_unapplied(&settlement.unapplied).await?;
        }
        Ok(())
    }

    async fn settle_unapplied(&mut self, unapplied: &[Unapplied]) -> sqlx::Result<()> {
        self.source
            .query(&self.source.statements.settle_other)
            .bind(unapplied.iter().map(|u| u.id).collect::<Vec<_>>())
            .bind(unapplied.iter().map(|u| u.status.as_str()).collect::<Vec<_>>())
            .bind(unapplied.iter().map(|u| u.attempts).collect::<Vec<_>>())
            .bind(unapplied.iter().map(|u| u.delay.map(|d| d.as_secs_f64())).collect::<Vec<_>>())
            .bind(unapplied.iter().map(|u| u.error.as_deref()).collect::<Vec<_>>())
            .execute(self.session.connection())
            .await?;
        let failing: Vec<(&Unapplied, &FailureRecord)> =
            unapplied.iter().filter_map(|u| u.failure.as_ref().map(|f| (u, f))).collect();
        if failing.is_empty() {
            return Ok(());
        }
        self.source
            .query(&self.source.statements.record_failures)
            .bind(self.lane)
            .bind(failing.iter().map(|(u, _)| u.id).collect::<Vec<_>>())
            .bind(failing.iter().map(|(_, f)| f.entity.as_str()).collect::<Vec<_>>())
            .bind(failing.iter().map(|(_, f)| f.aggregate_type.as_str()).collect::<Vec<_>>())
            .bind(failing.iter().map(|(_, f)| f.cause.as_str()).collect::<Vec<_>>())
            .bind(failing.iter().map(|(_, f)| f.disposition).collect::<Vec<_>>())
            .bind(failing.iter().map(|(_, f)| f.code.as_str()).collect::<Vec<_>>())
            .bind(failing.iter().map(|(_, f)| f.message.as_str()).collect::<Vec<_>>())
            .bind(failing.iter().map(|(_, f)| f.constraint.as_deref()).collect::<Vec<_>>())
            .bind(failing.iter().map(|(_, f)| f.column.as_deref()).collect::<Vec<_>>())
            .bind(failing.iter().map(|(_, f)| f.detail.as_deref()).collect::<Vec<_>>())
            .bind(failing.iter().map(|(_, f)| f.place.as_deref()).collect::<Vec<_>>())
            .bind(failing.iter().map(|(u, _)| u.attempts).collect::<Vec<_>>())
            .execute(self.session.connection())
            .await?;
        Ok(())
    }

    /// Puts held events that nothing blocks any more back to pending, lowest first; returns the ids.
    async fn release(&mut self, aggregates: &[Aggregate], pass: &[String], at_most: u32) -> sqlx::Result<Vec<i64>> {
        if aggregates.is_empty() {
            return Ok(Vec::new());
        }
        let each = i64::from(at_most) / aggregates.len() as i64;
        self.source
            .query_scalar(&self.source.statements.release)
            .bind(self.lane)
            .bind(aggregates.iter().map(|a| a.kind.as_str()).collect::<Vec<_>>())
            .bind(aggregates.iter().map(|a| a.id.as_str()).collect::<Vec<_>>())
            .bind(each.max(1))
            .bind(pass)
            .fetch_all(self.session.connection())
            .await
    }

    async fn append(
        &mut self,
        key: BatchKey,
        peer: &Identity,
        ids: &[EventId],
        scan: &Scan,
    ) -> Result<DateTime<Utc>, SettleError> {
        let parent = self.newest.as_ref().map(|entry| entry.key);
        self.source
            .query_scalar(&self.source.statements.append)
            .bind(self.lane)
            .bind(key.token)
            .bind(key.nonce)
            .bind(parent.map(|p| p.token))
            .bind(parent.map(|p| p.nonce))
            .bind(&peer.0)
            .bind(ids)
            .bind(scan.position)
            .bind(&scan.passed)
            .bind(scan.mark.as_ref().map(|m| m.sequence))
            .bind(scan.mark.as_ref().map(|m| m.holders.clone()).unwrap_or_default())
            .bind(scan.mark.as_ref().map(|m| m.age.as_secs_f64()))
            .fetch_optional(self.session.connection())
            .await?
            .ok_or(SettleError::NotTheNewest)
    }

    /// Draws until the token lies above `above`: after a failover the sequence may have gone back. The whole gap in one statement.
    pub async fn draw_above(&mut self, above: Token) -> sqlx::Result<Token> {
        while self.token <= above {
            let gap = above.0 - self.token.0 + 1;
            let sql = self.source.names.render(
                "SELECT max(drawn)::bigint FROM (SELECT nextval('{relay}.token'::regclass) AS drawn FROM generate_series(1, $1)) d",
            );
            self.token = self.source.query_scalar(&sql).bind(gap).fetch_one(self.session.connection()).await?;
        }
        Ok(self.token)
    }

    /// The database that this is a lane of.
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// What things are called here.
    pub fn names(&self) -> &Names {
        &self.source.names
    }

    /// Gives back the attempts that these events were charged for somebody else's error. One that failed and is passed over
    /// (`pass`) stays failed: a later event of its aggregate may have been applied since.
    pub async fn give_back(&mut self, ids: &[EventId], pass: &[String]) -> sqlx::Result<()> {
        let sql = self.source.names.render(include_str!("../../sql/source/give_back.sql"));
        self.source.query(&sql).bind(ids).bind(pass).execute(self.session.connection()).await.map(drop)
    }

    /// `COMMIT`; gives the lease back.
    pub async fn commit(self) -> sqlx::Result<()> {
        self.session.commit().await
    }

    /// `ROLLBACK`; gives the lease back.
    pub async fn release_lease(self) {
        self.session.rollback().await;
    }
}

/// Where the next scan may start: below the lowest event that stays pending, below every id that an open transaction could
/// still commit, and not above what this scan reached.
fn next_scan(claim: &Claim, lowest: Option<i64>) -> Scan {
    let nowhere = if claim.nothing_left { claim.decided } else { claim.from.max(claim.position_before) };
    let last = claim.events.iter().rfind(|event| event.was == Status::Pending);
    let reached = last.map_or(nowhere, |event| event.id.0.saturating_add(1));
    let position = claim.decided.min(reached).min(lowest.unwrap_or(i64::MAX));
    Scan { position, passed: claim.stopped.clone(), mark: claim.mark.clone() }
}

/// Fewer ids than this are walked over in no time.
const CROWD: i64 = 1000;

/// How old a look at the writers' transactions must be before the next one.
const MARK_EVERY: Duration = Duration::from_millis(500);

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

/// Why a batch could not be settled.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The server said no.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// Another worker appended: this one was overtaken.
    #[error("the lane's log has a newer entry than the one this batch was built on")]
    NotTheNewest,
    /// Somebody deleted events that the relay had locked.
    #[error("{found} of {expected} applied events are still in the outbox: something else deletes from it")]
    Vanished {
        /// Applied events.
        expected: u64,
        /// Of these, in the outbox.
        found: u64,
    },
}

fn optional_key(row: &PgRow) -> sqlx::Result<Option<BatchKey>> {
    let token: Option<i64> = row.try_get("token")?;
    let Some(token) = token else { return Ok(None) };
    let nonce = match row.try_get::<Uuid, _>("nonce") {
        Ok(nonce) => nonce,
        Err(_) => parse_uuid(row.try_get("nonce")?)?,
    };
    Ok(Some(BatchKey { token: Token(token), nonce }))
}

fn parse_uuid(text: String) -> sqlx::Result<Uuid> {
    text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

fn entry(row: &PgRow, key: BatchKey) -> sqlx::Result<Entry> {
    let mark: Option<i64> = row.try_get("mark")?;
    let age: Option<f64> = row.try_get("mark_age")?;
    let holders = json_list(row, "mark_holders")?;
    let mark = mark.map(|sequence| Mark {
        sequence,
        holders,
        age: Duration::try_from_secs_f64(age.unwrap_or(0.0)).unwrap_or(Duration::ZERO),
    });
    Ok(Entry {
        key,
        peer: Identity(row.try_get("peer")?),
        scan: Scan { position: row.try_get("position")?, passed: json_list(row, "passed")?, mark },
    })
}

fn json_list(row: &PgRow, column: &str) -> sqlx::Result<Vec<String>> {
    let text: Option<String> = row.try_get(column)?;
    let Some(text) = text else { return Ok(Vec::new()) };
    serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

fn aggregate(row: &PgRow) -> sqlx::Result<Aggregate> {
    Ok(Aggregate { kind: row.try_get("aggregate_type")?, id: row.try_get("aggregate_id")? })
}

fn event(row: &PgRow, was: Status) -> sqlx::Result<Event> {
    Ok(Event {
        id: EventId(row.try_get("id")?),
        event_id: row.try_get("event_id")?,
        aggregate: aggregate(row)?,
        event_type: row.try_get("event_type")?,
        payload: row.try_get("payload")?,
        headers: row.try_get("headers")?,
        created_at: row.try_get("created_at")?,
        attempts: row.try_get("attempts")?,
        failing_since: row.try_get("failing_since")?,
        was,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_was_prepared_meanwhile_is_still_open() {
        let open = |marked: &[&str], now: &[&str]| {
            let holders = marked.iter().map(|h| (*h).to_owned()).collect();
            let now: Vec<String> = now.iter().map(|h| (*h).to_owned()).collect();
            Mark { sequence: 1, holders, age: Duration::ZERO }.still_open(&now).join(" ")
        };
        assert_eq!(open(&["7:3/1", "8:4/1"], &["8:4/1", "9:5/1"]), "8:4/1");
        assert_eq!(open(&["7:3/1"], &["7:3/2", "9:5/1"]), "");
        assert_eq!(open(&["7:3/1"], &[":-1/700"]), ":-1/700");
        // Those that were open at the mark have all ended or been prepared: what is prepared later is somebody else.
        assert_eq!(open(&[":-1/700"], &[":-1/701"]), "");
        assert_eq!(open(&[], &[":-1/701"]), "");
    }
}
