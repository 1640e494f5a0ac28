//! Rows that were left out: tried again at the end, and by every later run.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::gate::{Gate, rest};
use super::lanes::{at_most, copy_lane};
use super::{BackfillError, Job, new};
use crate::disposition::is_transient;
use crate::event::{EventId, Lane};
use crate::source::{KeyQueue, RowKey};
use crate::target::{LeftRow, Reason};

/// So many are looked at at once.
const PART: i64 = 1000;

/// Tries all of them once; then those whose parent may have come (a row of the same table), in rounds, for as long as a round brings any row;
/// and, while the events of some are on their way by themselves, these again and again, until nothing has moved for `patience`. What waits for
/// somebody (a failed event) is not waited for. False: it was told to end.
pub(super) async fn rows(job: &Job<'_>, gate: &Gate<'_>, patience: Duration) -> Result<bool, BackfillError> {
    let mut moved = Instant::now();
    let mut before = usize::MAX;
    let (mut first, mut parents) = (true, false);
    loop {
        let rows = job.counts.rows.load(Ordering::Relaxed);
        let try_again =
            |row: &LeftRow| first || row.reason != Reason::Refused || (parents && job.waits_for_its_parent(row));
        let (seen, whole) = round(job, gate, try_again).await?;
        if !whole {
            return Ok(false);
        }
        // Any row may be the one that others refer to.
        parents = job.counts.rows.load(Ordering::Relaxed) > rows;
        if parents || seen.pending < before {
            moved = Instant::now();
            before = seen.pending;
        }
        // What an earlier run has left may stand otherwise by now.
        if std::mem::take(&mut first) || parents {
            continue;
        }
        if let Some(last) = &seen.last_refused {
            at_most(job, seen.refused, last)?;
        }
        if seen.pending == 0 || moved.elapsed() >= patience {
            return Ok(true);
        }
        job.counts.waits_for(Some(format!("{} rows wait for their events: does a relay run?", seen.pending)));
        if !rest(Duration::from_millis(250), job.stop).await {
            return Ok(false);
        }
    }
}

/// What a round has met.
#[derive(Default)]
struct Seen {
    /// Rows whose events are on their way by themselves.
    pending: usize,
    refused: u64,
    last_refused: Option<LeftRow>,
}

/// Tries those that are to be tried again, and tells what it met before; false: it was told to end.
async fn round(
    job: &Job<'_>,
    gate: &Gate<'_>,
    try_again: impl Fn(&LeftRow) -> bool,
) -> Result<(Seen, bool), BackfillError> {
    let mut after: Option<RowKey> = None;
    let mut seen = Seen::default();
    loop {
        let rows = match job.target.left_rows(&job.entity.name, after.as_ref(), PART).await {
            Ok(rows) => rows,
            Err(error) if is_transient(&error) => {
                if !rest(Duration::from_secs(1), job.stop).await {
                    return Ok((seen, false));
                }
                continue;
            }
            Err(error) => return Err(new(error)),
        };
        let Some(last) = rows.last() else { return Ok((seen, true)) };
        let end = last.key.clone();
        let Some(rows) = not_brought(job, rows).await? else {
            if !rest(Duration::from_secs(1), job.stop).await {
                return Ok((seen, false));
            }
            continue;
        };
        after = Some(end);
        let mut lanes: BTreeMap<Lane, KeyQueue> = BTreeMap::new();
        for row in rows {
            if try_again(&row) {
                lanes.entry(row.lane).or_default().push(&row.key);
            }
            seen.pending += usize::from(row.reason.passes_by_itself());
            if row.reason == Reason::Refused {
                seen.refused += 1;
                seen.last_refused = Some(row);
            }
        }
        for (lane, keys) in lanes {
            if !copy_lane(job, gate, None, lane, keys, true).await? {
                return Ok((seen, false));
            }
        }
    }
}

/// Without those that an event has brought meanwhile: a row that changes all the time has always another one on its way. One whose event
/// is gone, or is another row's by now (the legacy database has gone back, and gave its id once more), stays: whether it was applied,
/// skipped or lost, to copy the row under its lane's lock is right. `None`: a database was away.
async fn not_brought(job: &Job<'_>, rows: Vec<LeftRow>) -> Result<Option<Vec<LeftRow>>, BackfillError> {
    let events: Vec<EventId> = rows.iter().filter_map(|row| row.event).collect();
    if events.is_empty() {
        return Ok(Some(rows));
    }
    let applied = match job.source.applied(&job.legacy, &events, &job.whole).await {
        Ok(applied) => applied,
        Err(error) if is_transient(&error) => return Ok(None),
        Err(error) => return Err(super::legacy(error)),
    };
    let is_brought = |row: &LeftRow| applied.get(&row.event?).map(|bringing| bringing.brings(&row.key));
    let (brought, rows): (Vec<LeftRow>, Vec<LeftRow>) =
        rows.into_iter().partition(|row| is_brought(row).unwrap_or(false));
    let keys: Vec<&RowKey> = brought.iter().map(|row| &row.key).collect();
    match job.target.brought(&job.copy, &keys).await {
        Ok(true) => Ok(Some(rows)),
        Ok(false) => Err(job.begun_anew()),
        Err(error) if is_transient(&error) => Ok(None),
        Err(error) => Err(new(error)),
    }
}
