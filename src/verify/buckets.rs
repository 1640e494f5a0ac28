//! The walk in **buckets**, for mappings that give other keys, and for text, which servers order by different collations: each side is
//! walked in its own order, and its rows are summed up by the hash of the new key; another walk tells the keys of the buckets that
//! differ.
//!
//! Between the two readings of a row lies most of a walk, so where others write most buckets of a large table differ, and hold more rows
//! than can be held. What really differs does so in every walk: further walks, in finer buckets, leave what differed only in one.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Instant;

use super::VerifyError;
use super::judge::{Suspect, differing};
use super::pass::{Buckets, CHUNKS, Keys, Pass, Sums, Trouble};
use super::patience::patiently;
use crate::mapping::compare::Ask;
use crate::source::{Range, RowKey};

/// How many buckets, at first and where that leaves too much; the latter are parts of the former.
const BUCKETS: i64 = 4096;
const FINE_BUCKETS: i64 = BUCKETS * 64;
/// How many rows' keys are held at a time.
const HELD: u64 = 50_000;
/// Narrowing takes a walk, as each group does: only where there are more groups than this.
const GROUPS_WORTH_A_WALK: u64 = 3;
/// Rows a chunk of a walk in all fine buckets, whose answer has nearly as many rows.
const FINE_CHUNK: u64 = 20_000;

/// Buckets that differ: out of how many, and how many rows of both sides each has.
struct Differing {
    out_of: i64,
    rows: BTreeMap<i64, u64>,
}

/// Some of them, with rows that are few enough to be held.
pub(super) struct Group {
    out_of: i64,
    buckets: Vec<i64>,
}

impl Differing {
    fn between(out_of: i64, legacy: &Sums, new: &Sums) -> Differing {
        let all: BTreeSet<i64> = legacy.by.keys().chain(new.by.keys()).copied().collect();
        let sums = all.into_iter().map(|bucket| (bucket, legacy.by.get(&bucket), new.by.get(&bucket)));
        let rows = sums
            .filter(|(_, on_legacy, on_new)| on_legacy != on_new)
            .map(|(bucket, on_legacy, on_new)| (bucket, on_legacy.map_or(0, |s| s.0) + on_new.map_or(0, |s| s.0)));
        Differing { out_of, rows: rows.collect() }
    }

    fn rows(&self) -> u64 {
        self.rows.values().sum()
    }

    fn groups(self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut held = u64::MAX;
        for (bucket, rows) in self.rows {
            if held.saturating_add(rows) > HELD {
                groups.push(Group { out_of: self.out_of, buckets: Vec::new() });
                held = 0;
            }
            held += rows;
            if let Some(group) = groups.last_mut() {
                group.buckets.push(bucket);
            }
        }
        groups
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Legacy,
    New,
}

impl Pass<'_> {
    /// The first walks in buckets: what differs, and whether the mapping hands keys through after all.
    pub(super) async fn bucket_groups(
        &mut self,
        suspects: &mut Vec<Suspect>,
    ) -> Result<(Vec<Group>, bool), VerifyError> {
        let (legacy, new, nameless) = self.bucket_sums(BUCKETS, None).await?;
        let mut nameless: HashSet<RowKey> = nameless.into_iter().collect();
        let mut differing = Differing::between(BUCKETS, &legacy, &new);
        while differing.rows() > HELD * GROUPS_WORTH_A_WALK {
            let before = differing.rows();
            differing = self.narrowed(&differing, &mut nameless).await?;
            if differing.rows() > before / 2 {
                break;
            }
        }
        suspects.extend(nameless.into_iter().map(|from| Suspect { key: None, from: Some(from) }));
        let identical = legacy.moved == 0
            && !self.comparison.folds_keys()
            && self.legacy.key_types.len() == self.comparison.key_types.len();
        Ok((differing.groups(), identical))
    }

    /// Of these buckets, what differs in another walk, too, in finer ones. A legacy row that has no new key by now is in no bucket any more.
    async fn narrowed(&mut self, before: &Differing, nameless: &mut HashSet<RowKey>) -> Result<Differing, VerifyError> {
        let wanted: Option<Vec<i64>> = (before.out_of == FINE_BUCKETS).then(|| before.rows.keys().copied().collect());
        let (legacy, new, without_key) = self.bucket_sums(FINE_BUCKETS, wanted.as_deref()).await?;
        nameless.extend(without_key);
        let mut differing = Differing::between(FINE_BUCKETS, &legacy, &new);
        differing.rows.retain(|bucket, _| before.rows.contains_key(&(bucket % before.out_of)));
        Ok(differing)
    }

    /// A walk over both sides; and the legacy rows that have no new key.
    async fn bucket_sums(
        &mut self,
        out_of: i64,
        wanted: Option<&[i64]>,
    ) -> Result<(Sums, Sums, Vec<RowKey>), VerifyError> {
        let (mut legacy, mut new, mut keys) = (Sums::default(), Sums::default(), Keys::default());
        self.walk(Side::Legacy, Ask::Sums, (out_of, wanted), &mut legacy, &mut keys).await?;
        self.walk(Side::New, Ask::Sums, (out_of, wanted), &mut new, &mut keys).await?;
        Ok((legacy, new, keys.nameless))
    }

