//! Rows that were left out: tried again at the end, and by every later run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::gate::{Gate, rest};
use super::lanes::copy_lane;
use super::{BackfillError, Job, new};
use crate::disposition::is_transient;
use crate::event::{EventId, Lane};
use crate::source::{KeyQueue, RowKey};
use crate::target::{LeftRow, Reason};

/// So many are looked at at once.
const PART: i64 = 1000;

/// Tries all of them once; then, while the events of some are on their way by themselves, all but the refused ones again and again, until
/// nothing has moved for `patience`. What waits for somebody (a failed event) is not waited for. False: it was told to end.
pub(super) async fn rows(job: &Job<'_>, gate: &Gate<'_>, patience: Duration) -> Result<bool, BackfillError> {
    let mut moved = Instant::now();
    let mut before = usize::MAX;
    let mut first = true;
    loop {
        let (seen, whole) = round(job, gate, |reason| first || reason != Reason::Refused).await?;
        if !whole {
            return Ok(false);
        }
        // What an earlier run has left may stand otherwise by now.
        if std::mem::take(&mut first) {
            continue;
        }
        if seen < before {
            moved = Instant::now();
            before = seen;
        }
        if seen == 0 || moved.elapsed() >= patience {
            return Ok(true);
        }
        job.counts.waits_for(Some(format!("{seen} rows wait for their events: does a relay run?")));
        if !rest(Duration::from_millis(250), job.stop).await {
            return Ok(false);
        }
    }
}

/// Tries those of these reasons; how many there were whose events are on their way by themselves.
async fn round(
    job: &Job<'_>,
    gate: &Gate<'_>,
    try_again: impl Fn(Reason) -> bool,
) -> Result<(usize, bool), BackfillError> {
    let mut after: Option<RowKey> = None;
    let mut pending = 0;
    loop {
        let rows = match job.target.left_rows(&job.entity.name, after.as_ref(), PART).await {
            Ok(rows) => rows,
            Err(error) if is_transient(&error) => {
                if !rest(Duration::from_secs(1), job.stop).await {
                    return Ok((pending, false));
                }
                continue;
            }
            Err(error) => return Err(new(error)),
        };
        let Some(last) = rows.last() else { return Ok((pending, true)) };
        let end = last.key.clone();
        let Some(rows) = not_brought(job, rows).await? else {
            if !rest(Duration::from_secs(1), job.stop).await {
                return Ok((pending, false));
            }
            continue;
        };
        after = Some(end);
        pending += rows.iter().filter(|row| row.reason.passes_by_itself()).count();
        let mut lanes: BTreeMap<Lane, KeyQueue> = BTreeMap::new();
        for LeftRow { key, lane, reason, .. } in rows {
            if try_again(reason) {
                lanes.entry(lane).or_default().push(&key);
            }
        }
        for (lane, keys) in lanes {
            if !copy_lane(job, gate, None, lane, keys, true).await? {
                return Ok((pending, false));
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
