//! The second look at keys that looked different: once more without a lock, and what is left under its lane's.
//!
//! Guarantees: what is told as a difference was seen while both sides of its lane were locked, the logs agreed, and no event of its
//! aggregate was open; so no event that was committed when the legacy row was read is missing from what the new table shows. A row
//! of the new table whose aggregate cannot be told from its key has no lane to lock: see [`Look::fenced`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::VerifyError;
use super::judge::{Judgement, Rule, Seen, Suspect, judge};
use super::patience::patiently;
use super::report::{Difference, Kind, UNKNOWN, Waiting};
use crate::disposition::{self, Disposition, said};
use crate::event::{Event, Lane};
use crate::failpoint::reach;
use crate::lease;
use crate::mapping::compare::Comparison;
use crate::source::{KeyAt, Legacy, LegacyRow, RowKey, Source, SourceLane};
use crate::target::{Found, Looked, Shipped, Target, TargetLane};

/// Legacy rows that are read at a time under a lock, and their bytes.
const ROWS: usize = 200;
const BYTES: u64 = 8 << 20;
/// Keys of the new table that are asked for at a time, without a lock.
const KEYS: usize = 2_000;
/// How long a lane is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long events that are on their way are waited for, where there is no lane to lock.
const FENCE: Duration = Duration::from_secs(60);
/// Without events: how long until the second look.
const TWICE: Duration = Duration::from_secs(1);

/// What a look needs.
pub(crate) struct Look<'a> {
    pub(crate) source: &'a Source,
    pub(crate) target: &'a Target,
    pub(crate) legacy: &'a Legacy,
    pub(crate) comparison: &'a Comparison,
    pub(crate) rule: Rule<'a>,
    /// Aggregate types whose failed events hold nobody back.
    pub(crate) pass: &'a [String],
    pub(crate) batch: u32,
    pub(crate) stop: &'a CancellationToken,
    pub(crate) without_events: bool,
    /// Whether it is known of every legacy row that the mapping hands its key through: then a key that no legacy row has is nobody's. Else any
    /// other row may yield it by now, and it is homeless.
    pub(crate) through: bool,
    /// Up to here events of the type did not come to an end however long they were waited for.
    pub(crate) stuck_up_to: Mutex<Option<i64>>,
}

/// Keys that stand in new, without a legacy row that would tell their lane.
pub(crate) type Homeless = Vec<Suspect>;

/// Where suspects are to be looked at.
#[derive(Debug, Default)]
pub(crate) struct Homes {
    pub(crate) by_lane: BTreeMap<Lane, Vec<Suspect>>,
    pub(crate) homeless: Homeless,
    /// Their legacy row is there, and its aggregate is NULL: it has no lane.
    pub(crate) unowned: Vec<Suspect>,
}

