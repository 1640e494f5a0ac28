//! Pages, and their lanes: what is copied in which order, and what is tried again.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::Semaphore;

use super::chunk::{self, Chunk, ChunkError, Todo};
use super::error::{is_too_slow, keys_late, unreadable};
use super::gate::{Gate, rest};
use super::{BackfillError, Job, TRIES, new};
use crate::disposition::{is_transient, may_be_of_a_value, told};
use crate::event::Lane;
use crate::failpoint::reach;
use crate::redact::without_values;
use crate::retry::Pause;
use crate::source::{KeyQueue, Lanes};
use crate::target::{LeftRow, Page, Reason};

/// Hands out pages to itself and copies them, until there are none. False: it was told to end.
pub(super) async fn pages(job: &Job<'_>, gate: &Gate<'_>, slots: &Semaphore) -> Result<bool, BackfillError> {
    let mut pause = Pause::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        if job.stop.is_cancelled() {
            return Ok(false);
        }
        match next_page(job).await {
            Ok(None) => return Ok(true),
            Ok(Some((page, lanes))) => {
                reach("page_read");
                pause.reset();
                if !copy_page(job, gate, slots, &page, lanes, &HashSet::new()).await? {
                    return Ok(false);
                }
            }
            Err(error) if error.is_transient() => {
                job.counts.waits_for(Some(error.to_string()));
                rest(pause.next_pause(), job.stop).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn next_page(job: &Job<'_>) -> Result<Option<(Page, Lanes)>, BackfillError> {
    let handing = job.target.handing_out(&job.copy).await.map_err(new)?;
    let handing = handing.ok_or_else(|| job.begun_anew())?;
    if handing.exhausted {
        handing.abandon().await;
        return Ok(None);
    }
    let size = job.pace.page(job.config.relay.lanes);
    let keys = match job.source.legacy_lanes(&job.legacy, handing.after.as_ref(), None, size).await {
        Ok(keys) => keys,
        Err(error) => return Err(unread(job, Some(size), error).await),
    };
    job.pace.page_read();
    let page = handing.hand_out(keys.last.as_ref(), keys.rows < size).await.map_err(new)?;
    Ok(page.map(|page| (page, keys.lanes)))
}

/// Why a page's keys were not read; `size` as the pace is told it. A database that answers nothing else either is waited for.
async fn unread(job: &Job<'_>, size: Option<u32>, error: sqlx::Error) -> BackfillError {
    if is_too_slow(&error) && job.source.round_trip().await.is_ok() && job.pace.page_late(size) {
        return keys_late(job.entity, job.config.relay.deadline);
    }
    super::error::unread(job.entity, error)
}

/// Pages that somebody handed out and did not end, because it was killed; or that somebody else is at: to do the same twice
/// does no harm.
pub(super) async fn leftover_pages(job: &Job<'_>, gate: &Gate<'_>, slots: &Semaphore) -> Result<bool, BackfillError> {
    let mut pause = Pause::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let pages = match job.target.open_pages(&job.entity.name).await {
            Ok(pages) => pages,
            Err(error) if is_transient(&error) => {
                job.counts.waits_for(Some(format!("new: {}", told(&error))));
                if !rest(pause.next_pause(), job.stop).await {
                    return Ok(false);
                }
                continue;
            }
            Err(error) => return Err(new(error)),
        };
        let Some(page) = pages.into_iter().next() else { return Ok(true) };
        let read = async {
            let done = job.target.lanes_done(&job.entity.name, page.page).await.map_err(new)?;
            let keys = job.source.legacy_lanes(&job.legacy, page.after.as_ref(), Some(&page.until), u32::MAX).await;
            match keys {
                Ok(keys) => Ok((done, keys.lanes)),
                Err(error) => Err(unread(job, None, error).await),
            }
        };
        match read.await {
            Ok((done, lanes)) => {
                job.pace.page_read();
                if !copy_page(job, gate, slots, &page, lanes, &done).await? {
                    return Ok(false);
                }
            }
            Err(error) if error.is_transient() => {
                job.counts.waits_for(Some(error.to_string()));
                if !rest(pause.next_pause(), job.stop).await {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Has the pace know how far both databases are; it goes by what it knew if they do not answer.
async fn measure_the_way(job: &Job<'_>) {
    if let (Ok(legacy), Ok(new)) = tokio::join!(job.source.round_trip(), job.target.round_trip()) {
        // The rows and the open events, each planned and then asked for; what is written of them, and its savepoint. And one more on each side, for
        // what a connection does the first time: to take off a little too much does no harm, for nothing of it is work.
        let checks = u32::from(job.checks_late());
        job.pace.far(legacy * (4 + 1) + new * (2 + checks + 1));
    }
}

/// False: it was told to end.
async fn copy_page(
    job: &Job<'_>,
    gate: &Gate<'_>,
    slots: &Semaphore,
    page: &Page,
    lanes: Lanes,
    done: &HashSet<Lane>,
) -> Result<bool, BackfillError> {
    measure_the_way(job).await;
    let lanes = lanes.into_iter().filter(|(lane, _)| !done.contains(lane));
    let copying = lanes.map(|(lane, keys)| async move {
        let Ok(_slot) = slots.acquire().await else { return Ok(false) };
        copy_lane(job, gate, Some(page.page), lane, keys, false).await
    });
    let at_once = usize::from(job.config.backfill.workers);
    let whole = stream::iter(copying).buffer_unordered(at_once).try_fold(true, async |whole, lane| Ok(whole && lane));
    if !whole.await? {
        return Ok(false);
    }
    let mut pause = Pause::new(Duration::from_millis(100), Duration::from_secs(5));
    while let Err(error) = job.target.page_done(&job.copy, page.page, job.counts.rate()).await {
        if !is_transient(&error) {
            return Err(new(error));
        }
        if !rest(pause.next_pause(), job.stop).await {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Copies these rows of a lane, chunk by chunk; what a database that is away costs is time. False: it was told to end.
pub(super) async fn copy_lane(
    job: &Job<'_>,
    gate: &Gate<'_>,
    page: Option<i64>,
    lane: Lane,
    mut queue: KeyQueue,
    left_before: bool,
) -> Result<bool, BackfillError> {
    let mut pause = Pause::new(Duration::from_millis(50), Duration::from_secs(5));
    let (mut rows, mut contended, mut unread) = (0, 0, 0);
    while !queue.is_empty() {
        let size = part(queue.len(), job.pace.chunk() as usize);
        if !gate.pass(size as u32, &|why| job.counts.waits_for(why), job.stop).await {
            return Ok(false);
        }
        let completes = page.filter(|_| size == queue.len()).map(|page| (page, rows));
        let keys = queue.first(size);
        let todo = Todo { lane, keys: &keys, completes, left_before, isolate: contended > 1 };
        let why = match chunk::copy(job, todo).await {
            Ok(Chunk::Copied(copied)) => {
                job.pace.learn(size as u32, copied.worked);
                queue.done(size);
                queue.extend(copied.again);
                rows += copied.rows;
                (contended, unread) = (0, 0);
                pause.reset();
                job.counts.rows.fetch_add(copied.rows, Ordering::Relaxed);
                // What was left out before was counted then.
                if !left_before {
                    count(job, &copied.left)?;
                }
                continue;
            }
            Ok(Chunk::Busy) => format!("lane {lane} is busy"),
            Ok(Chunk::Backlog) => format!("lane {lane} has a long backlog: the relay has to catch up first"),
            Err(ChunkError::Refused(why)) => return Err(*why),
            Err(ChunkError::BegunAnew) => return Err(job.begun_anew()),
            Err(ChunkError::Stopped(why)) => return Err(BackfillError::Refused(why)),
            Err(ChunkError::Source(refused))
                if !is_transient(&refused) || (may_be_of_a_value(&refused) && unread + 1 >= TRIES) =>
            {
                return Err(unreadable(job.entity, refused));
            }
            Err(error) => {
                match &error {
                    ChunkError::Contended(_) => contended += 1,
                    ChunkError::Source(refused) if may_be_of_a_value(refused) => unread += 1,
                    ChunkError::Deadline(_) => job.pace.too_much(),
                    ChunkError::Target(refused) if !is_transient(refused) => return Err(job.refused(refused)),
                    _ => {}
                }
                error.to_string()
            }
        };
        job.counts.waits_for(Some(why));
        if !rest(pause.next_pause(), job.stop).await {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How many of so many rows to take: a chunk or a quarter more, and all parts alike. A page has a chunk for each lane on average, so
/// that half of the lanes have a few rows more, which would cost them a chunk of their own.
fn part(left: usize, chunk: usize) -> usize {
    let parts = (left * 4).div_ceil(chunk * 5).max(1);
    left.div_ceil(parts)
}

/// Gives up where too many were refused. A row that refers to one of its own table is not counted yet: that one may come with a later lane.
fn count(job: &Job<'_>, left: &[LeftRow]) -> Result<(), BackfillError> {
    let new: Vec<_> =
        left.iter().filter(|row| row.reason == Reason::Refused && !job.waits_for_its_parent(row)).collect();
    let refused = job.counts.refused.fetch_add(new.len() as u64, Ordering::Relaxed) + new.len() as u64;
    match new.last() {
        Some(last) => at_most(job, refused, last),
        None => Ok(()),
    }
}

/// Gives up if more rows than may be were refused, such as this one.
pub(super) fn at_most(job: &Job<'_>, refused: u64, such_as: &LeftRow) -> Result<(), BackfillError> {
    let most = job.config.backfill.max_refused;
    if refused <= u64::from(most) {
        return Ok(());
    }
    let like = such_as.message.as_deref().unwrap_or_default();
    let code = such_as.code.as_deref().unwrap_or_default();
    let why = |like: &str| {
        format!(
            "entity {}: more than {most} rows were refused (backfill.max_refused), such as: {like}. Mend the mapping or the table, then: \
             outbox-relay backfill",
            job.entity.name
        )
    };
    Err(BackfillError::Rows {
        code: "too_many_refused".to_owned(),
        message: why(like),
        logged: why(&without_values(code, like)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lanes_rows_are_taken_in_parts_alike_of_about_a_chunk() {
        for (left, chunk, parts) in [
            (1000, 1000, &[1000][..]),
            (1030, 1000, &[1030]),
            (1250, 1000, &[1250]),
            (1500, 1000, &[750, 750]),
            (2600, 1000, &[867, 867, 866]),
            (1, 1, &[1]),
            (3, 1, &[1, 1, 1]),
            (7, 500, &[7]),
        ] {
            let mut taken = Vec::new();
            let mut rest = left;
            while rest > 0 {
                taken.push(part(rest, chunk));
                rest -= taken[taken.len() - 1];
            }
            assert_eq!(taken, parts, "{left} by {chunk}");
        }
    }
}
