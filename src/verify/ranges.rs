//! The walk in **ranges**, where the mapping hands the legacy key through as the new one (which every chunk proves: the legacy server
//! counts the rows for which it does not) and both servers order such keys alike: both sides' checksums of one range of keys after
//! the other, both servers at once, the first and the last range open to their side. What differs is halved until it has few legacy
//! rows, and then told key by key: of the new table's rows there may be any number between two legacy keys, so they are read a page at a
//! time.

use std::collections::HashSet;
use std::time::Instant;

use super::judge::{Hashed, Suspect, differing};
use super::pass::{CHUNKS, Keys, Pass, SHIP_ROWS, Trouble};
use super::patience::patiently;
use super::{GATHER, VerifyError};
use crate::session::is_late;
use crate::source::{Range, RowKey};

/// Up to so many legacy rows, the keys of a differing range are told; and so many new rows are read at a time.
const NARROW: u64 = 2_000;

/// What came of a range.
pub(super) enum Step {
    /// Go on after this key; `None`: that was all.
    On(Option<RowKey>),
    /// The mapping does not hand the key through: ranges cannot tell.
    Moved,
    /// So much differs in a chunk that what was told is looked at first: this is left of it.
    Part(Box<Narrowing>),
}

/// What is left of a chunk that differs.
pub(super) struct Narrowing {
    /// Where the chunk ends.
    next: Option<RowKey>,
    /// Parts that differ, and at most how many legacy rows each has.
    ranges: Vec<(Range, u64)>,
    telling: Option<Telling>,
    /// Its new rows were too many to be summed up, and are counted as they are told.
    uncounted: bool,
}

