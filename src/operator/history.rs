//! The last hour, minute by minute: how much came and went, how late it was, and who worked on which lanes.
//!
//! Kept in memory and, a row a minute and process, in the relay's table on the source, so that a restart does not blank it and
//! every process shows what all did. Does not promise much: what was applied since the last write is lost with its process, and
//! how much arrived is worked out from what was applied and from the count of the backlog, which is rarer when that is large.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::backlog::{Backlog, Latest};
use super::{Operator, Result};
use crate::metrics::{Metrics, Reading, quantile};
use crate::sql::query;

/// Minutes that are shown.
pub const SHOWN: i64 = 60;
/// Minutes that are kept.
const KEPT: i64 = SHOWN + 2;
/// Between two looks at what this process has done.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between two writes to the source.
const WRITE_EVERY: Duration = Duration::from_secs(30);
/// How long the last write may take while the process ends.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// What one process did in one minute.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Minute {
    /// Of the process: host and number.
    pub name: String,
    /// How much of the minute it was there.
    pub seconds: f64,
    /// Events applied.
    pub processed: u64,
    /// Events not applied in the whole outbox, as last counted.
    pub unapplied: Option<u64>,
    /// Lags by bucket: see [`quantile`].
    pub lags: Vec<u64>,
    /// Batches by lane.
    pub batches: Vec<u64>,
}

type Key = (i64, Uuid);

/// The last hour; clones are the same.
#[derive(Clone)]
pub struct History(Arc<Inner>);

struct Inner {
    instance: Uuid,
    name: String,
    minutes: Mutex<BTreeMap<Key, Minute>>,
}

impl Default for History {
    fn default() -> History {
        History(Arc::new(Inner { instance: Uuid::new_v4(), name: crate::job::host(), minutes: Mutex::default() }))
    }
}

/// A minute of all processes together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Point {
    /// Events written a second, if it is known.
    pub arriving: Option<f64>,
    /// Events applied a second.
    pub leaving: Option<f64>,
    /// Seconds, of those applied.
    pub lag_p50: Option<f64>,
    /// Likewise.
    pub lag_p99: Option<f64>,
}

/// A process, and what it did in the last minutes.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// Host and number.
    pub name: String,
    /// The process that answers.
    pub is_this: bool,
    /// Events applied a second.
    pub leaving: f64,
    /// Batches by lane.
    pub batches: BTreeMap<usize, u64>,
}

impl History {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Minute>> {
        self.0.minutes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last hour, oldest first: [`SHOWN`] points, the last one for the minute that goes on.
    pub fn points(&self, now: DateTime<Utc>) -> Vec<Point> {
        let minutes = self.lock();
        let last = minute_of(now);
        (last - SHOWN + 1..=last).map(|minute| point(&minutes, minute)).collect()
    }

    /// The last minute or so.
    pub fn latest(&self, now: DateTime<Utc>) -> Option<Point> {
        let minutes = self.lock();
        let last = minute_of(now);
        let both: Vec<Point> = [last - 1, last].into_iter().map(|minute| point(&minutes, minute)).collect();
        let age = f64::from(u32::try_from(now.timestamp().rem_euclid(60)).unwrap_or_default());
        // The minute that goes on tells little until a quarter of it is over.
        let [before, now] = both.as_slice() else { return None };
        let point = if age >= 15.0 && now.leaving.is_some() { now } else { before };
        let point = if point.leaving.is_some() { point } else { now };
        point.leaving.is_some().then_some(*point)
    }

    /// Who has worked in the last five minutes.
    pub fn workers(&self, now: DateTime<Utc>) -> Vec<Worker> {
        let from = minute_of(now) - 4;
        let mut workers: BTreeMap<Uuid, (Worker, f64)> = BTreeMap::new();
        for ((_, instance), minute) in self.lock().range((from, Uuid::nil())..) {
            let (worker, seconds) = workers.entry(*instance).or_insert_with(|| {
                let is_this = *instance == self.0.instance;
                (Worker { name: minute.name.clone(), is_this, leaving: 0.0, batches: BTreeMap::new() }, 0.0)
            });
            *seconds += minute.seconds;
            worker.leaving += as_f64(minute.processed);
            for (lane, n) in minute.batches.iter().enumerate().filter(|(_, n)| **n > 0) {
                *worker.batches.entry(lane).or_default() += n;
            }
        }
        let rated = workers.into_values().map(|(worker, seconds)| {
            let leaving = if seconds > 0.0 { worker.leaving / seconds } else { 0.0 };
            Worker { leaving, ..worker }
        });
        let mut rated: Vec<Worker> = rated.collect();
        rated.sort_by(|a, b| b.is_this.cmp(&a.is_this).then(a.name.cmp(&b.name)));
        rated
    }

