//! What is asked of both sides about a part of an entity's rows: their checksum, or each one's key and hash. How the parts are cut
//! is the business of `ranges` and `buckets`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio_util::sync::CancellationToken;

use super::judge::Hashed;
use super::patience::patiently;
use super::{Again, Progress, VerifyError};
use crate::disposition::{self, Disposition, said};
use crate::mapping::compare::{Ask, Comparison, Hash};
use crate::session::is_statement_timeout;
use crate::source::{Legacy, Range, RowKey, Source};
use crate::target::{Shipped, Target};

/// Rows a chunk, to begin with; it adapts to [`AIM`].
const CHUNK: u64 = 10_000;
pub(super) const CHUNKS: std::ops::RangeInclusive<u64> = 500..=500_000;
/// How long a chunk's statements should take.
const AIM: Duration = Duration::from_millis(250);
/// Rows that are shipped at a time, and their bytes.
pub(super) const SHIP_ROWS: u32 = 1_000;
const SHIP_BYTES: u64 = 8 << 20;

/// Number and sum of hashes, by bucket.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) by: BTreeMap<i64, (u64, i128)>,
    /// Rows that the mapping gives another key than their legacy row's.
    pub(super) moved: u64,
}

impl Sums {
    pub(super) fn rows(&self) -> u64 {
        self.by.values().map(|(rows, _)| rows).sum()
    }

    fn add(&mut self, rows: &[PgRow]) -> sqlx::Result<()> {
        for row in rows {
            let sum = self.by.entry(row.try_get("bucket")?).or_default();
            sum.0 += row.try_get::<i64, _>("rows")?.cast_unsigned();
            let total: Option<String> = row.try_get("total")?;
            sum.1 += total.and_then(|text| text.parse::<i128>().ok()).unwrap_or(0);
            self.moved += row.try_get::<i64, _>("moved")?.cast_unsigned();
        }
        Ok(())
    }

    pub(super) fn merge(&mut self, other: Sums) {
        for (bucket, (rows, total)) in other.by {
            let sum = self.by.entry(bucket).or_default();
            sum.0 += rows;
            sum.1 += total;
        }
        self.moved += other.moved;
    }
}

/// What a walk needs.
pub(super) struct Pass<'a> {
    pub(super) source: &'a Source,
    pub(super) target: &'a Target,
    pub(super) legacy: &'a Legacy,
    pub(super) comparison: &'a Comparison,
    pub(super) hash: Hash,
    pub(super) by_legacy: bool,
    pub(super) rate: Option<u32>,
    pub(super) stop: &'a CancellationToken,
    pub(super) progress: &'a Progress<'a>,
    pub(super) started: Instant,
    pub(super) read: u64,
    pub(super) legacy_rows: u64,
    pub(super) new_rows: u64,
    /// The sides are read one after the other.
    pub(super) one_by_one: bool,
    /// All was read, and is read again.
    pub(super) again: Option<Again>,
    /// Where the range after this key ends: looked up while the one before it is summed up.
    pub(super) ahead: Option<(RowKey, Option<RowKey>)>,
}

/// Which rows are meant: `None` for all of a range, as one; else by how many buckets, and the wanted ones.
pub(super) type Buckets<'b> = Option<(i64, Option<&'b [i64]>)>;

/// Why a range has no checksum.
pub(super) enum Trouble {
    /// The mapping refuses one of its rows.
    Refused(String),
    /// Smaller chunks are needed.
    Late,
    Failed(VerifyError),
}

impl From<VerifyError> for Trouble {
    fn from(error: VerifyError) -> Trouble {
        Trouble::Failed(error)
    }
}

fn trouble(error: sqlx::Error, side: fn(sqlx::Error) -> VerifyError) -> Trouble {
    if is_statement_timeout(&error) || matches!(&error, sqlx::Error::Io(e) if e.kind() == std::io::ErrorKind::TimedOut)
    {
        return Trouble::Late;
    }
    if disposition::of(&error) == Disposition::Event {
        return Trouble::Refused(said(&error).message);
    }
    Trouble::Failed(side(error))
}

impl<'a> Pass<'a> {
    /// By the rows' own hashes, as fast as it goes.
    pub(super) fn new(
        (source, target): (&'a Source, &'a Target),
        legacy: &'a Legacy,
        comparison: &'a Comparison,
        by_legacy: bool,
        stop: &'a CancellationToken,
        progress: &'a Progress<'a>,
    ) -> Pass<'a> {
        Pass {
            source,
            target,
            legacy,
            comparison,
            hash: Hash::Own,
            by_legacy,
            rate: None,
            stop,
            progress,
            started: Instant::now(),
            read: 0,
            legacy_rows: 0,
            new_rows: 0,
            one_by_one: false,
            again: None,
            ahead: None,
        }
    }
}

