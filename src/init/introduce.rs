//! Introduces the two databases to each other: each keeps the other's identity, and both logs begin with the same entry.
//!
//! Lane by lane, under both lane locks, as a batch would: so it may be done while relays run. The target is written first; an
//! interrupted run finds its half there and goes on. The source's installation names its target last.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};
use uuid::Uuid;

use super::{Existing, InitError};
use crate::config::Config;
use crate::event::Identity;
use crate::session::{Limits, Session};
use crate::source::Names;
use crate::sql::{ident, query, query_scalar, render};
use crate::target;

/// What the operator says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Choices {
    /// The target has lost everything: all retained events are put back.
    pub target_is_empty: bool,
    /// The target is right as it is: the log starts anew.
    pub target_is_current: bool,
    /// A database was moved on purpose.
    pub moved: bool,
    /// What becomes of the rows that an adopted table brings.
    pub existing: Option<Existing>,
}

impl Choices {
    /// Whether the logs begin anew.
    pub(super) fn restarts(&self) -> bool {
        self.target_is_empty || self.target_is_current
    }
}

pub(super) fn lost_target() -> String {
    "this outbox has fed another new database than this one. A second service gets its own outbox and its own [legacy] schema. If the \
     new database was lost or exchanged, say what it has:\n\
     \x20 --target-is-empty      nothing: all retained events are applied again\n\
     \x20 --target-is-current    all that was processed: the log starts anew, and verification is due"
        .to_owned()
}

fn moved(side: &str, known: &str, found: &str) -> String {
    format!(
        "the {side} database is {found}, but the log was written against {known}. If it was moved on purpose, and the other one is gone: --moved"
    )
}

/// One pair of databases.
struct Pair<'a> {
    source: &'a PgPool,
    target: &'a PgPool,
    names: Names,
    target_names: Vec<(&'static str, String)>,
    source_identity: String,
    target_identity: String,
    choices: Choices,
}

pub(super) async fn introduce(
    config: &Config,
    source: &PgPool,
    target: &PgPool,
    choices: Choices,
) -> Result<(), InitError> {
    let names = Names::new(&config.legacy, config.relay.lanes);
    let sql = format!("SELECT target_id FROM {}.installation", ident(&config.new.schema));
    let target_id: Uuid = one(target, &sql).await.map_err(InitError::new)?.try_get(0).map_err(InitError::new)?;
    let sql = names.render("SELECT source_id, target_id FROM {relay}.installation");
    let row = one(source, &sql).await.map_err(InitError::legacy)?;
    let source_id: Uuid = row.try_get("source_id").map_err(InitError::legacy)?;
    let known: Option<Uuid> = row.try_get("target_id").map_err(InitError::legacy)?;
    if known.is_some_and(|known| known != target_id) && !choices.restarts() {
        return Err(InitError::Refused(lost_target()));
    }
    let pair = Pair {
        source,
        target,
        target_names: target::names(&config.new.schema, source_id),
        names,
        source_identity: identity(source).await.map_err(InitError::legacy)?,
        target_identity: identity(target).await.map_err(InitError::new)?,
        choices,
    };
    pair.refuse_other_lanes().await?;
    for lane in 0..i32::from(config.relay.lanes) {
        pair.lane(lane).await?;
    }
    if known != Some(target_id) {
        let sql = pair.names.render("UPDATE {relay}.installation SET target_id = $1");
        let (mut session, _) = Session::begin(source, "").await.map_err(InitError::legacy)?;
        query(&sql, false).bind(target_id).execute(session.connection()).await.map_err(InitError::legacy)?;
        session.commit().await.map_err(InitError::legacy)?;
    }
    Ok(())
}

/// In a transaction, as every statement: behind a pooler, parsing and running would reach different servers otherwise.
async fn one(pool: &PgPool, sql: &str) -> sqlx::Result<PgRow> {
    let (mut session, _) = Session::begin(pool, "").await?;
    let row = query(sql, false).fetch_one(session.connection()).await;
    session.rollback().await;
    row
}

async fn identity(pool: &PgPool) -> sqlx::Result<String> {
    one(pool, &format!("SELECT {}", Identity::SQL)).await?.try_get(0)
}

/// Waits for a worker's batch to end, no longer.
const LIMITS: Limits = Limits { deadline: Duration::from_secs(600), lock: Duration::from_secs(60) };

#[derive(Debug, Clone)]
struct Entry {
    token: i64,
    nonce: Uuid,
    peer: String,
    is_first: bool,
}

/// What to do about a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Decision {
    /// Both logs have a batch in common, and name the right databases.
    Nothing,
    /// A new first entry on both sides.
    Begin,
    /// An interrupted run wrote the target's half, or the source lost its log: begin where the target's does.
    Follow { token: i64, nonce: Uuid },
    /// The same logs, with new names.
    Rename,
}