    /// Another walk over both sides: the keys of this group's buckets that differ.
    pub(super) async fn bucket_keys(
        &mut self,
        group: &Group,
        identical: bool,
        suspects: &mut Vec<Suspect>,
    ) -> Result<(), VerifyError> {
        let (mut on_legacy, mut on_new, mut sums) = (Keys::default(), Keys::default(), Sums::default());
        let buckets = (group.out_of, Some(group.buckets.as_slice()));
        self.walk(Side::Legacy, Ask::Keys, buckets, &mut sums, &mut on_legacy).await?;
        self.walk(Side::New, Ask::Keys, buckets, &mut sums, &mut on_new).await?;
        suspects.extend(differing(on_legacy.hashed, on_new.hashed, identical));
        suspects.extend(on_legacy.nameless.into_iter().map(|from| Suspect { key: None, from: Some(from) }));
        Ok(())
    }

    /// Which of these new keys, of a group's buckets, any legacy row yields now: a walk over all of them.
    pub(super) async fn yielded(&mut self, group: &Group, keys: &mut Vec<RowKey>) -> Result<(), VerifyError> {
        let (mut found, mut sums) = (Keys::default(), Sums::default());
        let buckets = (group.out_of, Some(group.buckets.as_slice()));
        self.walk(Side::Legacy, Ask::Keys, buckets, &mut sums, &mut found).await?;
        let yielded: HashSet<RowKey> = found.hashed.into_iter().map(|(key, _, _)| key).collect();
        keys.retain(|key| !yielded.contains(key));
        Ok(())
    }

    /// A walk over one side in its own order, into `sums` or `keys`. A legacy row that the mapping refuses is found by eighths.
    async fn walk(
        &mut self,
        side: Side,
        what: Ask,
        (out_of, wanted): (i64, Option<&[i64]>),
        sums: &mut Sums,
        keys: &mut Keys,
    ) -> Result<(), VerifyError> {
        let buckets = Some((out_of, wanted));
        let all_fine = what == Ask::Sums && out_of == FINE_BUCKETS && wanted.is_none();
        let most = if all_fine { FINE_CHUNK } else { u64::MAX };
        let is_first = what == Ask::Sums && out_of == BUCKETS;
        if side == Side::Legacy && !is_first {
            self.read_again();
        }
        let mut size = self.first_size();
        // Only the first walk counts the rows; of others it is known how many there were.
        let all = if side == Side::Legacy { self.legacy_rows } else { self.new_rows };
        let mut told = 0;
        // Down to a single row, if one of them may be refused.
        let least = if side == Side::Legacy { 1 } else { *CHUNKS.start() };
        let mut range = Range::default();
        loop {
            size = size.min(most);
            let began = Instant::now();
            range.until = match side {
                Side::Legacy => self.bound(&range, size).await?,
                Side::New => {
                    let found = patiently(self.stop, || self.target.bound(self.comparison, &range, size)).await;
                    found.map_err(VerifyError::Target)?
                }
            };
            let (rows, done) = match what {
                Ask::Sums => match self.sums(side, &range, buckets).await {
                    Ok(found) => {
                        let rows = if wanted.is_none() { found.rows() } else { size };
                        // The first walk counts them.
                        if is_first {
                            match side {
                                Side::Legacy => self.legacy_rows += rows,
                                Side::New => self.new_rows += rows,
                            }
                        }
                        sums.merge(found);
                        (rows, Ok(()))
                    }
                    Err(trouble) => (size, Err(trouble)),
                },
                Ask::Keys => (size, self.hashes(side, &range, buckets, keys).await),
            };
            match done {
                Ok(()) => {}
                Err(Trouble::Failed(error)) => return Err(error),
                Err(Trouble::Refused(message)) if side == Side::New => return Err(VerifyError::Unreadable(message)),
                Err(Trouble::Late | Trouble::Refused(_)) if size > least => {
                    size = (size / 8).max(least);
                    continue;
                }
                Err(Trouble::Late) => return Err(VerifyError::TooSlow),
                Err(Trouble::Refused(_)) => {
                    let ask = || self.source.legacy_keys(self.legacy, range.after.as_ref(), range.until.as_ref(), 1);
                    let one = patiently(self.stop, ask).await;
                    keys.nameless.extend(one.map_err(VerifyError::Source)?.into_iter().map(|at| at.key));
                }
            }
            self.adapt(&mut size, began.elapsed());
            let rows = if is_first { rows } else { rows.min(all.saturating_sub(told)) };
            told += rows;
            self.pace(rows).await?;
            if range.until.is_none() {
                return Ok(());
            }
            range.after = range.until.take();
        }
    }

    async fn sums(&self, side: Side, range: &Range, buckets: Buckets<'_>) -> Result<Sums, Trouble> {
        match side {
            Side::Legacy => self.legacy_sums(range, buckets).await,
            Side::New => self.new_sums(range, buckets).await,
        }
    }

    async fn hashes(&self, side: Side, range: &Range, buckets: Buckets<'_>, keys: &mut Keys) -> Result<(), Trouble> {
        match side {
            Side::Legacy => self.legacy_hashes(range, buckets, keys).await,
            Side::New => self.new_hashes(range, buckets, keys).await,
        }
    }
}
