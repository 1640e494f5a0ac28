//! One walk over an entity's rows on both sides.
//!
//! **Ranges**, where the mapping hands the legacy key through as the new one (which every chunk proves: the legacy server counts the
//! rows for which it does not) and both servers order such keys alike: both sides' checksums of one range of keys after the other,
//! the first and the last open to their side. What differs is halved until it is small, and then told key by key.
//!
//! **Buckets** for all other mappings, and for text, which servers order by different collations: each side is walked in its own order,
//! and its rows are summed up by the hash of the new key; another walk tells the keys of the buckets that differ.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio_util::sync::CancellationToken;

use super::judge::{Hashed, Suspect, differing};
use super::{Progress, VerifyError};
use crate::disposition::{self, Disposition, said};
use crate::mapping::compare::{Ask, Comparison, Hash};
use crate::session::is_statement_timeout;
use crate::source::{Legacy, Range, RowKey, Source};
use crate::target::{Shipped, Target};

/// Rows a chunk, to begin with; it adapts to [`AIM`].
const CHUNK: u64 = 10_000;
const CHUNKS: std::ops::RangeInclusive<u64> = 500..=100_000;
/// How long a chunk's statements should take.
const AIM: Duration = Duration::from_millis(250);
/// Up to so many rows, the keys of a differing range are told.
const NARROW: u64 = 2_000;
/// Where keys are bucketed: how many buckets, and how many rows' keys are held at a time.
const BUCKETS: i64 = 4096;
const HELD: u64 = 50_000;
/// Rows that are shipped at a time, and their bytes.
const SHIP_ROWS: u32 = 1_000;
const SHIP_BYTES: u64 = 8 << 20;

/// Number and sum of hashes, by bucket.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    by: BTreeMap<i64, (u64, i128)>,
    /// Rows that the mapping gives another key than their legacy row's.
    moved: u64,
}