impl Look<'_> {
    /// What these are, by what was seen.
    pub(crate) fn judged(&self, suspects: &[Suspect], seen: &Seen) -> Judgement {
        judge(suspects, seen, &self.rule)
    }

    /// Those that still look different, without a lock; most were on their way. And how many rows are left over by the others, and whether one
    /// of their rows yields another key than its own.
    pub(crate) async fn unlocked(&self, suspects: &[Suspect]) -> Result<(Vec<Suspect>, u64, bool), VerifyError> {
        let (seen, _) = self.seen_unlocked(suspects).await?;
        let Judgement { unequal, left_over, .. } = judge(suspects, &seen, &self.rule);
        let left = suspects.iter().filter(|suspect| unequal.contains(suspect)).cloned().collect();
        Ok((left, left_over, !seen.looked.iter().all(keeps_key)))
    }

    /// Looked at twice, for rows whose changes emit no events: what is different both times is. Of these, given back: the keys that another
    /// legacy row may yield.
    pub(crate) async fn twice(&self, suspects: &[Suspect]) -> Result<(Judgement, Homeless, bool), VerifyError> {
        let (first, left_over, moved) = self.unlocked(suspects).await?;
        if first.is_empty() {
            return Ok((Judgement { left_over, ..Judgement::default() }, Vec::new(), moved));
        }
        self.pause(TWICE).await?;
        let (seen, _) = self.seen_unlocked(&first).await?;
        let mut judgement = judge(&first, &seen, &self.rule);
        judgement.left_over += left_over;
        let homeless = if self.through { Vec::new() } else { judgement.take_homeless(&seen) };
        Ok((judgement, homeless, moved))
    }

    /// Rows whose aggregate is NULL. No copy or repair writes them, for there is no lane to lock; but capture writes their events, under the
    /// key's text: refused is what differs as it did before all events of the type that were committed then were applied. Those that differ
    /// otherwise by now, or have an aggregate, or are gone, are given back.
    pub(crate) async fn unowned(&self, suspects: &[Suspect]) -> Result<(Judgement, Vec<Suspect>), VerifyError> {
        let (first, mut others) = self.unowned_now(suspects).await?;
        let mut told = Judgement { left_over: first.left_over, ..Judgement::default() };
        if first.unequal.is_empty() {
            return Ok((told, others));
        }
        let kind = &self.legacy.aggregate_type;
        if !self.without_events && self.events_are_stuck(kind).await? {
            let keys: BTreeSet<Vec<Option<String>>> = first.unequal.iter().map(Suspect::named).collect();
            let waiting = keys.into_iter().map(|key| Waiting {
                entity: String::new(),
                key,
                aggregate_id: None,
                event: None,
                status: format!(
                    "{UNKNOWN}, for events of {kind} are waiting, and whether one is this row's, whose aggregate is NULL, cannot be told"
                ),
            });
            told.waiting = waiting.collect();
            told.unequal = first.unequal;
            return Ok((told, others));
        }
        let before: HashMap<_, _> = first.differences.into_iter().map(|d| ((d.kind, d.key.clone()), d)).collect();
        let (second, gone) = self.unowned_now(&first.unequal.into_iter().collect::<Vec<_>>()).await?;
        others.extend(gone);
        told.left_over += second.left_over;
        let same = second.differences.iter().filter(|d| before.get(&(d.kind, d.key.clone())) == Some(*d));
        let still: HashSet<&RowKey> = same.filter_map(|d| d.legacy_key.as_ref()).collect();
        for suspect in second.unequal {
            match suspect.from.clone().filter(|from| still.contains(from)) {
                Some(from) => {
                    let message = Some(crate::source::NO_AGGREGATE.to_owned());
                    let refused = Difference::new(Kind::Refused, suspect.named(), Some(from), None);
                    told.differences.push(Difference { message, ..refused });
                    told.unequal.insert(suspect);
                }
                None => others.push(suspect),
            }
        }
        Ok((told, others))
    }

    /// What these are now whose aggregate is NULL; and those that have one, or are gone.
    async fn unowned_now(&self, suspects: &[Suspect]) -> Result<(Judgement, Vec<Suspect>), VerifyError> {
        let (mut all, mut others) = (Judgement::default(), Vec::new());
        for some in suspects.chunks(ROWS) {
            let (seen, at) = self.seen_unlocked(some).await?;
            let still: HashSet<RowKey> =
                at.into_iter().filter(|at| at.aggregate_id.is_none()).map(|at| at.key).collect();
            let is_still = |s: &Suspect| s.from.as_ref().is_some_and(|from| still.contains(from));
            let (here, elsewhere): (Vec<Suspect>, Vec<Suspect>) = some.iter().cloned().partition(is_still);
            others.extend(elsewhere);
            all.add(judge(&here, &seen, &self.rule));
        }
        Ok((all, others))
    }

    /// Rows that were in another lane whenever one was locked; or have none, and were others whenever events were waited for.
    pub(crate) fn never_at_home(&self, suspects: impl Iterator<Item = Suspect>) -> Judgement {
        let waiting = suspects.map(|suspect| Waiting {
            entity: String::new(),
            key: suspect.named(),
            aggregate_id: None,
            event: None,
            status: format!("{UNKNOWN}, for the row, or its aggregate, is another one at every look"),
        });
        Judgement { waiting: waiting.collect(), ..Judgement::default() }
    }

    /// Of these, the suspects whose own key stands in new.
    pub(crate) async fn standing(&self, suspects: &[Suspect]) -> Result<Vec<Suspect>, VerifyError> {
        if suspects.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.found(keys(suspects)).await?;
        let stands = |suspect: &&Suspect| suspect.key.as_ref().is_some_and(|key| found.contains_key(key));
        Ok(suspects.iter().filter(stands).cloned().collect())
    }

    async fn seen_unlocked(&self, suspects: &[Suspect]) -> Result<(Seen, Vec<KeyAt>), VerifyError> {
        let mut seen = Seen::default();
        let mut at = Vec::new();
        let mut left = froms(suspects);
        while !left.is_empty() {
            let now: Vec<RowKey> = left.drain(..left.len().min(ROWS)).collect();
            let rows = patiently(self.stop, || self.source.legacy_rows(self.legacy, &now, BYTES)).await;
            let (rows, beyond) = split(rows.map_err(VerifyError::Source)?);
            left.extend(beyond);
            at.extend(rows.iter().map(|(at, _)| at.clone()));
            self.note_rows(&rows, &mut seen);
            let events = self.events(rows);
            let mut groups = vec![events];
            while let Some(group) = groups.pop() {
                let looked = {
                    let rows = Shipped::new(&group);
                    patiently(self.stop, || self.target.look(self.comparison, &rows)).await
                };
                match looked {
                    Ok(looked) => seen.looked.extend(looked),
                    Err(error) => {
                        let nothing = async { self.target.look(self.comparison, &Shipped::new(&[])).await };
                        refused(error, group, &mut groups, &mut seen, nothing).await?;
                    }
                }
            }
        }
        seen.found = self.found(keys(suspects)).await?;
        Ok((seen, at))
    }

    /// What stands under these keys, without a lock. A key that the new table's types do not take is found by halves.
    async fn found(&self, keys: Vec<RowKey>) -> Result<HashMap<RowKey, Found>, VerifyError> {
        let mut all = HashMap::new();
        let mut parts: Vec<Vec<RowKey>> = keys.chunks(KEYS).map(<[RowKey]>::to_vec).collect();
        while let Some(part) = parts.pop() {
            let found = patiently(self.stop, || self.target.found(self.comparison, &part)).await;
            match found {
                Ok(found) => all.extend(found),
                Err(error) => parts.extend(without_such_keys(error, part)?),
            }
        }
        Ok(all)
    }

    fn note_rows(&self, rows: &[(KeyAt, String)], seen: &mut Seen) {
        for (at, _) in rows {
            seen.there.insert(at.key.clone(), at.aggregate_id.clone().unwrap_or_default());
        }
    }

    fn events(&self, rows: Vec<(KeyAt, String)>) -> Vec<(RowKey, Event)> {
        let event = |at: &KeyAt, payload| self.legacy.event(at.aggregate_id.as_deref().unwrap_or_default(), payload);
        rows.into_iter().map(|(at, payload)| (at.key.clone(), event(&at, payload))).collect()
    }

    /// The suspects by the lane of their aggregate, as it is now; and those for which none can be told.
    pub(crate) async fn by_lane(&self, suspects: &[Suspect]) -> Result<Homes, VerifyError> {
        let mut lanes: HashMap<RowKey, Option<Lane>> = HashMap::new();
        let all = froms(suspects);
        for some in all.chunks(ROWS) {
            let rows = patiently(self.stop, || self.source.legacy_rows(self.legacy, some, 0)).await;
            for row in rows.map_err(VerifyError::Source)? {
                lanes.insert(row.at.key, row.at.lane);
            }
        }
        let gone: Vec<RowKey> = all.iter().filter(|key| !lanes.contains_key(key)).cloned().collect();
        if self.through && !gone.is_empty() {
            let found = patiently(self.stop, || self.source.aggregates_of(self.legacy, &gone)).await;
            let found = found.map_err(VerifyError::Source)?.unwrap_or_default();
            for at in found.into_iter().filter(|at| at.lane.is_some()) {
                lanes.insert(at.key, at.lane);
            }
        }
        let mut homes = Homes::default();
        for suspect in suspects {
            match suspect.from.as_ref().and_then(|from| lanes.get(from)) {
                Some(Some(lane)) => homes.by_lane.entry(*lane).or_default().push(suspect.clone()),
                Some(None) => homes.unowned.push(suspect.clone()),
                None => homes.homeless.push(suspect.clone()),
            }
        }
        Ok(homes)
    }

    /// Both sides of a lane, locked and healed.
    pub(crate) async fn take(&self, lane: Lane) -> Result<Option<(SourceLane, TargetLane)>, VerifyError> {
        let taken = lease::take_healed(self.source, self.target, lane, PATIENCE, self.pass, self.batch);
        let taken = tokio::select! {
            taken = taken => taken.map_err(VerifyError::Lane)?,
            () = self.stop.cancelled() => return Err(VerifyError::Stopped),
        };
        Ok(taken)
    }

    /// Under the lane's lock. The suspects that belong to another lane by now are given back.
    pub(crate) async fn locked(
        &self,
        lane: Lane,
        suspects: &[Suspect],
    ) -> Result<(Judgement, Vec<Suspect>), VerifyError> {
        let mut all = (Judgement::default(), Vec::new());
        let mut waiting = suspects.to_vec();
        while !waiting.is_empty() {
            let some: Vec<Suspect> = waiting.drain(..waiting.len().min(ROWS)).collect();
            let Some((mut source, mut target)) = self.take(lane).await? else {
                return Err(VerifyError::Busy(lane));
            };
            let seen = self.seen_locked(&mut source, &mut target, &some).await;
            target.abandon().await;
            source.release_lease().await;
            let (seen, elsewhere, later) = seen?;
            let here: Vec<Suspect> =
                some.into_iter().filter(|s| !elsewhere.contains(s) && !later.contains(s)).collect();
            let judgement = judge(&here, &seen, &self.rule);
            all.0.add(judgement);
            all.1.extend(elsewhere);
            waiting.extend(later);
        }
        Ok(all)
    }

    /// What the lane's suspects are under its lock; those of another lane; those whose rows were too much for one look.
    pub(crate) async fn seen_locked(
        &self,
        source: &mut SourceLane,
        target: &mut TargetLane,
        suspects: &[Suspect],
    ) -> Result<(Seen, Vec<Suspect>, Vec<Suspect>), VerifyError> {
        let mut seen = Seen::default();
        let all = froms(suspects);
        // The rows first, then the open events: what is committed in between is seen as an open event.
        let rows = source.legacy_rows(self.legacy, &all, BYTES).await.map_err(VerifyError::Source)?;
        reach("look_read");
        let elsewhere: HashSet<RowKey> =
            rows.iter().filter(|row| row.at.lane != Some(source.lane)).map(|row| row.at.key.clone()).collect();
        let (rows, beyond) = split(rows);
        let later: HashSet<RowKey> = beyond.into_iter().collect();
        let rows: Vec<(KeyAt, String)> = rows.into_iter().filter(|(at, _)| !elsewhere.contains(&at.key)).collect();
        self.note_rows(&rows, &mut seen);
        let gone: Vec<RowKey> = all
            .iter()
            .filter(|key| !seen.there.contains_key(key) && !elsewhere.contains(key) && !later.contains(key))
            .cloned()
            .collect();
        let mut homeless = HashSet::new();
        // Under this lock nobody keeps another row from yielding the key of one that is gone.
        if !self.through {
            homeless.extend(gone);
        } else if !gone.is_empty() {
            match self.source.aggregates_of(self.legacy, &gone).await.map_err(VerifyError::Source)? {
                Some(found) => {
                    seen.aggregates.extend(found.into_iter().filter_map(|at| Some((at.key, at.aggregate_id?))))
                }
                None => homeless.extend(gone),
            }
        }
        self.note_open(source, &mut seen).await?;
        target.canonical().await.map_err(VerifyError::Target)?;
        let mut groups = vec![self.events(rows)];
        while let Some(group) = groups.pop() {
            match target.look(self.comparison, &Shipped::new(&group)).await {
                Ok(looked) => {
                    seen.looked.extend::<Vec<Looked>>(looked);
                    seen.rows.extend(group);
                }
                Err(error) => {
                    target.undo().await.map_err(VerifyError::Target)?;
                    let nothing = async { target.look(self.comparison, &Shipped::new(&[])).await };
                    refused(error, group, &mut groups, &mut seen, nothing).await?;
                }
            }
        }
        let mut parts = vec![keys(suspects)];
        while let Some(part) = parts.pop() {
            match target.found(self.comparison, &part).await {
                Ok(found) => seen.found.extend(found),
                Err(error) => {
                    target.undo().await.map_err(VerifyError::Target)?;
                    parts.extend(without_such_keys(error, part)?);
                }
            }
        }
        let elsewhere: HashSet<RowKey> = elsewhere.union(&homeless).cloned().collect();
        Ok((seen, of(suspects, &elsewhere), of(suspects, &later)))
    }

    async fn note_open(&self, source: &mut SourceLane, seen: &mut Seen) -> Result<(), VerifyError> {
        let of: HashMap<RowKey, String> =
            seen.there.iter().chain(&seen.aggregates).map(|(k, a)| (k.clone(), a.clone())).collect();
        let ids: Vec<&str> = of.values().map(String::as_str).collect::<HashSet<_>>().into_iter().collect();
        let kind = &self.legacy.aggregate_type;
        let open = source.open_aggregates(self.legacy, &ids, &[]).await.map_err(VerifyError::Source)?;
        let stuck: Vec<&str> = open.waiting.keys().map(String::as_str).collect();
        let events: HashMap<String, (i64, String)> = if stuck.is_empty() {
            HashMap::new()
        } else {
            let found = source.waiting_events(kind, &stuck).await.map_err(VerifyError::Source)?;
            found.into_iter().map(|(id, event, status)| (id, (event, status))).collect()
        };
        for (key, aggregate) in of {
            if open.waiting.contains_key(&aggregate) {
                let (event, status) =
                    events.get(&aggregate).cloned().map_or((None, "retry".to_owned()), |(e, s)| (Some(e), s));
                seen.open.insert(key, (event, status));
            } else if open.pending.contains_key(&aggregate) {
                seen.open.insert(key, (None, "pending".to_owned()));
            } else if open.too_many {
                let why = format!("more events of {kind} are on their way in its lane than are looked at");
                seen.open.insert(key, (None, format!("{UNKNOWN}, for {why}")));
            }
        }
        Ok(())
    }

    /// Rows of the new table for which there is no lane to lock, where keys are handed through.
    pub(crate) async fn nobodys(&self, suspects: &[Suspect]) -> Result<Judgement, VerifyError> {
        let mut judgement = self.fenced(suspects, |keys| self.without_row(keys)).await?;
        judgement.keep_extra(&self.without_row(judgement.extra()).await?);
        Ok(judgement)
    }

    /// Rows of the new table for which there is no lane to lock. `still` tells which of their keys no legacy row yields now. What stands
    /// before that question, unchanged once all events of the type that were committed by then are applied, is too much: whoever took
    /// the legacy row away before the question has written its event before the mark, and that event would have removed or
    /// rewritten the row. Without events there is nothing to wait for: what stands unchanged for a moment is too much.
    /// Whoever asks does so once more of what is told ([`Judgement::keep_extra`]): a row that came to legacy meanwhile need not change what
    /// stands, where an event that brings it again writes nothing.
    pub(crate) async fn fenced<F>(
        &self,
        suspects: &[Suspect],
        still: impl FnOnce(Vec<RowKey>) -> F,
    ) -> Result<Judgement, VerifyError>
    where
        F: Future<Output = Result<Vec<RowKey>, VerifyError>>,
    {
        let before = self.found(keys(suspects)).await?;
        let alone: HashSet<RowKey> = still(before.keys().cloned().collect()).await?.into_iter().collect();
        let mut judgement = Judgement::default();
        if alone.is_empty() {
            return Ok(judgement);
        }
        let kind = &self.legacy.aggregate_type;
        let stuck = if self.without_events {
            self.pause(TWICE).await?;
            false
        } else {
            self.events_are_stuck(kind).await?
        };
        reach("look_fenced");
        let unchanged = |key: &RowKey, version: &str| before.get(key).is_some_and(|found| found.version == version);
        let alone: Vec<RowKey> = alone.into_iter().collect();
        let after = self.found(alone).await?;
        let mut seen = Seen::default();
        let mut left = Vec::new();
        for (key, found) in after.into_iter().filter(|(key, found)| unchanged(key, &found.version)) {
            if stuck {
                judgement.waiting.push(Waiting {
                    entity: String::new(),
                    key: key.0.into_iter().map(Some).collect(),
                    aggregate_id: None,
                    event: None,
                    status: format!(
                        "{UNKNOWN}, for events of {kind} are waiting, and which of them are this row's cannot be told"
                    ),
                });
                continue;
            }
            // Where every key is handed through it is that of the legacy row that there would be: repair finds it again by that.
            left.push(Suspect { from: self.through.then(|| key.clone()), key: Some(key.clone()) });
            judgement.versions.push(found.version.clone());
            seen.found.insert(key, found);
        }
        let told = judge(&left, &seen, &self.rule);
        judgement.differences = told.differences;
        Ok(judgement)
    }

    /// Waits until all events of a type that are committed by now are applied; whether some are not, however long it waits.
    async fn events_are_stuck(&self, kind: &str) -> Result<bool, VerifyError> {
        let known = *self.stuck_up_to.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mark) = known {
            let open = patiently(self.stop, || self.source.open_until(kind, mark)).await;
            if open.map_err(VerifyError::Source)?.0 {
                return Ok(true);
            }
        }
        let mark = patiently(self.stop, || self.source.newest_id()).await.map_err(VerifyError::Source)?;
        let until = Instant::now() + FENCE;
        loop {
            let open = patiently(self.stop, || self.source.open_until(kind, mark)).await;
            let (pending, stuck) = open.map_err(VerifyError::Source)?;
            if !pending || Instant::now() > until {
                *self.stuck_up_to.lock().unwrap_or_else(PoisonError::into_inner) = pending.then_some(mark);
                return Ok(pending || stuck);
            }
            self.pause(Duration::from_millis(200)).await?;
        }
    }

    async fn pause(&self, time: Duration) -> Result<(), VerifyError> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = self.stop.cancelled() => Err(VerifyError::Stopped),
        }
    }

    /// Whether the mapping hands the legacy key through as the new one, as far as these rows show; `None`: none of them yields anything.
    pub(crate) async fn hands_keys_through(&self, rows: &[RowKey]) -> Result<Option<bool>, VerifyError> {
        if self.legacy.key_types.len() != self.comparison.key_types.len() || self.comparison.folds_keys() {
            return Ok(Some(false));
        }
        let suspects: Vec<Suspect> = rows.iter().map(|from| Suspect { key: None, from: Some(from.clone()) }).collect();
        let (seen, _) = self.seen_unlocked(&suspects).await?;
        Ok((!seen.looked.is_empty()).then(|| seen.looked.iter().all(keeps_key)))
    }

    /// The suspects without a legacy row now, and those with one.
    pub(crate) async fn parted(&self, suspects: Vec<Suspect>) -> Result<(Homeless, Vec<Suspect>), VerifyError> {
        let gone: HashSet<RowKey> = self.without_row(froms(&suspects)).await?.into_iter().collect();
        Ok(suspects.into_iter().partition(|s| s.from.as_ref().is_none_or(|from| gone.contains(from))))
    }

    /// Of keys that the mapping hands through: those that have no legacy row now.
    pub(crate) async fn without_row(&self, keys: Vec<RowKey>) -> Result<Vec<RowKey>, VerifyError> {
        let mut alone = Vec::new();
        for some in keys.chunks(ROWS) {
            let rows = patiently(self.stop, || self.source.legacy_rows(self.legacy, some, 0)).await;
            let there: HashSet<RowKey> = rows.map_err(VerifyError::Source)?.into_iter().map(|row| row.at.key).collect();
            alone.extend(some.iter().filter(|key| !there.contains(key)).cloned());
        }
        Ok(alone)
    }
}