impl Pair<'_> {
    async fn refuse_other_lanes(&self) -> Result<(), InitError> {
        let sql = render("SELECT max(lanes) FROM {relay}.source WHERE source_id = {source}", &self.target_names);
        let found: Option<i32> = one(self.target, &sql).await.and_then(|row| row.try_get(0)).map_err(InitError::new)?;
        match found {
            Some(found) if found != i32::from(self.names.lanes()) => Err(InitError::Refused(format!(
                "the new database knows this outbox with {found} lanes, and that is fixed: set lanes = {found}"
            ))),
            _ => Ok(()),
        }
    }

    async fn lane(&self, lane: i32) -> Result<(), InitError> {
        let lock = self
            .names
            .render(&format!("{} SELECT lane FROM {{relay}}.lane WHERE lane = {lane} FOR UPDATE;", LIMITS.sql()));
        let (mut source, _) = Session::begin(self.source, &lock).await.map_err(InitError::legacy)?;
        let add = render(include_str!("../../sql/target/add_lane.sql"), &self.target_names);
        let (mut target, _) = Session::begin(self.target, &LIMITS.sql()).await.map_err(InitError::new)?;
        query(&add, false)
            .bind(lane)
            .bind(i32::from(self.names.lanes()))
            .execute(target.connection())
            .await
            .map_err(InitError::new)?;
        let lock = format!("SELECT lane FROM {{relay}}.lane WHERE source_id = {{source}} AND lane = {lane} FOR UPDATE");
        target.script(&render(&lock, &self.target_names)).await.map_err(InitError::new)?;
        // Only now, in statements of their own: what is read is as of after the locks.
        let columns = "token, nonce, peer, parent_token IS NULL AS is_first";
        let sql = self
            .names
            .render(&format!("SELECT {columns} FROM {{relay}}.batch_log WHERE lane = $1 ORDER BY token DESC"));
        let on_source = entries(&mut source, &sql, lane).await.map_err(InitError::legacy)?;
        let sql = format!(
            "SELECT {columns} FROM {{relay}}.batch_log WHERE source_id = {{source}} AND lane = $1 ORDER BY token DESC"
        );
        let on_target = entries(&mut target, &render(&sql, &self.target_names), lane).await.map_err(InitError::new)?;
        match self.decide(&on_source, &on_target).map_err(InitError::Refused)? {
            Decision::Nothing => {
                source.rollback().await;
                target.rollback().await;
                Ok(())
            }
            Decision::Rename => self.rename(lane, source, target).await,
            Decision::Follow { token, nonce } => {
                target.commit().await.map_err(InitError::new)?;
                self.write_source(lane, source, token, nonce).await
            }
            Decision::Begin => {
                let newest = [&on_source, &on_target].iter().filter_map(|log| log.first().map(|e| e.token)).max();
                let token = self.draw_above(&mut source, newest).await.map_err(InitError::legacy)?;
                let nonce = Uuid::new_v4();
                let sql = render(include_str!("../../sql/target/first_entry.sql"), &self.target_names);
                query(&sql, false)
                    .bind(lane)
                    .bind(token)
                    .bind(nonce)
                    .bind(&self.source_identity)
                    .execute(target.connection())
                    .await
                    .map_err(InitError::new)?;
                target.commit().await.map_err(InitError::new)?;
                self.write_source(lane, source, token, nonce).await
            }
        }
    }

    fn decide(&self, on_source: &[Entry], on_target: &[Entry]) -> Result<Decision, String> {
        if self.choices.restarts() {
            return Ok(Decision::Begin);
        }
        match (on_source.first(), on_target.first()) {
            (None, None) => Ok(Decision::Begin),
            (Some(_), None) => Err(lost_target()),
            (None, Some(_)) => match on_target.iter().rfind(|entry| entry.is_first) {
                // From the very first entry on, all that the target applied since is settled by healing.
                Some(first) if on_target.last().is_some_and(|last| last.token == first.token) => {
                    Ok(Decision::Follow { token: first.token, nonce: first.nonce })
                }
                _ => Err("the legacy database has lost its log, and the new one has forgotten how its own began: what took effect \
                          must be verified, then: --target-is-current"
                    .to_owned()),
            },
            (Some(source), Some(target)) => {
                let common = |entry: &&Entry| on_target.iter().any(|t| t.token == entry.token && t.nonce == entry.nonce);
                if !on_source.iter().any(|entry| common(&entry)) {
                    return Err(lost_target());
                }
                let right = source.peer == self.target_identity && target.peer == self.source_identity;
                match (right, self.choices.moved) {
                    (true, false) => Ok(Decision::Nothing),
                    (_, true) => Ok(Decision::Rename),
                    (false, false) if source.peer != self.target_identity => {
                        Err(moved("new", &source.peer, &self.target_identity))
                    }
                    (false, false) => Err(moved("legacy", &target.peer, &self.source_identity)),
                }
            }
        }
    }

    /// Above every token that either side knows: one of them may have gone back in time.
    async fn draw_above(&self, source: &mut Session, newest: Option<i64>) -> sqlx::Result<i64> {
        let sql = self.names.render("SELECT nextval({tokens})::bigint");
        let drawn: i64 = query_scalar(&sql, false).fetch_one(source.connection()).await?;
        let gap = newest.map_or(0, |newest| newest - drawn + 1);
        if gap <= 0 {
            return Ok(drawn);
        }
        let sql = self.names.render(include_str!("../../sql/source/draw.sql"));
        query_scalar(&sql, false).bind(gap).fetch_one(source.connection()).await
    }

    /// The source's half of the first entry. Its position is the lowest of all, so the next scan begins at the very start.
    async fn write_source(&self, lane: i32, mut source: Session, token: i64, nonce: Uuid) -> Result<(), InitError> {
        let mut statements = vec![
            "DELETE FROM {relay}.batch_log WHERE lane = $1",
            "DELETE FROM {relay}.put_back WHERE lane = $1",
            "DELETE FROM {relay}.forgotten WHERE lane = $1",
        ];
        if self.choices.target_is_empty {
            statements.push("DELETE FROM {relay}.divergent WHERE lane = $1");
            statements.push(
                "UPDATE {outbox} SET {status} = {pending}, {processed_at} = NULL WHERE {lane} = $1 AND {status} = {processed}",
            );
        }
        for sql in statements {
            let sql = self.names.render(sql);
            query(&sql, false).bind(lane).execute(source.connection()).await.map_err(InitError::legacy)?;
        }
        let sql = self.names.render(include_str!("../../sql/source/first_entry.sql"));
        query(&sql, false)
            .bind(lane)
            .bind(token)
            .bind(nonce)
            .bind(&self.target_identity)
            .execute(source.connection())
            .await
            .map_err(InitError::legacy)?;
        source.commit().await.map_err(InitError::legacy)
    }

    /// All entries: putting the newest back leaves the one before it.
    async fn rename(&self, lane: i32, mut source: Session, mut target: Session) -> Result<(), InitError> {
        let sql = "UPDATE {relay}.batch_log SET peer = $2 WHERE source_id = {source} AND lane = $1 AND peer <> $2";
        query(&render(sql, &self.target_names), false)
            .bind(lane)
            .bind(&self.source_identity)
            .execute(target.connection())
            .await
            .map_err(InitError::new)?;
        target.commit().await.map_err(InitError::new)?;
        let sql = self.names.render("UPDATE {relay}.batch_log SET peer = $2 WHERE lane = $1 AND peer <> $2");
        query(&sql, false)
            .bind(lane)
            .bind(&self.target_identity)
            .execute(source.connection())
            .await
            .map_err(InitError::legacy)?;
        source.commit().await.map_err(InitError::legacy)
    }
}

