//! One chunk: some rows of one lane, under the lane's lock on both sides.
//!
//! Guarantees: the rows are read in the source transaction that holds the lane, after both sides were locked and their logs agreed;
//! so they are as of after everything that was applied, and an aggregate with an event that is not applied yet is left to
//! that event. They are written, and the progress is, in one transaction of the target that holds the lane there. No row of the
//! new table goes back, and none that was deleted comes back. Does not retry.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Job;
use crate::disposition::{self, Disposition, Said};
use crate::event::Lane;
use crate::failpoint::reach;
use crate::lease::{self, LeaseError};
use crate::source::{KeyAt, LegacyRow, NO_AGGREGATE, OpenAggregates, RowKey};
use crate::target::{LeftRow, Reason, Rows, TargetLane};

/// What came of it.
pub(super) enum Chunk {
    /// It took effect.
    Copied(Copied),
    /// The lane was somebody else's all the time.
    Busy,
    /// More events are pending in the lane than can be looked through under its lock: the relay has to catch up first.
    Backlog,
}

/// A chunk that took effect.
#[derive(Debug, Default)]
pub(super) struct Copied {
    pub(super) rows: u64,
    /// Left out, with the reasons; kept with the progress.
    pub(super) left: Vec<LeftRow>,
    /// Too large to be read with the others: to be copied yet.
    pub(super) again: Vec<RowKey>,
    /// How long reading and writing the rows took.
    pub(super) worked: Duration,
}

/// Why nothing came of it; nothing took effect, or (an error of the commit) nobody knows, and it may be done again.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChunkError {
    #[error("legacy: {}", disposition::told(.0))]
    Source(sqlx::Error),
    #[error("new: {}", disposition::told(.0))]
    Target(sqlx::Error),
    /// A lock or a timeout on the target, or what may be of a single row: the next tries find out.
    #[error("new: {}", disposition::told(.0))]
    Contended(sqlx::Error),
    /// Somebody else was faster.
    #[error("the lane is busy")]
    Busy,
    #[error("a chunk was not done within {0:?}")]
    Deadline(Duration),
    /// The copy that it belongs to is no more.
    #[error("the copy was begun anew")]
    BegunAnew,
    /// Only an operator can help.
    #[error("{0}")]
    Stopped(String),
    /// Likewise, because of rows.
    #[error("{0}")]
    Refused(Box<super::BackfillError>),
}

impl From<LeaseError> for ChunkError {
    fn from(error: LeaseError) -> ChunkError {
        match error {
            LeaseError::Source(error) => ChunkError::Source(error),
            LeaseError::Target(error) => ChunkError::Target(error),
            LeaseError::Stopped(why) => ChunkError::Stopped(why),
            LeaseError::TargetBusy | LeaseError::Overtaken => ChunkError::Busy,
        }
    }
}

/// What is to be copied.
#[derive(Clone, Copy)]
pub(super) struct Todo<'a> {
    pub(super) lane: Lane,
    pub(super) keys: &'a [RowKey],
    /// The page that these are the last ones of, in this lane, and the rows of it that were copied before.
    pub(super) completes: Option<(i64, u64)>,
    /// They were left out before: what no longer is must be noted.
    pub(super) left_before: bool,
    /// The last tries met a lock or a timeout, or what may be of a single row: find the rows that do.
    pub(super) isolate: bool,
}

/// Copies them.
pub(super) async fn copy(job: &Job<'_>, todo: Todo<'_>) -> Result<Chunk, ChunkError> {
    let deadline = job.config.relay.deadline;
    match tokio::time::timeout(deadline, attempt(job, todo)).await {
        Ok(done) => done,
        // Both sessions were dropped, and with them their connections.
        Err(_) => Err(ChunkError::Deadline(deadline)),
    }
}