impl Pass<'_> {
    pub(super) fn is_told_to_stop(&self) -> Result<(), VerifyError> {
        if self.stop.is_cancelled() { Err(VerifyError::Stopped) } else { Ok(()) }
    }

    /// A further walk begins.
    pub(super) fn read_again(&mut self) {
        self.again = Some(Again { walk: self.again.map_or(1, |again| again.walk) + 1, rows: 0 });
    }

    /// A chunk's size to begin with.
    pub(super) fn first_size(&self) -> u64 {
        CHUNK.min(self.most())
    }

    /// The next one's, after one that took so long.
    pub(super) fn adapt(&self, size: &mut u64, took: Duration) {
        if took > AIM * 2 {
            *size = (*size / 2).max(*CHUNKS.start());
        } else if took < AIM / 2 {
            *size *= 2;
        }
        *size = (*size).min(self.most());
    }

    /// Never more than a second's worth, or the pace would be one of rests and rushes.
    fn most(&self) -> u64 {
        self.rate.map_or(*CHUNKS.end(), |rate| u64::from(rate.max(1)).min(*CHUNKS.end()))
    }

    /// Read so far: of both sides at once, or of one after the other.
    fn rows(&self) -> u64 {
        let (least, most) = (self.legacy_rows.min(self.new_rows), self.legacy_rows.max(self.new_rows));
        if self.one_by_one { least.midpoint(most) } else { most }
    }

    /// Waits so that no more rows a second are read than allowed.
    pub(super) async fn pace(&mut self, rows: u64) -> Result<(), VerifyError> {
        self.read += rows;
        if let Some(again) = &mut self.again {
            again.rows += rows;
        }
        (self.progress)(self.rows(), self.started.elapsed(), self.again);
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.read as f64 / f64::from(rate.max(1)));
            tokio::select! {
                () = tokio::time::sleep(due.saturating_sub(self.started.elapsed())) => {}
                () = self.stop.cancelled() => {}
            }
        }
        self.is_told_to_stop()
    }

    /// The legacy rows of a range, mapped: by the legacy server, or shipped to the target.
    async fn of_legacy(
        &self,
        what: Ask,
        range: &Range,
        buckets: Buckets<'_>,
        mut take: impl FnMut(&[PgRow]) -> sqlx::Result<()>,
    ) -> Result<(), Trouble> {
        if self.by_legacy {
            let ask = || self.source.legacy_compared(self.legacy, self.comparison, self.hash, what, range, buckets);
            let rows = patiently(self.stop, ask).await;
            let rows = rows.map_err(|error| trouble(error, VerifyError::Source))?.unwrap_or_default();
            return take(&rows).map_err(|error| VerifyError::Source(error).into());
        }
        let mut after = range.after.clone();
        loop {
            let ask = || self.source.legacy_keys(self.legacy, after.as_ref(), range.until.as_ref(), SHIP_ROWS);
            let keys = patiently(self.stop, ask).await;
            let keys = keys.map_err(|error| trouble(error, VerifyError::Source))?;
            let ended = (keys.len() as u32) < SHIP_ROWS;
            let mut left: Vec<RowKey> = keys.into_iter().map(|at| at.key).collect();
            after = left.last().cloned();
            while !left.is_empty() {
                let rows = patiently(self.stop, || self.source.legacy_rows(self.legacy, &left, SHIP_BYTES)).await;
                let mut shipped = Vec::new();
                let mut beyond = Vec::new();
                for row in rows.map_err(|error| trouble(error, VerifyError::Source))? {
                    match row.payload {
                        Some(payload) => {
                            let event = self.legacy.event(row.at.aggregate_id.as_deref().unwrap_or_default(), payload);
                            shipped.push((row.at.key, event));
                        }
                        None => beyond.push(row.at.key),
                    }
                }
                let rows = Shipped::new(&shipped);
                let ask = || self.target.compared_shipped(self.comparison, self.hash, what, &rows, buckets);
                let answer = patiently(self.stop, ask).await;
                take(&answer.map_err(|error| trouble(error, VerifyError::Target))?).map_err(VerifyError::Target)?;
                left = beyond;
            }
            if ended {
                return Ok(());
            }
            self.is_told_to_stop()?;
        }
    }

    pub(super) async fn legacy_sums(&self, range: &Range, buckets: Buckets<'_>) -> Result<Sums, Trouble> {
        let mut sums = Sums::default();
        self.of_legacy(Ask::Sums, range, buckets, |rows| sums.add(rows)).await?;
        Ok(sums)
    }

    pub(super) async fn new_sums(&self, range: &Range, buckets: Buckets<'_>) -> Result<Sums, Trouble> {
        let ask = || self.target.compared(self.comparison, self.hash, Ask::Sums, range, buckets);
        let rows = patiently(self.stop, ask).await;
        let mut sums = Sums::default();
        sums.add(&rows.map_err(|error| trouble(error, VerifyError::Target))?).map_err(VerifyError::Target)?;
        Ok(sums)
    }

    pub(super) async fn legacy_hashes(
        &self,
        range: &Range,
        buckets: Buckets<'_>,
        into: &mut Keys,
    ) -> Result<(), Trouble> {
        self.of_legacy(Ask::Keys, range, buckets, |rows| into.add(rows)).await
    }

    pub(super) async fn new_hashes(&self, range: &Range, buckets: Buckets<'_>, into: &mut Keys) -> Result<(), Trouble> {
        let ask = || self.target.compared(self.comparison, self.hash, Ask::Keys, range, buckets);
        let rows = patiently(self.stop, ask).await;
        let rows = rows.map_err(|error| trouble(error, VerifyError::Target))?;
        into.add(&rows).map_err(|error| VerifyError::Target(error).into())
    }
}

/// Keys with the hashes of their rows.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) hashed: Vec<Hashed>,
    /// Legacy rows for which the mapping yields a key with NULL in it, or that it refuses.
    pub(super) nameless: Vec<RowKey>,
}

impl Keys {
    fn add(&mut self, rows: &[PgRow]) -> sqlx::Result<()> {
        for row in rows {
            let key: Vec<Option<String>> = row.try_get("row_key")?;
            let from = RowKey(row.try_get("from_key")?);
            match key.into_iter().collect::<Option<Vec<String>>>() {
                Some(key) => self.hashed.push((RowKey(key), Some(from), row.try_get("hash")?)),
                None => self.nameless.push(from),
            }
        }
        Ok(())
    }
}
