//! The walk in **buckets**, for mappings that give other keys, and for text, which servers order by different collations: each side is
//! walked in its own order, and its rows are summed up by the hash of the new key; another walk tells the keys of the buckets that
//! differ.

use std::time::Instant;

use super::VerifyError;
use super::judge::{Suspect, differing};
use super::pass::{Buckets, CHUNKS, Keys, Pass, Sums, Trouble};
use crate::mapping::compare::Ask;
use crate::source::{Range, RowKey};

/// How many buckets, and how many rows' keys are held at a time.
const BUCKETS: i64 = 4096;
const HELD: u64 = 50_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Legacy,
    New,
}

impl Pass<'_> {
    /// The first walk in buckets: what differs, in groups that are small enough to be held, and whether the mapping hands keys
    /// through after all.
    pub(super) async fn bucket_groups(
        &mut self,
        suspects: &mut Vec<Suspect>,
    ) -> Result<(Vec<Vec<i32>>, bool), VerifyError> {
        let (mut legacy, mut new, mut keys) = (Sums::default(), Sums::default(), Keys::default());
        let mut size = self.first_size();
        self.walk(Side::Legacy, Ask::Sums, Some((BUCKETS, None)), &mut legacy, &mut keys, &mut size).await?;
        suspects.extend(keys.nameless.drain(..).map(|from| Suspect { key: None, from: Some(from) }));
        size = self.first_size();
        self.walk(Side::New, Ask::Sums, Some((BUCKETS, None)), &mut new, &mut keys, &mut size).await?;
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
        let mut size = self.first_size();
        self.walk(Side::Legacy, Ask::Keys, Some((BUCKETS, Some(group))), &mut sums, &mut on_legacy, &mut size).await?;
        size = self.first_size();
        self.walk(Side::New, Ask::Keys, Some((BUCKETS, Some(group))), &mut sums, &mut on_new, &mut size).await?;
        suspects.extend(differing(on_legacy.hashed, on_new.hashed, identical));
        suspects.extend(on_legacy.nameless.into_iter().map(|from| Suspect { key: None, from: Some(from) }));
        Ok(())
    }

    /// Which of these new keys any legacy row yields now: a walk over all of them.
    pub(super) async fn yielded(&mut self, buckets: &[i32], keys: &mut Vec<RowKey>) -> Result<(), VerifyError> {
        let (mut found, mut sums, mut size) = (Keys::default(), Sums::default(), self.first_size());
        self.walk(Side::Legacy, Ask::Keys, Some((BUCKETS, Some(buckets))), &mut sums, &mut found, &mut size).await?;
        let yielded: std::collections::HashSet<RowKey> = found.hashed.into_iter().map(|(key, _, _)| key).collect();
        keys.retain(|key| !yielded.contains(key));
        Ok(())
    }

    /// A walk over one side in its own order, into `sums` or `keys`. A legacy row that the mapping refuses is found by eighths.
    async fn walk(
        &mut self,
        side: Side,
        what: Ask,
        buckets: Buckets<'_>,
        sums: &mut Sums,
        keys: &mut Keys,
        size: &mut u64,
    ) -> Result<(), VerifyError> {
        // Down to a single row, if one of them may be refused.
        let least = if side == Side::Legacy { 1 } else { *CHUNKS.start() };
        let mut range = Range::default();
        loop {
            let began = Instant::now();
            range.until = match side {
                Side::Legacy => {
                    self.source.legacy_bound(self.legacy, &range, *size).await.map_err(VerifyError::Source)?
                }
                Side::New => self.target.bound(self.comparison, &range, *size).await.map_err(VerifyError::Target)?,
            };
            let (rows, done) = match what {
                Ask::Sums => match self.sums(side, &range, buckets).await {
                    Ok(found) => {
                        let rows = found.rows();
                        match side {
                            Side::Legacy => self.legacy_rows += rows,
                            Side::New => self.new_rows += rows,
                        }
                        sums.merge(found);
                        (rows, Ok(()))
                    }
                    Err(trouble) => (*size, Err(trouble)),
                },
                Ask::Keys => (*size, self.hashes(side, &range, buckets, keys).await),
            };
            match done {
                Ok(()) => {}
                Err(Trouble::Failed(error)) => return Err(error),
                Err(Trouble::Refused(message)) if side == Side::New => return Err(VerifyError::Unreadable(message)),
                Err(Trouble::Late | Trouble::Refused(_)) if *size > least => {
                    *size = (*size / 8).max(least);
                    continue;
                }
                Err(Trouble::Late) => return Err(VerifyError::TooSlow),
                Err(Trouble::Refused(_)) => {
                    let one = self.source.legacy_keys(self.legacy, range.after.as_ref(), range.until.as_ref(), 1).await;
                    keys.nameless.extend(one.map_err(VerifyError::Source)?.into_iter().map(|at| at.key));
                }
            }
            self.adapt(size, began.elapsed());
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
