//! What retention deletes on the source, a bounded step at a time.
//!
//! Guarantees: processed events go together with the log's entries that name them, in the lane's transaction, and leave a mark
//! there: healing knows what it cannot know any more. Of each lane's log stays what the target may go back to: all that is young,
//! and the newest entry before that.

use std::time::Duration;

use sqlx::Row;

use super::{Source, SourceLane};
use crate::event::{BatchKey, Lane};

/// What one step deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retired {
    /// Processed events.
    pub events: u64,
    /// Entries of the log.
    pub entries: u64,
}

impl Source {
    /// Lanes whose log has entries that may go, when older than `age`. Without a lock.
    pub async fn retirable(&self, age: Duration) -> sqlx::Result<Vec<Lane>> {
        let sql = self.names.render(include_str!("../../sql/source/retirable.sql"));
        let rows = self.ask("", self.query(&sql).bind(age.as_secs_f64())).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// Deletes at most `at_most` events that were skipped longer than `age` ago; how many. They stand in no log.
    pub async fn retire_skipped(&self, age: Duration, at_most: i64) -> sqlx::Result<u64> {
        let sql = self.names.render(include_str!("../../sql/source/retire_skipped.sql"));
        let rows = self.ask("", self.query(&sql).bind(age.as_secs_f64()).bind(at_most)).await?;
        Ok(rows.len() as u64)
    }
}

impl SourceLane {
    /// Deletes this lane's oldest entries, at most `entries` and none younger than `age`, with their events. `on_target`: an entry
    /// that the target is known to have; older ones only.
    pub async fn retire(&mut self, age: Duration, entries: i64, on_target: BatchKey) -> sqlx::Result<Retired> {
        let sql = self.source.names.render(include_str!("../../sql/source/retire.sql"));
        let retire = self.source.query(&sql).bind(self.lane).bind(age.as_secs_f64()).bind(entries);
        let retire = retire.bind(on_target.token).bind(on_target.nonce);
        let row = retire.fetch_one(self.session.connection()).await?;
        let count = |column| row.try_get::<i64, _>(column).map(i64::unsigned_abs);
        Ok(Retired { events: count("events")?, entries: count("entries")? })
    }
}