/// Whether what a legacy row yields has that row's key.
fn keeps_key(looked: &Looked) -> bool {
    looked.key.iter().map(Option::as_ref).eq(looked.from.0.iter().map(Some))
}

/// The suspects that come from these rows.
fn of(suspects: &[Suspect], rows: &HashSet<RowKey>) -> Vec<Suspect> {
    suspects.iter().filter(|s| s.from.as_ref().is_some_and(|from| rows.contains(from))).cloned().collect()
}

fn froms(suspects: &[Suspect]) -> Vec<RowKey> {
    let mut seen = HashSet::new();
    suspects.iter().filter_map(|s| s.from.clone()).filter(|from| seen.insert(from.clone())).collect()
}

fn keys(suspects: &[Suspect]) -> Vec<RowKey> {
    let mut seen = HashSet::new();
    suspects.iter().filter_map(|s| s.key.clone()).filter(|key| seen.insert(key.clone())).collect()
}

/// Rows with their payloads, and keys of those that were too much.
fn split(rows: Vec<LegacyRow>) -> (Vec<(KeyAt, String)>, Vec<RowKey>) {
    let (mut whole, mut beyond) = (Vec::new(), Vec::new());
    for row in rows {
        match row.payload {
            Some(payload) => whole.push((row.at, payload)),
            None => beyond.push(row.at.key),
        }
    }
    (whole, beyond)
}

