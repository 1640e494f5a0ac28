//! The walk in **ranges**, where the mapping hands the legacy key through as the new one (which every chunk proves: the legacy server
//! counts the rows for which it does not) and both servers order such keys alike: both sides' checksums of one range of keys after
//! the other, both servers at once, the first and the last range open to their side. What differs is halved until it is small, and
//! then told key by key.

use std::time::Instant;

use super::VerifyError;
use super::judge::{Suspect, differing};
use super::pass::{CHUNKS, Keys, Pass, SHIP_ROWS, Trouble};
use crate::source::{Range, RowKey};

/// Up to so many rows, the keys of a differing range are told.
const NARROW: u64 = 2_000;

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
                        return self.narrow(range, rows, suspects).await;
                    }
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
                    self.pace(rows).await?;
                    return self.narrow(range, rows, suspects).await;
                }
                (_, Err(Trouble::Refused(message))) => return Err(VerifyError::Unreadable(message)),
            }
        }
    }

    /// Where a chunk ends.
    async fn end(&mut self, range: &Range, size: u64) -> Result<Option<RowKey>, VerifyError> {
        match self.ahead.take() {
            Some((after, until)) if range.after.as_ref() == Some(&after) => Ok(until),
            _ => self.source.legacy_bound(self.legacy, range, size).await.map_err(VerifyError::Source),
        }
    }

    /// A range that differs: halved while it is large, then told key by key. All of that is read once more, and counts as read.
    async fn narrow(&mut self, range: Range, rows: u64, suspects: &mut Vec<Suspect>) -> Result<Step, VerifyError> {
        let next = range.until.clone();
        let mut ranges = vec![(range, rows)];
        while let Some((range, rows)) = ranges.pop() {
            self.is_told_to_stop()?;
            if rows > NARROW
                && let Some((lower, upper)) = self.halves(&range, rows).await?
            {
                for half in [lower, upper] {
                    let (legacy, new) = tokio::join!(self.legacy_sums(&half, None), self.new_sums(&half, None));
                    self.pace(rows / 2).await?;
                    match (legacy, new) {
                        (Ok(legacy), _) if legacy.moved > 0 => return Ok(Step::Moved),
                        (Ok(legacy), Ok(new)) if legacy.by == new.by => {}
                        (Ok(legacy), Ok(new)) => ranges.push((half, legacy.rows().max(new.rows()))),
                        (Err(Trouble::Failed(error)), _) | (_, Err(Trouble::Failed(error))) => return Err(error),
                        _ => ranges.push((half, rows / 2)),
                    }
                }
                continue;
            }
            self.tell(&range, suspects).await?;
            self.pace(rows).await?;
        }
        Ok(Step::On(next))
    }

    /// Whether the mapping hands the key of every legacy row after this one through; of one that it refuses nothing is said.
    pub(super) async fn hands_keys_through(&mut self, after: Option<RowKey>) -> Result<bool, VerifyError> {
        let (mut range, mut size) = (Range { after, until: None }, self.first_size());
        loop {
            let began = Instant::now();
            range.until = self.source.legacy_bound(self.legacy, &range, size).await.map_err(VerifyError::Source)?;
            let rows = match self.legacy_sums(&range, None).await {
                Ok(sums) if sums.moved > 0 => return Ok(false),
                Ok(sums) => sums.rows(),
                Err(Trouble::Failed(error)) => return Err(error),
                Err(_) if size > 1 => {
                    size = (size / 8).max(1);
                    continue;
                }
                Err(Trouble::Late) => return Err(VerifyError::TooSlow),
                Err(Trouble::Refused(_)) => 1,
            };
            self.adapt(&mut size, began.elapsed());
            self.pace(rows).await?;
            match range.until.take() {
                Some(until) => range.after = Some(until),
                None => return Ok(true),
            }
        }
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
        let legacy = self.legacy_hashes(range, None, &mut on_legacy).await;
        match self.new_hashes(range, None, &mut on_new).await {
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
}