async fn attempt(job: &Job<'_>, todo: Todo<'_>) -> Result<Chunk, ChunkError> {
    let patience = job.config.relay.deadline / 3;
    let batch = job.config.relay.batch;
    let taken = lease::take_healed(job.source, job.target, todo.lane, patience, &job.pass, batch).await?;
    let Some((mut source, mut target)) = taken else { return Ok(Chunk::Busy) };
    let started = Instant::now();
    reach("chunk_locked");
    let rows = source.legacy_rows(&job.legacy, todo.keys, job.config.relay.batch_bytes).await;
    let rows = rows.map_err(ChunkError::Source)?;
    reach("chunk_read");
    // After the rows: what is committed in between is seen as an open event.
    let mut ids: Vec<&str> = rows.iter().filter_map(|row| row.at.aggregate_id.as_deref()).collect();
    ids.sort_unstable();
    ids.dedup();
    let open = source.open_aggregates(&job.legacy, &ids, &job.whole).await;
    let open = open.map_err(ChunkError::Source)?;
    if open.too_many {
        target.abandon().await;
        source.release_lease().await;
        return Ok(Chunk::Backlog);
    }
    let mut sorted = sort(todo.lane, rows, &open);
    // Asked once, for another lane's chunk may find out meanwhile that there are some.
    let checks_late = job.checks_late();
    let refused = apply(job, &mut target, &sorted.copy, todo.isolate, checks_late).await?;
    let worked = started.elapsed();
    for (at, said) in &refused {
        sorted.left.push(LeftRow {
            key: sorted.copy[*at].key.clone(),
            lane: todo.lane,
            reason: Reason::Refused,
            event: None,
            code: Some(said.code.clone()),
            message: Some(said.message.clone()),
        });
    }
    let copy = &job.copy;
    let rows = (sorted.copy.len() - refused.len()) as u64;
    let mut current = target.leave_out(copy, &sorted.left).await.map_err(ChunkError::Target)?;
    if todo.left_before {
        let stays = |key: &RowKey| sorted.left.iter().any(|left| left.key == *key) || sorted.again.contains(key);
        let came: Vec<&RowKey> = todo.keys.iter().filter(|key| !stays(key)).collect();
        current &= target.came(copy, &came, rows).await.map_err(ChunkError::Target)?;
    }
    if let Some((page, before)) = todo.completes
        && sorted.again.is_empty()
    {
        current &= target.lane_done(copy, page, before + rows).await.map_err(ChunkError::Target)?;
    }
    if !current {
        target.abandon().await;
        source.release_lease().await;
        return Err(ChunkError::BegunAnew);
    }
    reach("chunk_written");
    target.commit().await.map_err(|error| refused_commit(job, checks_late, error))?;
    reach("chunk_committed");
    source.release_lease().await;
    Ok(Chunk::Copied(Copied { rows, left: sorted.left, again: sorted.again, worked }))
}

/// A commit that the target refuses for what was written: somebody has made a constraint since the copy began that is checked as late. Nothing
/// took effect, and whose it is the next try finds out, which checks before.
fn refused_commit(job: &Job<'_>, checked: bool, error: sqlx::Error) -> ChunkError {
    if checked || (disposition::is_transient(&error) && !disposition::may_be_of_a_value(&error)) {
        return ChunkError::Target(error);
    }
    job.deferred_constraints.store(true, Ordering::Relaxed);
    ChunkError::Contended(error)
}

/// A row to be copied.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    key: RowKey,
    aggregate_id: String,
    payload: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Sorted {
    copy: Vec<Row>,
    left: Vec<LeftRow>,
    again: Vec<RowKey>,
}

/// What may be copied under this lane's lock, and what may not.
fn sort(lane: Lane, rows: Vec<LegacyRow>, open: &OpenAggregates) -> Sorted {
    let mut sorted = Sorted::default();
    for LegacyRow { at, payload } in rows {
        let KeyAt { key, aggregate_id, lane: now } = at;
        let left = |lane, reason| LeftRow { key: key.clone(), lane, reason, event: None, code: None, message: None };
        let (Some(id), Some(now)) = (aggregate_id, now) else {
            sorted.left.push(LeftRow { message: Some(NO_AGGREGATE.to_owned()), ..left(lane, Reason::Refused) });
            continue;
        };
        // Its aggregate has changed since its key was read: another lane's lock keeps it apart from its events.
        if now != lane {
            sorted.left.push(left(now, Reason::Pending));
        } else if let Some(first) = open.waiting.get(&id) {
            let message = first.failed.then(|| format!("event {} of its aggregate has failed", first.event));
            let reason = if first.failed { Reason::Failed } else { Reason::Waiting };
            sorted.left.push(LeftRow { message, ..left(lane, reason) });
        } else if let Some(bringing) = open.pending.get(&id) {
            // Of this very row, or of another one of its aggregate?
            let brings = bringing.as_ref().filter(|bringing| bringing.brings(&key));
            sorted.left.push(LeftRow { event: brings.map(|b| b.event), ..left(lane, Reason::Pending) });
        } else if let Some(payload) = payload {
            sorted.copy.push(Row { key, aggregate_id: id, payload });
        } else {
            sorted.again.push(key);
        }
    }
    sorted
}

/// As the statement takes them.
fn given<'r>(job: &'r Job<'_>, rows: &'r [Row]) -> Rows<'r> {
    Rows {
        aggregate_type: &job.legacy.aggregate_type,
        event_type: &job.legacy.event_type,
        aggregate_ids: rows.iter().map(|row| row.aggregate_id.as_str()).collect(),
        payloads: rows.iter().map(|row| row.payload.as_str()).collect(),
    }
}