async fn entries(session: &mut Session, sql: &str, lane: i32) -> sqlx::Result<Vec<Entry>> {
    let rows = query(sql, false).bind(lane).fetch_all(session.connection()).await?;
    rows.iter()
        .map(|row| {
            Ok(Entry {
                token: row.try_get("token")?,
                nonce: row.try_get("nonce")?,
                peer: row.try_get("peer")?,
                is_first: row.try_get("is_first")?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_pair_of_logs_has_its_decision() {
        let pool = PgPool::connect_lazy("postgres://nobody@localhost/nothing").unwrap_or_else(|e| panic!("{e}"));
        let entry = |token: i64, peer: &str| Entry {
            token,
            nonce: Uuid::from_u128(token as u128),
            peer: peer.into(),
            is_first: token == 1,
        };
        let decide = |source: &[Entry], target: &[Entry], choices: Choices| {
            let config =
                Config::for_databases("postgres://a@b/c", "postgres://a@b/d").unwrap_or_else(|e| panic!("{e}"));
            let pair = Pair {
                source: &pool,
                target: &pool,
                names: Names::new(&config.legacy, 1),
                target_names: Vec::new(),
                source_identity: "s".into(),
                target_identity: "t".into(),
                choices,
            };
            pair.decide(source, target)
        };
        let none = Choices::default();
        let is_moved = Choices { moved: true, ..none };
        let is_empty = Choices { target_is_empty: true, ..none };
        assert_eq!(decide(&[], &[], none), Ok(Decision::Begin));
        assert_eq!(decide(&[], &[entry(1, "s")], none), Ok(Decision::Follow { token: 1, nonce: Uuid::from_u128(1) }));
        // Never the newest: what the target applied since would be applied again.
        assert_eq!(
            decide(&[], &[entry(2, "s"), entry(1, "s")], none),
            Ok(Decision::Follow { token: 1, nonce: Uuid::from_u128(1) })
        );
        assert!(decide(&[], &[entry(2, "s")], none).is_err());
        assert!(decide(&[entry(2, "t")], &[], none).is_err());
        assert!(decide(&[entry(2, "t")], &[entry(3, "s")], none).is_err());
        assert!(decide(&[entry(2, "t")], &[], is_moved).is_err());
        assert_eq!(decide(&[entry(2, "t")], &[], is_empty), Ok(Decision::Begin));
        assert_eq!(decide(&[entry(2, "t")], &[entry(3, "s"), entry(2, "s")], none), Ok(Decision::Nothing));
        assert!(decide(&[entry(2, "elsewhere")], &[entry(2, "s")], none).is_err());
        assert_eq!(decide(&[entry(2, "elsewhere")], &[entry(2, "s")], is_moved), Ok(Decision::Rename));
    }
}