impl Sums {
    fn rows(&self) -> u64 {
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

    fn merge(&mut self, other: Sums) {
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
}

/// Why a range has no checksum.
enum Trouble {
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

/// What came of a range.
pub(super) enum Step {
    /// Go on after this key; `None`: that was all.
    On(Option<RowKey>),
    /// The mapping does not hand the key through: ranges cannot tell.
    Moved,
}

impl Pass<'_> {
    /// Whether both servers order keys of these types alike.
    pub(super) fn ordered_alike(&self) -> bool {
        let same = |of: &str| match of {
            "smallint" | "integer" | "bigint" => Some("integer"),
            "uuid" | "date" | "timestamp without time zone" | "timestamp with time zone" | "numeric" | "bytea" => None,
            _ => Some(""),
        };
        self.legacy.key_types.len() == self.comparison.key_types.len()
            && self.legacy.key_types.iter().zip(&self.comparison.key_types).all(|(l, n)| match (same(l), same(n)) {
                (Some(""), _) | (_, Some("")) => false,
                (Some(l), Some(n)) => l == n,
                (None, None) => l == n,
                _ => false,
            })
    }

    fn is_told_to_stop(&self) -> Result<(), VerifyError> {
        if self.stop.is_cancelled() { Err(VerifyError::Stopped) } else { Ok(()) }
    }

    /// Waits so that no more rows a second are read than allowed.
    async fn pace(&mut self, rows: u64) -> Result<(), VerifyError> {
        self.read += rows;
        (self.progress)(self.legacy_rows.max(self.new_rows), self.started.elapsed());
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
        buckets: (i64, Option<&[i32]>),
        mut take: impl FnMut(&[PgRow]) -> sqlx::Result<()>,
    ) -> Result<(), Trouble> {
        if self.by_legacy {
            let rows = self.source.legacy_compared(self.legacy, self.comparison, self.hash, what, range, buckets).await;
            let rows = rows.map_err(|error| trouble(error, VerifyError::Source))?.unwrap_or_default();
            return take(&rows).map_err(|error| VerifyError::Source(error).into());
        }
        let mut after = range.after.clone();
        loop {
            let keys = self.source.legacy_keys(self.legacy, after.as_ref(), range.until.as_ref(), SHIP_ROWS).await;
            let keys = keys.map_err(|error| trouble(error, VerifyError::Source))?;
            let ended = (keys.len() as u32) < SHIP_ROWS;
            let mut left: Vec<RowKey> = keys.into_iter().map(|at| at.key).collect();
            after = left.last().cloned();
            while !left.is_empty() {
                let rows = self.source.legacy_rows(self.legacy, &left, SHIP_BYTES).await;
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
                let answer = self.target.compared_shipped(self.comparison, self.hash, what, &rows, buckets).await;
                take(&answer.map_err(|error| trouble(error, VerifyError::Target))?).map_err(VerifyError::Target)?;
                left = beyond;
            }
            if ended {
                return Ok(());
            }
            self.is_told_to_stop()?;
        }
    }

    async fn legacy_sums(&self, range: &Range, buckets: (i64, Option<&[i32]>)) -> Result<Sums, Trouble> {
        let mut sums = Sums::default();
        self.of_legacy(Ask::Sums, range, buckets, |rows| sums.add(rows)).await?;
        Ok(sums)
    }

    async fn new_sums(&self, range: &Range, buckets: (i64, Option<&[i32]>)) -> Result<Sums, Trouble> {
        let rows = self.target.compared(self.comparison, self.hash, Ask::Sums, range, buckets).await;
        let mut sums = Sums::default();
        sums.add(&rows.map_err(|error| trouble(error, VerifyError::Target))?).map_err(VerifyError::Target)?;
        Ok(sums)
    }

    async fn legacy_hashes(
        &self,
        range: &Range,
        buckets: (i64, Option<&[i32]>),
        into: &mut Keys,
    ) -> Result<(), Trouble> {
        self.of_legacy(Ask::Keys, range, buckets, |rows| into.add(rows)).await
    }

    async fn new_hashes(&self, range: &Range, buckets: (i64, Option<&[i32]>), into: &mut Keys) -> Result<(), Trouble> {
        let rows = self.target.compared(self.comparison, self.hash, Ask::Keys, range, buckets).await;
        let rows = rows.map_err(|error| trouble(error, VerifyError::Target))?;
        into.add(&rows).map_err(|error| VerifyError::Target(error).into())
    }

    /// One chunk of the walk in ranges; its suspects are added.
    pub(super) async fn chunk(
        &mut self,
        after: Option<RowKey>,
        size: &mut u64,
        suspects: &mut Vec<Suspect>,
    ) -> Result<Step, VerifyError> {
        let mut range = Range { after, until: None };
        loop {
            let began = Instant::now();
            range.until = self.source.legacy_bound(self.legacy, &range, *size).await.map_err(VerifyError::Source)?;
            let (legacy, new) = tokio::join!(self.legacy_sums(&range, (1, None)), self.new_sums(&range, (1, None)));
            match (legacy, new) {
                (Ok(legacy), _) if legacy.moved > 0 => return Ok(Step::Moved),
                (Ok(legacy), Ok(new)) => {
                    self.legacy_rows += legacy.rows();
                    self.new_rows += new.rows();
                    if legacy.by != new.by {
                        self.narrow(range.clone(), legacy.rows().max(new.rows()), suspects).await?;
                    }
                    adapt(size, began.elapsed());
                    self.pace(legacy.rows().max(new.rows())).await?;
                    return Ok(Step::On(range.until));
                }
                (Err(Trouble::Failed(error)), _) | (_, Err(Trouble::Failed(error))) => return Err(error),
                (Err(Trouble::Late), _) | (_, Err(Trouble::Late)) if *size > *CHUNKS.start() => {
                    *size = (*size / 4).max(*CHUNKS.start());
                    range.until = None;
                }
                (Err(Trouble::Late), _) | (_, Err(Trouble::Late)) => return Err(VerifyError::TooSlow),
                // The mapping refuses one of its rows: that one is found by halves.
                (Err(Trouble::Refused(_)), new) => {
                    let rows = new.map_or(*size, |sums| sums.rows()).max(*size);
                    self.narrow(range.clone(), rows, suspects).await?;
                    self.pace(rows).await?;
                    return Ok(Step::On(range.until));
                }
                (_, Err(Trouble::Refused(message))) => return Err(VerifyError::Unreadable(message)),
            }
        }
    }

    /// A range that differs: halved while it is large, then told key by key.
    async fn narrow(&self, range: Range, rows: u64, suspects: &mut Vec<Suspect>) -> Result<(), VerifyError> {
        let mut ranges = vec![(range, rows)];
        while let Some((range, rows)) = ranges.pop() {
            self.is_told_to_stop()?;
            if rows > NARROW
                && let Some((lower, upper)) = self.halves(&range, rows).await?
            {
                for half in [lower, upper] {
                    let (legacy, new) =
                        tokio::join!(self.legacy_sums(&half, (1, None)), self.new_sums(&half, (1, None)));
                    match (legacy, new) {
                        (Ok(legacy), Ok(new)) if legacy.by == new.by => {}
                        (Ok(legacy), Ok(new)) => ranges.push((half, legacy.rows().max(new.rows()))),
                        (Err(Trouble::Failed(error)), _) | (_, Err(Trouble::Failed(error))) => return Err(error),
                        _ => ranges.push((half, rows / 2)),
                    }
                }
                continue;
            }
            self.tell(&range, suspects).await?;
        }
        Ok(())
    }

    /// A range cut where half of its rows lie below, on the side that has such a place.
    async fn halves(&self, range: &Range, rows: u64) -> Result<Option<(Range, Range)>, VerifyError> {
        let middle = self.source.legacy_bound(self.legacy, range, rows / 2).await.map_err(VerifyError::Source)?;
        let middle = match middle {
            Some(middle) => Some(middle),
            None => self.target.bound(self.comparison, range, rows / 2).await.map_err(VerifyError::Target)?,
        };
        let middle = middle.filter(|middle| Some(middle) != range.until.as_ref());
        Ok(middle.map(|middle| {
            let lower = Range { after: range.after.clone(), until: Some(middle.clone()) };
            (lower, Range { after: Some(middle), until: range.until.clone() })
        }))
    }

    /// The keys of a small range whose rows differ.
    async fn tell(&self, range: &Range, suspects: &mut Vec<Suspect>) -> Result<(), VerifyError> {
        let (mut on_legacy, mut on_new) = (Keys::default(), Keys::default());
        let legacy = self.legacy_hashes(range, (1, None), &mut on_legacy).await;
        match self.new_hashes(range, (1, None), &mut on_new).await {
            Ok(()) => {}
            Err(Trouble::Failed(error)) => return Err(error),
            Err(Trouble::Refused(message)) => return Err(VerifyError::Unreadable(message)),
            Err(Trouble::Late) => return Err(VerifyError::TooSlow),
        }
        match legacy {
            Ok(()) => {}
            Err(Trouble::Failed(error)) => return Err(error),
            // One row is refused, so none was told: all of them are looked at, one by one where need be.
            Err(_) => {
                on_legacy = Keys::default();
                let mut after = range.after.clone();
                loop {
                    let keys =
                        self.source.legacy_keys(self.legacy, after.as_ref(), range.until.as_ref(), SHIP_ROWS).await;
                    let keys = keys.map_err(VerifyError::Source)?;
                    after = keys.last().map(|at| at.key.clone());
                    let ended = (keys.len() as u32) < SHIP_ROWS;
                    suspects
                        .extend(keys.into_iter().map(|at| Suspect { key: Some(at.key.clone()), from: Some(at.key) }));
                    if ended {
                        break;
                    }
                }
            }
        }
        suspects.extend(differing(on_legacy.hashed, on_new.hashed, true));
        suspects.extend(on_legacy.nameless.into_iter().map(|from| Suspect { key: None, from: Some(from) }));
        Ok(())
    }

    /// A walk over the legacy side in its own order, into `sums` or `keys`. A row that the mapping refuses is found by eighths.
    async fn walk_legacy(
        &mut self,
        what: Ask,
        buckets: (i64, Option<&[i32]>),
        sums: &mut Sums,
        keys: &mut Keys,
        size: &mut u64,
    ) -> Result<(), VerifyError> {
        let mut range = Range::default();
        loop {
            let began = Instant::now();
            range.until = self.source.legacy_bound(self.legacy, &range, *size).await.map_err(VerifyError::Source)?;
            let (rows, done) = match what {
                Ask::Sums => match self.legacy_sums(&range, buckets).await {
                    Ok(found) => {
                        let rows = found.rows();
                        self.legacy_rows += rows;
                        sums.merge(found);
                        (rows, Ok(()))
                    }
                    Err(trouble) => (*size, Err(trouble)),
                },
                Ask::Keys => (*size, self.legacy_hashes(&range, buckets, keys).await),
            };
            match done {
                Ok(()) => {}
                Err(Trouble::Failed(error)) => return Err(error),
                Err(Trouble::Late | Trouble::Refused(_)) if *size > 1 => {
                    // Down to a single row, if one of them is refused.
                    *size = (*size / 8).max(1);
                    continue;
                }
                Err(Trouble::Late) => return Err(VerifyError::TooSlow),
                Err(Trouble::Refused(_)) => {
                    let one = self.source.legacy_keys(self.legacy, range.after.as_ref(), range.until.as_ref(), 1).await;
                    keys.nameless.extend(one.map_err(VerifyError::Source)?.into_iter().map(|at| at.key));
                }
            }
            adapt(size, began.elapsed());
            self.pace(rows).await?;
            if range.until.is_none() {
                return Ok(());
            }
            range.after = range.until.take();
        }
    }

    async fn walk_new(
        &mut self,
        what: Ask,
        buckets: (i64, Option<&[i32]>),
        sums: &mut Sums,
        keys: &mut Keys,
        size: &mut u64,
    ) -> Result<(), VerifyError> {
        let mut range = Range::default();
        loop {
            let began = Instant::now();
            range.until = self.target.bound(self.comparison, &range, *size).await.map_err(VerifyError::Target)?;
            let (rows, done) = match what {
                Ask::Sums => match self.new_sums(&range, buckets).await {
                    Ok(found) => {
                        let rows = found.rows();
                        self.new_rows += rows;
                        sums.merge(found);
                        (rows, Ok(()))
                    }
                    Err(trouble) => (*size, Err(trouble)),
                },
                Ask::Keys => (*size, self.new_hashes(&range, buckets, keys).await),
            };
            match done {
                Ok(()) => {}
                Err(Trouble::Failed(error)) => return Err(error),
                Err(Trouble::Late) if *size > *CHUNKS.start() => {
                    *size = (*size / 4).max(*CHUNKS.start());
                    continue;
                }
                Err(Trouble::Late) => return Err(VerifyError::TooSlow),
                Err(Trouble::Refused(message)) => return Err(VerifyError::Unreadable(message)),
            }
            adapt(size, began.elapsed());
            self.pace(rows).await?;
            if range.until.is_none() {
                return Ok(());
            }
            range.after = range.until.take();
        }
    }

    /// The first walk in buckets: what differs, in groups that are small enough to be held, and whether the mapping hands keys
    /// through after all.
    pub(super) async fn bucket_groups(
        &mut self,
        suspects: &mut Vec<Suspect>,
    ) -> Result<(Vec<Vec<i32>>, bool), VerifyError> {
        let (mut legacy, mut new, mut keys) = (Sums::default(), Sums::default(), Keys::default());
        let mut size = CHUNK;
        self.walk_legacy(Ask::Sums, (BUCKETS, None), &mut legacy, &mut keys, &mut size).await?;
        suspects.extend(keys.nameless.drain(..).map(|from| Suspect { key: None, from: Some(from) }));
        size = CHUNK;
        self.walk_new(Ask::Sums, (BUCKETS, None), &mut new, &mut keys, &mut size).await?;
        let all: std::collections::BTreeSet<i64> = legacy.by.keys().chain(new.by.keys()).copied().collect();
        let mut groups: Vec<Vec<i32>> = Vec::new();
        let mut held = u64::MAX;
        for bucket in all {
            let (on_legacy, on_new) = (legacy.by.get(&bucket), new.by.get(&bucket));
            if on_legacy == on_new {
                continue;
            }
            let rows = on_legacy.map_or(0, |s| s.0) + on_new.map_or(0, |s| s.0);
            if held.saturating_add(rows) > HELD {
                groups.push(Vec::new());
                held = 0;
            }
            held += rows;
            if let (Some(group), Ok(bucket)) = (groups.last_mut(), i32::try_from(bucket)) {
                group.push(bucket);
            }
        }
        Ok((groups, legacy.moved == 0 && self.legacy.key_types.len() == self.comparison.key_types.len()))
    }

    /// Another walk over both sides: the keys of these buckets that differ.
    pub(super) async fn bucket_keys(
        &mut self,
        group: &[i32],
        identical: bool,
        suspects: &mut Vec<Suspect>,
    ) -> Result<(), VerifyError> {
        let (mut on_legacy, mut on_new, mut sums) = (Keys::default(), Keys::default(), Sums::default());
        let mut size = CHUNK;
        self.walk_legacy(Ask::Keys, (BUCKETS, Some(group)), &mut sums, &mut on_legacy, &mut size).await?;
        size = CHUNK;
        self.walk_new(Ask::Keys, (BUCKETS, Some(group)), &mut sums, &mut on_new, &mut size).await?;
        suspects.extend(differing(on_legacy.hashed, on_new.hashed, identical));
        suspects.extend(on_legacy.nameless.into_iter().map(|from| Suspect { key: None, from: Some(from) }));
        Ok(())
    }

    /// Which of these new keys any legacy row yields now: a walk over all of them.
    pub(super) async fn yielded(&mut self, buckets: &[i32], keys: &mut Vec<RowKey>) -> Result<(), VerifyError> {
        let (mut found, mut sums, mut size) = (Keys::default(), Sums::default(), CHUNK);
        self.walk_legacy(Ask::Keys, (BUCKETS, Some(buckets)), &mut sums, &mut found, &mut size).await?;
        let yielded: std::collections::HashSet<RowKey> = found.hashed.into_iter().map(|(key, _, _)| key).collect();
        keys.retain(|key| !yielded.contains(key));
        Ok(())
    }

    /// A chunk's size to begin with.
    pub(super) fn first_size() -> u64 {
        CHUNK
    }
}

/// Keys with the hashes of their rows.
#[derive(Debug, Default)]
struct Keys {
    hashed: Vec<Hashed>,
    /// Legacy rows for which the mapping yields a key with NULL in it, or that it refuses.
    nameless: Vec<RowKey>,
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

/// The next chunk's size, after one that took so long.
fn adapt(size: &mut u64, took: Duration) {
    if took > AIM * 2 {
        *size = (*size / 2).max(*CHUNKS.start());
    } else if took < AIM / 2 {
        *size = (*size * 2).min(*CHUNKS.end());
    }
}