/// A range of few legacy rows, as far as it is told.
struct Telling {
    /// Its new rows that are still to be read.
    left: Range,
    /// Its legacy rows; none of them where the mapping refuses one, for then all are suspects.
    legacy: Vec<Hashed>,
    keys: HashSet<RowKey>,
    /// Of the new rows, those with a legacy key.
    matched: Vec<Hashed>,
    read: u64,
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
            range.until = self.end(&range, *size).await?;
            // Where the next one ends is looked up meanwhile; whether the lookup fails is for that chunk to find out.
            let next = async {
                let after = range.until.clone()?;
                let range = Range { after: Some(after.clone()), until: None };
                let until = self.source.legacy_bound(self.legacy, &range, *size).await.ok()?;
                Some((after, until))
            };
            let (legacy, new, ahead) = tokio::join!(self.legacy_sums(&range, None), self.new_sums(&range, None), next);
            self.ahead = ahead;
            match (legacy, new) {
                (Ok(legacy), _) if legacy.moved > 0 => return Ok(Step::Moved),
                (Ok(legacy), Ok(new)) => {
                    self.legacy_rows += legacy.rows();
                    self.new_rows += new.rows();
                    let rows = legacy.rows().max(new.rows());
                    self.adapt(size, began.elapsed());
                    self.pace(rows).await?;
                    if legacy.by != new.by {
                        let narrowing = Narrowing::of(range, legacy.rows(), false);
                        return self.narrow(narrowing, suspects).await;
                    }
                    return Ok(Step::On(range.until));
                }
                (Err(Trouble::Failed(error)), _) | (_, Err(Trouble::Failed(error))) => return Err(error),
                (Err(Trouble::Late), _) | (_, Err(Trouble::Late)) if *size > *CHUNKS.start() => {
                    *size = (*size / 4).max(*CHUNKS.start());
                    range.until = None;
                }
                // Few legacy rows, and more of the new table's than can be summed up in time.
                (Ok(legacy), Err(Trouble::Late)) => {
                    self.legacy_rows += legacy.rows();
                    self.pace(legacy.rows()).await?;
                    let narrowing = Narrowing::of(range, legacy.rows(), true);
                    return self.narrow(narrowing, suspects).await;
                }
                (Err(Trouble::Late), _) | (_, Err(Trouble::Late)) => return Err(VerifyError::TooSlow),
                // The mapping refuses one of its rows: that one is found by halves.
                (Err(Trouble::Refused(_)), new) => {
                    let rows = new.map_or(*size, |sums| sums.rows()).max(*size);
                    self.pace(rows).await?;
                    let narrowing = Narrowing::of(range, *size, false);
                    return self.narrow(narrowing, suspects).await;
                }
                (_, Err(Trouble::Refused(message))) => return Err(VerifyError::Unreadable(message)),
            }
        }
    }

    /// Where a chunk ends.
    async fn end(&mut self, range: &Range, size: u64) -> Result<Option<RowKey>, VerifyError> {
        match self.ahead.take() {
            Some((after, until)) if range.after.as_ref() == Some(&after) => Ok(until),
            _ => self.bound(range, size).await,
        }
    }

    /// The legacy key after so many others in the range, if there is one.
    pub(super) async fn bound(&self, range: &Range, rows: u64) -> Result<Option<RowKey>, VerifyError> {
        let found = patiently(self.stop, || self.source.legacy_bound(self.legacy, range, rows)).await;
        found.map_err(VerifyError::Source)
    }

    /// A chunk that differs: halved while it has many legacy rows, then told key by key, until enough is told for a look. All of that is
    /// read once more, and counts as read.
    pub(super) async fn narrow(
        &mut self,
        mut narrowing: Box<Narrowing>,
        suspects: &mut Vec<Suspect>,
    ) -> Result<Step, VerifyError> {
        loop {
            self.is_told_to_stop()?;
            if let Some(telling) = narrowing.telling.take() {
                narrowing.telling = self.tell(telling, narrowing.uncounted, suspects).await?;
            } else if let Some((range, rows)) = narrowing.ranges.pop() {
                match self.halves(&range, rows).await? {
                    Some(halves) => {
                        for half in halves {
                            let (legacy, new) = tokio::join!(self.legacy_sums(&half, None), self.new_sums(&half, None));
                            self.pace(rows / 2).await?;
                            match (legacy, new) {
                                (Ok(legacy), _) if legacy.moved > 0 => return Ok(Step::Moved),
                                (Ok(legacy), Ok(new)) if legacy.by == new.by => {}
                                (Err(Trouble::Failed(error)), _) | (_, Err(Trouble::Failed(error))) => {
                                    return Err(error);
                                }
                                (Ok(legacy), _) => narrowing.ranges.push((half, legacy.rows())),
                                _ => narrowing.ranges.push((half, rows / 2)),
                            }
                        }
                    }
                    None => narrowing.telling = Some(self.begin_telling(range, suspects).await?),
                }
            } else {
                return Ok(Step::On(narrowing.next));
            }
            let is_left = narrowing.telling.is_some() || !narrowing.ranges.is_empty();
            if is_left && suspects.len() >= GATHER {
                return Ok(Step::Part(narrowing));
            }
        }
    }

    /// Whether the mapping hands the key of every legacy row after this one through; of one that it refuses nothing is said. Where it refuses all,
    /// nothing is known.
    pub(super) async fn hands_keys_through(&mut self, after: Option<RowKey>) -> Result<bool, VerifyError> {
        let (mut range, mut size) = (Range { after, until: None }, self.first_size());
        let (mut told, mut refused) = (0, 0);
        loop {
            let began = Instant::now();
            range.until = self.bound(&range, size).await?;
            let rows = match self.legacy_sums(&range, None).await {
                Ok(sums) if sums.moved > 0 => return Ok(false),
                Ok(sums) => {
                    told += sums.rows();
                    sums.rows()
                }
                Err(Trouble::Failed(error)) => return Err(error),
                Err(_) if size > 1 => {
                    size = (size / 8).max(1);
                    continue;
                }
                Err(Trouble::Late) => return Err(VerifyError::TooSlow),
                Err(Trouble::Refused(_)) => {
                    refused += 1;
                    1
                }
            };
            self.adapt(&mut size, began.elapsed());
            self.pace(rows).await?;
            match range.until.take() {
                Some(until) => range.after = Some(until),
                None => return Ok(told > 0 || refused == 0),
            }
        }
    }

    /// A range with many legacy rows, cut where half of them lie below, or fewer where there are not as many as was thought. By their keys
    /// alone: one of the new table's may be none of the legacy types.
    async fn halves(&self, range: &Range, rows: u64) -> Result<Option<[Range; 2]>, VerifyError> {
        let mut below = rows / 2;
        while below > NARROW / 2 {
            let middle = self.bound(range, below).await?;
            if let Some(middle) = middle.filter(|middle| Some(middle) != range.until.as_ref()) {
                let lower = Range { after: range.after.clone(), until: Some(middle.clone()) };
                return Ok(Some([lower, Range { after: Some(middle), until: range.until.clone() }]));
            }
            below /= 2;
        }
        Ok(None)
    }

    /// The legacy rows of a range that has few of them.
    async fn begin_telling(&self, range: Range, suspects: &mut Vec<Suspect>) -> Result<Telling, VerifyError> {
        let mut on_legacy = Keys::default();
        let mut keys = HashSet::new();
        match self.legacy_hashes(&range, None, &mut on_legacy).await {
            Ok(()) => keys.extend(on_legacy.hashed.iter().map(|(key, _, _)| key.clone())),
            Err(Trouble::Failed(error)) => return Err(error),
            // One row is refused, so none was told: all of them are looked at, one by one where need be.
            Err(_) => {
                on_legacy = Keys::default();
                let mut after = range.after.clone();
                loop {
                    let ask = || self.source.legacy_keys(self.legacy, after.as_ref(), range.until.as_ref(), SHIP_ROWS);
                    let some = patiently(self.stop, ask).await.map_err(VerifyError::Source)?;
                    after = some.last().map(|at| at.key.clone());
                    let ended = (some.len() as u32) < SHIP_ROWS;
                    for at in some {
                        suspects.push(Suspect { key: Some(at.key.clone()), from: Some(at.key.clone()) });
                        keys.insert(at.key);
                    }
                    if ended {
                        break;
                    }
                }
            }
        }
        suspects.extend(on_legacy.nameless.into_iter().map(|from| Suspect { key: None, from: Some(from) }));
        Ok(Telling { left: range, legacy: on_legacy.hashed, keys, matched: Vec::new(), read: 0 })
    }

    /// The next page of a range's new rows: those that no legacy row has are told at once, and at the end what differs. Gives back what is
    /// left.
    async fn tell(
        &mut self,
        mut telling: Telling,
        uncounted: bool,
        suspects: &mut Vec<Suspect>,
    ) -> Result<Option<Telling>, VerifyError> {
        let until = patiently(self.stop, || self.target.bound(self.comparison, &telling.left, NARROW)).await;
        let until = until.map_err(|e| if is_late(&e) { VerifyError::TooSlow } else { VerifyError::Target(e) })?;
        let ended = until.is_none();
        let page = Range { after: telling.left.after.take(), until: until.or_else(|| telling.left.until.clone()) };
        let mut on_new = Keys::default();
        match self.new_hashes(&page, None, &mut on_new).await {
            Ok(()) => {}
            Err(Trouble::Failed(error)) => return Err(error),
            Err(Trouble::Refused(message)) => return Err(VerifyError::Unreadable(message)),
            Err(Trouble::Late) => return Err(VerifyError::TooSlow),
        }
        let rows = on_new.hashed.len() as u64;
        if uncounted {
            self.new_rows += rows;
        }
        telling.read += rows;
        let (matched, alone): (Vec<Hashed>, Vec<Hashed>) =
            on_new.hashed.into_iter().partition(|(key, _, _)| telling.keys.contains(key));
        telling.matched.extend(matched);
        suspects.extend(alone.into_iter().map(|(key, _, _)| Suspect { from: Some(key.clone()), key: Some(key) }));
        if !ended {
            telling.left.after = page.until;
            self.pace(rows).await?;
            return Ok(Some(telling));
        }
        // Where one was refused, all of them are suspects.
        if !telling.legacy.is_empty() {
            suspects.extend(differing(telling.legacy, telling.matched, true));
        }
        let unread = (telling.keys.len() as u64).saturating_sub(telling.read);
        self.pace(rows + unread).await?;
        Ok(None)
    }
}

impl Narrowing {
    /// All of a chunk, with at most so many legacy rows.
    fn of(chunk: Range, legacy_rows: u64, uncounted: bool) -> Box<Narrowing> {
        let next = chunk.until.clone();
        Box::new(Narrowing { next, ranges: vec![(chunk, legacy_rows)], telling: None, uncounted })
    }
}