/// Writes what the mapping yields of them; what the new table refuses is halved until it stands alone. Those that were refused.
async fn apply(
    job: &Job<'_>,
    target: &mut TargetLane,
    rows: &[Row],
    isolate: bool,
    checks_late: bool,
) -> Result<Vec<(usize, Said)>, ChunkError> {
    let (mut refused, mut tried_empty) = (Vec::new(), false);
    let mut parts = vec![(0, rows.len())];
    if isolate {
        target.isolate().await.map_err(ChunkError::Target)?;
    }
    while let Some((from, to)) = parts.pop() {
        if from == to {
            continue;
        }
        let mut result = target.run_over(&job.statement, &given(job, &rows[from..to])).await;
        if result.is_ok() && checks_late {
            result = target.check_constraints().await;
        }
        let Err(error) = result else {
            target.keep().await.map_err(ChunkError::Target)?;
            continue;
        };
        let disposition = disposition::of(&error);
        match disposition {
            Disposition::Transient if !disposition::may_be_of_a_value(&error) => return Err(ChunkError::Target(error)),
            Disposition::Transient | Disposition::Contended if !isolate => return Err(ChunkError::Contended(error)),
            _ => {}
        }
        target.undo().await.map_err(ChunkError::Target)?;
        if matches!(disposition, Disposition::Transient | Disposition::Operator) && !tried_empty {
            over_nothing(job, target).await?;
            tried_empty = true;
        }
        if to - from == 1 {
            refused.push((from, disposition::said(&error)));
        } else {
            let middle = from + (to - from) / 2;
            // The first half is on top.
            parts.push((middle, to));
            parts.push((from, middle));
        }
    }
    Ok(refused)
}

/// Runs the statement over no row at all: an error that comes then too is no row's. By its code alone that cannot be told, for what a value of
/// a type like `tsquery` or `regclass` is refused for has the codes of a statement that is wrong.
async fn over_nothing(job: &Job<'_>, target: &mut TargetLane) -> Result<(), ChunkError> {
    match target.run_over(&job.statement, &given(job, &[])).await {
        Ok(()) => target.undo().await.map_err(ChunkError::Target),
        Err(error) => Err(match disposition::of(&error) {
            Disposition::Transient => ChunkError::Target(error),
            Disposition::Contended => ChunkError::Contended(error),
            _ => ChunkError::Refused(Box::new(job.refused(&error))),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;
    use crate::source::{Bringing, FirstWaiting};

    #[test]
    fn only_what_this_lane_keeps_apart_from_its_events_is_copied() {
        let row = |key: &str, id: Option<&str>, lane: Option<i32>, payload: Option<&str>| LegacyRow {
            at: KeyAt { key: RowKey(vec![key.into()]), aggregate_id: id.map(str::to_owned), lane: lane.map(Lane) },
            payload: payload.map(str::to_owned),
        };
        let brings = |event: i64, key: &str| Some(Bringing { event: EventId(event), key: vec![Some(key.to_owned())] });
        let open = OpenAggregates {
            pending: [("p".to_owned(), brings(7, "pending")), ("q".to_owned(), brings(8, "another"))].into(),
            waiting: [("w", false), ("f", true)]
                .map(|(id, failed)| (id.to_owned(), FirstWaiting { event: EventId(9), failed }))
                .into(),
            too_many: false,
        };
        let sorted = sort(
            Lane(3),
            vec![
                row("copied", Some("c"), Some(3), Some("{}")),
                row("pending", Some("p"), Some(3), Some("{}")),
                row("sibling", Some("q"), Some(3), Some("{}")),
                row("waiting", Some("w"), Some(3), Some("{}")),
                row("failed", Some("f"), Some(3), Some("{}")),
                row("moved", Some("m"), Some(4), Some("{}")),
                row("nobody's", None, None, Some("{}")),
                row("large", Some("l"), Some(3), None),
            ],
            &open,
        );
        let key = |key: &str| RowKey(vec![key.to_owned()]);
        let copied = Row { key: key("copied"), aggregate_id: "c".to_owned(), payload: "{}".to_owned() };
        assert_eq!(sorted.copy, [copied]);
        assert_eq!(sorted.again, [key("large")]);
        assert_eq!((sorted.left[0].event, sorted.left[1].event), (Some(EventId(7)), None));
        let left: Vec<_> = sorted.left.iter().map(|l| (l.key.0[0].as_str(), l.lane.0, l.reason)).collect();
        let expected = [
            ("pending", 3, Reason::Pending),
            ("sibling", 3, Reason::Pending),
            ("waiting", 3, Reason::Waiting),
            ("failed", 3, Reason::Failed),
            ("moved", 4, Reason::Pending),
            ("nobody's", 3, Reason::Refused),
        ];
        assert_eq!(left, expected);
    }
}
