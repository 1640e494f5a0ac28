//! What retention deletes on the source, a bounded step at a time.
//!
//! Guarantees: processed events go together with the log's entries that name them, in the lane's transaction, and leave a mark
//! there: healing knows what it cannot know any more. Of what is old enough, and what the target has, one entry of a lane always
//! stays: both sides remember it, whichever goes back.

use std::time::Duration;

use sqlx::Row;

use super::{Source, SourceLane};
use crate::event::{BatchKey, Lane, Token};

/// What one step deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retired {
    /// Processed events.
    pub events: u64,
    /// Entries of the log.
    pub entries: u64,
}

impl Source {
    /// Lanes whose log has entries older than `age` that can be deleted. Without a lock.
    pub async fn retirable(&self, age: Duration) -> sqlx::Result<Vec<Lane>> {
        let sql = self.names.render(include_str!("../../sql/source/retirable.sql"));
        let rows = self.ask("", self.query(&sql).bind(age.as_secs_f64())).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// Of these batches of the target, the newest of each lane that was settled here longer than `age` ago.
    pub async fn settled_long_ago(
        &self,
        batches: &[(Lane, BatchKey)],
        age: Duration,
    ) -> sqlx::Result<Vec<(Lane, Token)>> {
        let sql = self.names.render(include_str!("../../sql/source/settled_long_ago.sql"));
        let question = self
            .query(&sql)
            .bind(batches.iter().map(|(lane, _)| *lane).collect::<Vec<_>>())
            .bind(batches.iter().map(|(_, key)| key.token).collect::<Vec<_>>())
            .bind(batches.iter().map(|(_, key)| key.nonce).collect::<Vec<_>>())
            .bind(age.as_secs_f64());
        let rows = self.ask("", question).await?;
        rows.iter().map(|row| Ok((row.try_get("lane")?, row.try_get("token")?))).collect()
    }

    /// Deletes at most `at_most` events that were skipped longer than `age` ago; how many. They stand in no log.
    pub async fn retire_skipped(&self, age: Duration, at_most: i64) -> sqlx::Result<u64> {
        let sql = self.names.render(include_str!("../../sql/source/retire_skipped.sql"));
        let rows = self.ask("", self.query(&sql).bind(age.as_secs_f64()).bind(at_most)).await?;
        Ok(rows.len() as u64)
    }
}

impl SourceLane {
    /// Deletes this lane's oldest entries, at most `entries` and none younger than `age`, with their events. `there`: the newest
    /// entry that the target was seen to have; what it does not have may have to be put back.
    pub async fn retire(&mut self, age: Duration, entries: i64, events: i64, there: BatchKey) -> sqlx::Result<Retired> {
        let sql = self.source.names.render(include_str!("../../sql/source/retire.sql"));
        let retire = self.source.query(&sql).bind(self.lane).bind(age.as_secs_f64()).bind(entries);
        let retire = retire.bind(there.token).bind(there.nonce).bind(events);
        let row = retire.fetch_one(self.session.connection()).await?;
        let count = |column| row.try_get::<i64, _>(column).map(i64::unsigned_abs);
        Ok(Retired { events: count("events")?, entries: count("entries")? })
    }
}
