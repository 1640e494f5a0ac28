//! What operators do to a lane's events, and what the relay tidies up after hands that did it without telling.
//!
//! Guarantees: every function works in the transaction that locked the lane, and every event that it makes pending is announced
//! there, so that no scan that starts further on passes it by.

use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::SourceLane;
use crate::event::{Aggregate, BatchKey, EventId};

/// What a sweep did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Swept {
    /// Held events that are pending again.
    pub released: Vec<EventId>,
    /// Where the next sweep begins; `None`: this one came to the lane's end.
    pub next: Option<i64>,
}

impl SourceLane {
    /// The transaction that holds the lease, for what belongs into it: an audit row, another look at the events.
    pub(crate) fn transaction(&mut self) -> &mut PgConnection {
        self.session.connection()
    }

    /// Which of these events have a newer one of their aggregate among the batches that were settled after `since`. `None`: the
    /// log does not have that batch any more (it was healed), so nobody can tell by it.
    pub async fn newer_since(&mut self, ids: &[EventId], since: BatchKey) -> sqlx::Result<Option<Vec<EventId>>> {
        let sql = self.source.names.render(include_str!("../../sql/source/has_entry.sql"));
        let known = self.source.query(&sql).bind(self.lane).bind(since.token).bind(since.nonce);
        if known.fetch_optional(self.session.connection()).await?.is_none() {
            return Ok(None);
        }
        let sql = self.source.names.render(include_str!("../../sql/source/newer_since.sql"));
        let newer = self.source.query_scalar(&sql).bind(self.lane).bind(ids).bind(since.token);
        newer.fetch_all(self.session.connection()).await.map(Some)
    }

    /// Makes failed, waiting and skipped events pending, and processed ones if `force`. Those that changed.
    ///
    /// Nothing is decided here about order: an event that is behind another one that waits is held again when it is claimed.
    pub async fn replay(&mut self, ids: &[EventId], force: bool) -> sqlx::Result<Vec<EventId>> {
        let sql = self.source.names.render(include_str!("../../sql/source/replay.sql"));
        let changed: Vec<EventId> =
            self.source.query_scalar(&sql).bind(ids).bind(force).fetch_all(self.session.connection()).await?;
        self.forget_failures(&changed).await?;
        self.announce(&changed).await?;
        Ok(changed)
    }

    /// Passes failed and waiting events over, and releases what was held behind them: at most about `release_at_most` events,
    /// the relay releases the others as it goes on. Those that were passed over.
    pub async fn skip(&mut self, ids: &[EventId], pass: &[String], release_at_most: u32) -> sqlx::Result<Vec<EventId>> {
        let sql = self.source.names.render(include_str!("../../sql/source/skip.sql"));
        let rows = self.source.query(&sql).bind(ids).fetch_all(self.session.connection()).await?;
        let mut changed: Vec<EventId> = Vec::with_capacity(rows.len());
        let mut aggregates: Vec<Aggregate> = Vec::with_capacity(rows.len());
        for row in &rows {
            changed.push(row.try_get("id")?);
            aggregates.push(super::aggregate(row)?);
        }
        self.forget_failures(&changed).await?;
        aggregates.sort();
        aggregates.dedup();
        self.release_and_announce(&aggregates, pass, release_at_most).await?;
        Ok(changed)
    }

    /// Releases held events that nothing blocks any more, as after a failed one was deleted by hand, or an event type was mapped.
    /// Looks at no more than `aggregates` from the hash `from` on (`i64::MIN` first, then [`Swept::next`]): a probe each.
    /// `mapped` are the pairs of aggregate type and event type that some entity takes; `pass` as for a batch.
    pub async fn sweep(
        &mut self,
        from: i64,
        aggregates: u32,
        mapped: &[(String, String)],
        pass: &[String],
        release_at_most: u32,
    ) -> sqlx::Result<Swept> {
        let sql = self.source.names.render(include_str!("../../sql/source/sweep.sql"));
        let rows = self
            .source
            .query(&sql)
            .bind(self.lane)
            .bind(from)
            .bind(i64::from(aggregates))
            .bind(pass)
            .bind(mapped.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>())
            .bind(mapped.iter().map(|(_, event)| event.as_str()).collect::<Vec<_>>())
            .fetch_all(self.session.connection())
            .await?;
        let mut free = Vec::new();
        for row in &rows {
            if row.try_get("free")? {
                free.push(super::aggregate(row)?);
            }
        }
        let next = match rows.last() {
            Some(last) if rows.len() as u64 >= u64::from(aggregates) => last.try_get::<i64, _>("hash")?.checked_add(1),
            _ => None,
        };
        let released = self.release_and_announce(&free, pass, release_at_most).await?;
        Ok(Swept { released, next })
    }

    async fn release_and_announce(
        &mut self,
        aggregates: &[Aggregate],
        pass: &[String],
        at_most: u32,
    ) -> sqlx::Result<Vec<EventId>> {
        let released: Vec<EventId> = self.release(aggregates, pass, at_most).await?.into_iter().map(EventId).collect();
        self.announce(&released).await?;
        Ok(released)
    }

    pub(super) async fn forget_failures(&mut self, ids: &[EventId]) -> sqlx::Result<()> {
        if !ids.is_empty() {
            let sql = self.source.names.render(include_str!("../../sql/source/forget_failures.sql"));
            let forget = self.source.query(&sql).bind(ids);
            forget.execute(self.session.connection()).await?;
        }
        Ok(())
    }

    /// The lowest is enough: the next scan starts there.
    async fn announce(&mut self, ids: &[EventId]) -> sqlx::Result<()> {
        if let Some(lowest) = ids.iter().min() {
            let sql = self.source.names.render(include_str!("../../sql/source/announce.sql"));
            self.source.query(&sql).bind(self.lane).bind(lowest).execute(self.session.connection()).await?;
        }
        Ok(())
    }
}