    /// Adds what this process has done since the last time.
    fn add(&self, now: DateTime<Utc>, done: &Reading, watched: Duration, backlog: Option<&Backlog>) {
        let mut minutes = self.lock();
        let current = minute_of(now);
        let minute = minutes.entry((current, self.0.instance)).or_default();
        minute.name.clone_from(&self.0.name);
        minute.seconds = (minute.seconds + watched.as_secs_f64()).min(60.0);
        minute.processed += done.processed;
        add_up(&mut minute.lags, &done.lags);
        add_up(&mut minute.batches, &done.batches);
        if let Some(b) = backlog {
            minute.unapplied = Some(b.pending + b.retry + b.held + b.failed + b.stopped);
        }
        minutes.retain(|(minute, _), _| *minute > current - KEPT && *minute <= current + 1);
    }

    fn own(&self, since: i64) -> Vec<(i64, Minute)> {
        let minutes = self.lock();
        let own = minutes.range((since, Uuid::nil())..).filter(|((_, instance), _)| *instance == self.0.instance);
        own.map(|((minute, _), it)| (*minute, it.clone())).collect()
    }

    fn learn(&self, read: Vec<(Key, Minute)>) {
        let mut minutes = self.lock();
        let others = read.into_iter().filter(|((_, instance), _)| *instance != self.0.instance);
        others.for_each(|(key, minute)| drop(minutes.insert(key, minute)));
    }

