//! The lease: a lane whose row this process has locked.
//!
//! Guarantees: nobody else claims, settles or heals a lane while its [`SourceLane`] exists, and what is read through it is as of
//! after the lock. Does not guarantee that the server still sees it so: a worker that was frozen may have lost the lock without
//! a word. The proof is an answer in this transaction; the last word has the target, which refuses an old token.

use std::time::{Duration, Instant};

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::scan::{Mark, Scan};
use super::{PLANS, Source, json_list};
use crate::event::{BatchKey, Identity, Lane, Token};
use crate::session::{Limits, Session, is_lock_timeout};

/// The longest that one transaction waits for a lane: a server that shuts down should not find it waiting.
const WAIT_AT_ONCE: Duration = Duration::from_secs(5);

/// The newest entry of the source's log.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Token and nonce.
    pub key: BatchKey,
    /// The target that it was settled against.
    pub peer: Identity,
    pub(super) scan: Scan,
}

/// A locked lane: the lease.
pub struct SourceLane {
    pub(super) source: Source,
    pub(super) session: Session,
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
    pub(super) put_back: Option<i64>,
}

impl Source {
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
        let newest = BatchKey::of_row(read)?.map(|key| entry(read, key)).transpose()?;
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

    /// Takes the lease of a lane as soon as its holder gives it back, for an operator's change. `None`: not within `patience`.
    pub async fn wait_for_lane(&self, lane: Lane, patience: Duration) -> sqlx::Result<Option<SourceLane>> {
        let sql = self.names.render(include_str!("../../sql/source/wait_for_lane.sql"));
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let lock = left.min(WAIT_AT_ONCE).min(self.limits.deadline);
            match self.lock_lane_for(lane, Limits { lock, ..self.limits }, &sql).await {
                Ok(locked) => return Ok(locked),
                Err(error) if is_lock_timeout(&error) && !left.is_zero() => {}
                Err(error) if is_lock_timeout(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

impl SourceLane {
    /// Whether everything is paused.
    pub fn all_paused(&self) -> bool {
        self.paused.iter().any(String::is_empty)
    }

    /// Draws until the token lies above `above`: after a failover the sequence may have gone back. The whole gap in one statement.
    pub async fn draw_above(&mut self, above: Token) -> sqlx::Result<Token> {
        while self.token <= above {
            let gap = above.0 - self.token.0 + 1;
            let sql = self.source.names.render(include_str!("../../sql/source/draw.sql"));
            self.token = self.source.query_scalar(&sql).bind(gap).fetch_one(self.session.connection()).await?;
        }
        Ok(self.token)
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

pub(super) fn entry(row: &PgRow, key: BatchKey) -> sqlx::Result<Entry> {
    let mark: Option<i64> = row.try_get("mark")?;
    let age: Option<f64> = row.try_get("mark_age")?;
    let holders = json_list(row, "mark_holders")?;
    let age = Duration::try_from_secs_f64(age.unwrap_or(0.0)).unwrap_or(Duration::ZERO);
    let seen = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
    let mark = mark.map(|sequence| Mark { sequence, holders, seen });
    Ok(Entry {
        key,
        peer: Identity(row.try_get("peer")?),
        scan: Scan { position: row.try_get("position")?, passed: json_list(row, "passed")?, mark },
    })
}