/// A group with a row that the target refuses: in halves again, or, alone, noted. By its code alone it cannot be told whose an error is: what
/// comes with `nothing`, too, is no row's.
async fn refused(
    error: sqlx::Error,
    mut group: Vec<(RowKey, Event)>,
    groups: &mut Vec<Vec<(RowKey, Event)>>,
    seen: &mut Seen,
    nothing: impl Future<Output = sqlx::Result<Vec<Looked>>>,
) -> Result<(), VerifyError> {
    if !disposition::may_be_of_a_row(&error) {
        return Err(VerifyError::Target(error));
    }
    if disposition::of(&error) != Disposition::Event {
        nothing.await.map_err(VerifyError::Target)?;
    }
    if group.len() > 1 {
        let upper = group.split_off(group.len() / 2);
        groups.extend([group, upper]);
    } else if let Some((key, _)) = group.pop() {
        let said = said(&error);
        seen.refused.insert(key, format!("{} {}", said.code, said.message));
    }
    Ok(())
}

/// A key that the new table's types, or domains, do not take stands in no row of it: these keys in halves, or none of a single one.
fn without_such_keys(error: sqlx::Error, mut keys: Vec<RowKey>) -> Result<Vec<Vec<RowKey>>, VerifyError> {
    if !RowKey::is_not_taken(&error) {
        return Err(VerifyError::Target(error));
    }
    if keys.len() < 2 {
        return Ok(Vec::new());
    }
    let upper = keys.split_off(keys.len() / 2);
    Ok(vec![keys, upper])
}