    /// Keeps it until the shutdown. Whoever starts it owns and joins it.
    pub async fn keep(self, operator: Operator, metrics: Metrics, backlog: Latest, shutdown: CancellationToken) {
        let mut before = metrics.reading();
        let (mut looked, mut write_next) = (Instant::now(), Instant::now());
        let mut ended = false;
        while !ended {
            let now = metrics.reading();
            self.add(Utc::now(), &now.since(&before), looked.elapsed(), backlog.peek().as_deref());
            (before, looked) = (now, Instant::now());
            ended = shutdown.is_cancelled();
            if ended || write_next <= Instant::now() {
                write_next = Instant::now() + WRITE_EVERY;
                let exchange = operator.exchange_history(&self);
                let written = if ended {
                    tokio::time::timeout(LAST_WRITE, exchange).await.unwrap_or(Ok(()))
                } else {
                    tokio::select! {
                        written = exchange => written,
                        () = shutdown.cancelled() => Ok(()),
                    }
                };
                if let Err(error) = written {
                    tracing::debug!(%error, "the history is kept in memory only for now");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }
}

impl Operator {
    /// Writes this process's last minutes, reads everybody's, forgets the old ones.
    async fn exchange_history(&self, history: &History) -> Result<()> {
        let now = minute_of(Utc::now());
        let write = self.names().render(include_str!("../../sql/operator/history_write.sql"));
        let read = self.names().render(include_str!("../../sql/operator/history_read.sql"));
        let forget = self.names().render(include_str!("../../sql/operator/history_forget.sql"));
        let limits = crate::session::Limits { deadline: Duration::from_secs(5), lock: Duration::from_secs(1) };
        let (mut session, _) = crate::session::Session::begin(self.pool(), &limits.sql()).await?;
        for (at, minute) in history.own(now - 1) {
            query(&write, false)
                .bind(at)
                .bind(history.0.instance)
                .bind(&minute.name)
                .bind(minute.seconds)
                .bind(minute.processed.cast_signed())
                .bind(minute.unapplied.map(u64::cast_signed))
                .bind(minute.lags.iter().map(|n| n.cast_signed()).collect::<Vec<_>>())
                .bind(minute.batches.iter().map(|n| n.cast_signed()).collect::<Vec<_>>())
                .execute(session.connection())
                .await?;
        }
        query(&forget, false).bind(now - KEPT).execute(session.connection()).await?;
        let rows = query(&read, false).bind(now - SHOWN).fetch_all(session.connection()).await?;
        session.commit().await?;
        history.learn(rows.iter().map(minute_of_row).collect::<sqlx::Result<_>>()?);
        Ok(())
    }
}

fn minute_of_row(row: &PgRow) -> sqlx::Result<(Key, Minute)> {
    let unsigned = |list: Vec<i64>| list.into_iter().map(i64::unsigned_abs).collect();
    let minute = Minute {
        name: row.try_get("name")?,
        seconds: row.try_get("seconds")?,
        processed: super::count(row, "processed")?,
        unapplied: row.try_get::<Option<i64>, _>("unapplied")?.map(i64::unsigned_abs),
        lags: unsigned(row.try_get("lags")?),
        batches: unsigned(row.try_get("batches")?),
    };
    Ok(((row.try_get("minute")?, row.try_get("instance")?), minute))
}

fn minute_of(time: DateTime<Utc>) -> i64 {
    time.timestamp().div_euclid(60)
}

fn add_up(sum: &mut Vec<u64>, more: &[u64]) {
    if sum.len() < more.len() {
        sum.resize(more.len(), 0);
    }
    sum.iter_mut().zip(more).for_each(|(sum, n)| *sum += n);
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn as_f64(n: u64) -> f64 {
    n as f64
}

/// All processes' minute; nothing where none was there for some seconds.
fn point(minutes: &BTreeMap<Key, Minute>, minute: i64) -> Point {
    const ENOUGH: f64 = 1.5;
    let of = |minute: i64| minutes.range((minute, Uuid::nil())..=(minute, Uuid::max())).map(|(_, it)| it);
    let seconds = of(minute).map(|it| it.seconds).fold(0.0, f64::max);
    if seconds < ENOUGH {
        return Point::default();
    }
    let processed = as_f64(of(minute).map(|it| it.processed).sum());
    // Of several processes that count the same backlog, any.
    let unapplied = |minute| of(minute).filter_map(|it| it.unapplied).next_back();
    let arriving = match (unapplied(minute - 1), unapplied(minute)) {
        (Some(before), Some(after)) => Some(((processed + as_f64(after) - as_f64(before)) / seconds).max(0.0)),
        _ => None,
    };
    let mut lags = Vec::new();
    of(minute).for_each(|it| add_up(&mut lags, &it.lags));
    Point {
        arriving,
        leaving: Some(processed / seconds),
        lag_p50: quantile(&lags, 0.5),
        lag_p99: quantile(&lags, 0.99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(60 * 30_000_000 + seconds, 0).unwrap_or_default()
    }

    fn done(processed: u64, lag_bucket: usize) -> Reading {
        let mut lags = vec![0; 30];
        lags[lag_bucket] = processed;
        Reading { processed, lags, batches: vec![0, 2] }
    }

    fn backlog(pending: u64) -> Backlog {
        Backlog { pending, ..Backlog::empty(at(0)) }
    }

    #[test]
    fn what_arrives_is_what_leaves_and_what_the_backlog_grows_by() {
        let history = History::default();
        let minute = Duration::from_secs(60);
        history.add(at(30), &done(600, 5), minute, Some(&backlog(0)));
        history.add(at(90), &done(1200, 9), minute, Some(&backlog(600)));
        let points = history.points(at(90));
        assert_eq!(points.len(), 60);
        assert_eq!(points[57], Point::default(), "nobody was there");
        assert_eq!((points[58].arriving, points[58].leaving), (None, Some(10.0)));
        assert_eq!((points[59].arriving, points[59].leaving), (Some(30.0), Some(20.0)));
        assert!(points[58].lag_p99 < points[59].lag_p50);
        assert_eq!(history.latest(at(90)).map(|point| point.leaving), Some(Some(20.0)));
        assert_eq!(history.latest(at(125)).map(|point| point.leaving), Some(Some(20.0)));
        assert_eq!(history.latest(at(300)), None);
    }

    #[test]
    fn processes_add_up_and_old_minutes_go() {
        let (history, other) = (History::default(), History::default());
        let minute = Duration::from_secs(60);
        history.add(at(0), &done(600, 5), minute, None);
        other.add(at(0), &done(60, 5), minute, None);
        history.learn(other.own(0).into_iter().map(|(at, it)| ((at, other.0.instance), it)).collect());
        assert_eq!(history.points(at(0))[59].leaving, Some(11.0));
        let workers = history.workers(at(0));
        assert_eq!(workers.iter().map(|it| it.is_this).collect::<Vec<_>>(), [true, false]);
        assert_eq!(workers[1].batches, BTreeMap::from([(1, 2)]));
        history.add(at(3600 * 2), &done(1, 5), minute, None);
        assert_eq!(history.lock().len(), 1);
    }
}
