//! The rows of one lane, made right under its lock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use super::{Action, Change, Repair, Repaired};
use crate::config::Entity;
use crate::disposition::{self, Disposition, said};
use crate::event::{Event, Lane};
use crate::failpoint::reach;
use crate::mapping::Mapping;
use crate::mapping::compare::Comparison;
use crate::source::{RowKey, SourceLane};
use crate::target::{Prepared, Repair as Written, TargetLane};
use crate::verify::report::what;
use crate::verify::{
    Difference, Ground, Homes, Judgement, Kind, Look, Seen, Suspect, VerifyError, hands_all_keys_through, passing,
};
use crate::words::thousands;

/// Rows at a time under a lock.
const ROWS: usize = 100;
/// Rows of the new table that the owners of what is written at a time may have: each that goes is held, to be kept as it stood.
const OWNED: usize = 10_000;

/// What is to be looked at again.
struct Again {
    /// It is another lane's by now.
    elsewhere: Vec<Suspect>,
    /// It is this lane's, and was too much for one look: in chunks.
    later: Vec<Vec<Suspect>>,
}

impl Repair<'_> {
    /// Makes these rows right, lane by lane. `through`: whether every key is handed through, if that is known.
    pub(super) async fn rows(
        &self,
        entity: &Entity,
        suspects: Vec<Suspect>,
        through: Option<bool>,
        repaired: &mut Repaired,
    ) -> Result<(), VerifyError> {
        if suspects.is_empty() {
            return Ok(());
        }
        let ground = Ground::of(self.config, self.source, self.target, entity).await?;
        let mapping = self.target.mapping(entity).await.map_err(|error| VerifyError::Mapping(Box::new(error)))?;
        let pass = passing(&self.config.entities);
        let mut look = self.look(entity, &ground, &pass, &ground.comparison.columns);
        look.through = through == Some(true);
        let (all, began, before) = (suspects.len(), Instant::now(), repaired.seen());
        let (mut left, mut asked) = (suspects, through.is_some());
        let (mut by_hand, mut told): (Vec<Suspect>, HashSet<RowKey>) = (Vec::new(), HashSet::new());
        for _ in 0..10 {
            if left.is_empty() {
                break;
            }
            let Homes { by_lane, homeless, unowned } = look.by_lane(&left).await?;
            let standing = look.standing(&homeless).await?;
            repaired.right += (homeless.len() - standing.len()) as u64;
            let (judgement, owned) = look.unowned(&unowned).await?;
            repaired.right += (unowned.len() - owned.len()).saturating_sub(judgement.unequal.len()) as u64;
            self.note(entity, &judgement, repaired);
            left = owned;
            if !asked && standing.iter().any(|suspect| suspect.from.is_some()) {
                asked = true;
                look.through =
                    hands_all_keys_through(self.config, (self.source, self.target), entity, self.stop).await?;
                left.extend(standing);
            } else {
                by_hand.extend(self.homeless(entity, &look, standing, repaired).await?);
            }
            for (lane, suspects) in by_lane {
                let mut chunks = VecDeque::from(together(suspects));
                while let Some(some) = chunks.pop_front() {
                    if self.stop.is_cancelled() {
                        return Err(VerifyError::Stopped);
                    }
                    let (again, changed) = self.lane(entity, &look, &mapping, lane, &some, repaired).await?;
                    left.extend(again.elsewhere);
                    chunks.extend(again.later);
                    told.extend(changed);
                    self.tell(entity, repaired, began, before, all);
                }
            }
        }
        // What an owner no longer yields has gone with the owner's other rows.
        for suspect in by_hand.into_iter().filter(|s| s.key.as_ref().is_none_or(|key| !told.contains(key))) {
            let message = "which legacy row it would come from cannot be told from its key: delete it by hand, if verify finds it again";
            repaired.add(Change {
                entity: entity.name.clone(),
                action: Action::Waits,
                key: suspect.key.map_or(Vec::new(), |k| k.0.into_iter().map(Some).collect()),
                message: Some(message.to_owned()),
            });
        }
        for suspect in left {
            let message = Some("its aggregate is another one at every look: run it again".to_owned());
            let key = suspect.named();
            repaired.add(Change { entity: entity.name.clone(), action: Action::Waits, key, message });
        }
        Ok(())
    }

    /// Rows whose legacy row is gone or not known, and so their aggregate: fenced, as verification does it, and told; they are deleted only
    /// if no other legacy row can yield them. Gives back those of which that cannot be told.
    async fn homeless(
        &self,
        entity: &Entity,
        look: &Look<'_>,
        suspects: Vec<Suspect>,
        repaired: &mut Repaired,
    ) -> Result<Vec<Suspect>, VerifyError> {
        let (by_key, by_hand): (Vec<Suspect>, Vec<Suspect>) =
            suspects.into_iter().partition(|suspect| look.through && suspect.from.is_some());
        for some in by_key.chunks(ROWS) {
            let mut judgement = look.nobodys(some).await?;
            if self.apply && !judgement.differences.is_empty() {
                self.delete_fenced(entity, look, &mut judgement).await?;
            }
            self.note(entity, &judgement, repaired);
        }
        Ok(by_hand)
    }

    /// No lane keeps these rows apart from their events, for nobody can tell their aggregate: each is deleted only if it still is the
    /// row that was judged, and nothing that an event has brought since; and only if it still has no legacy row once it is deleted: an event
    /// that brought it again may have written nothing, and one that comes from then on waits for the commit. The transaction is one of lane
    /// 0 for want of another.
    async fn delete_fenced(
        &self,
        entity: &Entity,
        look: &Look<'_>,
        judgement: &mut Judgement,
    ) -> Result<(), VerifyError> {
        let mut keys = judgement.extra();
        reach("repair_fenced");
        let delete = Act::Delete(look.comparison, &judgement.versions);
        let (source, mut target, before, refused) = loop {
            let Some((source, mut target)) = look.take(Lane(0)).await? else {
                return Err(VerifyError::Busy(Lane(0)));
            };
            target.canonical().await.map_err(VerifyError::Target)?;
            let (before, refused) = in_parts(&mut target, &delete, keys.clone()).await?;
            let still = look.without_row(before.keys().cloned().collect()).await?;
            if still.len() == before.len() {
                break (source, target, before, refused);
            }
            target.abandon().await;
            source.release_lease().await;
            keys.retain(|key| !before.contains_key(key) || still.contains(key));
        };
        let kept = before.iter().map(|(key, before)| Written::deleted(&entity.name, key, before));
        let kept = kept.map(|row| self.shown(entity, row)).collect();
        let by = (&self.by.actor, &self.by.reason, self.by.command.as_str());
        target.keep_repairs(by.0, by.1, by.2, kept).await.map_err(VerifyError::Target)?;
        target.commit().await.map_err(VerifyError::Target)?;
        source.release_lease().await;
        let refused: HashMap<RowKey, String> = refused.into_iter().collect();
        judgement.differences.retain_mut(|d| match d.whole_key() {
            Some(key) if before.contains_key(&key) => true,
            Some(key) => refused.get(&key).is_some_and(|said| {
                (d.kind, d.message) = (Kind::Refused, Some(said.clone()));
                true
            }),
            None => false,
        });
        Ok(())
    }

    /// One chunk of a lane. Gives back what is to be looked at again, and the keys of the new table of which something is told.
    async fn lane(
        &self,
        entity: &Entity,
        look: &Look<'_>,
        mapping: &Mapping,
        lane: Lane,
        suspects: &[Suspect],
        repaired: &mut Repaired,
    ) -> Result<(Again, Vec<RowKey>), VerifyError> {
        let Some((mut source, mut target)) = look.take(lane).await? else { return Err(VerifyError::Busy(lane)) };
        let done = self.locked(entity, look, mapping, suspects, (&mut source, &mut target)).await;
        let (judgement, again, right) = match done {
            Ok(done) => done,
            Err(error) => {
                target.abandon().await;
                source.release_lease().await;
                return Err(error);
            }
        };
        if self.apply {
            target.commit().await.map_err(VerifyError::Target)?;
        } else {
            target.abandon().await;
        }
        source.release_lease().await;
        repaired.right += right;
        self.note(entity, &judgement, repaired);
        Ok((again, judgement.differences.iter().filter_map(Difference::whole_key).collect()))
    }

    async fn locked(
        &self,
        entity: &Entity,
        look: &Look<'_>,
        mapping: &Mapping,
        suspects: &[Suspect],
        (source, target): (&mut SourceLane, &mut TargetLane),
    ) -> Result<(Judgement, Again, u64), VerifyError> {
        let (seen, mut elsewhere, mut later) = look.seen_locked(source, target, suspects).await?;
        later.retain(|suspect| !elsewhere.contains(suspect));
        let not_here: HashSet<&Suspect> = elsewhere.iter().chain(&later).collect();
        let here: Vec<Suspect> = suspects.iter().filter(|s| !not_here.contains(s)).cloned().collect();
        let mut judgement = look.judged(&here, &seen);
        let right = (here.len() - judgement.unequal.len().min(here.len())) as u64;
        let anothers = judgement.take_anothers();
        let mut later = if later.is_empty() { Vec::new() } else { vec![later] };
        let Some(mut replaced) = replaced(look, &mut judgement, &seen, target).await? else {
            later.extend(halves(&here));
            return Ok((Judgement::default(), Again { elsewhere, later }, 0));
        };
        elsewhere.extend(anothers);
        if self.apply && !judgement.differences.is_empty() {
            reach("repair_judged");
            let differences = (&judgement.differences[..], &mut replaced);
            let refused = self.change(entity, look, mapping, differences, seen, target).await?;
            for (at, said) in refused {
                let of = &mut judgement.differences[at];
                (of.kind, of.message) = (Kind::Refused, Some(said));
            }
        }
        judgement.differences.append(&mut replaced);
        if self.apply {
            let stand = stand(&here, &judgement);
            target.stand(&entity.name, &stand).await.map_err(VerifyError::Target)?;
        }
        Ok((judgement, Again { elsewhere, later }, right))
    }

    /// Gives back which of the differences stay as they are, because the new table refuses what would mend them, and its words; and of the rows that
    /// are replaced leaves those that are.
    async fn change(
        &self,
        entity: &Entity,
        look: &Look<'_>,
        mapping: &Mapping,
        (differences, replaced): (&[Difference], &mut Vec<Difference>),
        seen: Seen,
        target: &mut TargetLane,
    ) -> Result<Vec<(usize, String)>, VerifyError> {
        let (mut kept, mut refused): (Vec<Written>, Vec<(usize, String)>) = (Vec::new(), Vec::new());
        let of = |kind| differences.iter().enumerate().filter(move |(_, d)| d.kind == kind);
        let gone: HashMap<RowKey, usize> =
            of(Kind::MissingInLegacy).filter_map(|(at, d)| Some((d.whole_key()?, at))).collect();
        // Another owner's event, in another lane, may have brought such a key meanwhile: only what was judged is deleted.
        let versions: Vec<String> = seen.found.into_values().map(|found| found.version).collect();
        let delete = Act::Delete(look.comparison, &versions);
        let (deleted, left) = in_parts(target, &delete, gone.keys().cloned().collect()).await?;
        kept.extend(deleted.iter().map(|(key, before)| Written::deleted(&entity.name, key, before)));
        let left: HashMap<RowKey, String> = left.into_iter().collect();
        let stays = gone.iter().filter(|(key, _)| !deleted.contains_key(*key));
        refused.extend(stays.map(|(key, at)| {
            (
                *at,
                left.get(key)
                    .cloned()
                    .unwrap_or_else(|| "it was changed since it was looked at: run this again".to_owned()),
            )
        }));
        let to_write: Vec<(usize, &Difference)> = of(Kind::MissingInNew).chain(of(Kind::Differs)).collect();
        if let (false, Some(upsert)) = (to_write.is_empty(), &mapping.upsert) {
            let going: Vec<RowKey> = replaced.iter().filter_map(Difference::whole_key).collect();
            let keys = to_write.iter().filter_map(|(_, d)| d.whole_key()).chain(going.iter().cloned());
            let before = target.whole(look.comparison, &keys.collect::<Vec<_>>()).await.map_err(VerifyError::Target)?;
            // The rows that were judged, not what they are by now: since the look an event may have come that brings that.
            let froms: HashSet<RowKey> = to_write.iter().filter_map(|(_, d)| d.legacy_key.clone()).collect();
            let mut rows = seen.rows;
            rows.retain(|from, _| froms.contains(from));
            let yielding = rows.keys().cloned().collect();
            let (_, left) = in_parts(target, &Act::Write(upsert, &rows), yielding).await?;
            let left: HashMap<RowKey, String> = left.into_iter().collect();
            // All that the row would yield stays as it is.
            let stays = |d: &Difference| d.legacy_key.as_ref().and_then(|from| left.get(from));
            refused.extend(to_write.iter().filter_map(|(at, d)| Some((*at, stays(d)?.clone()))));
            let written: Vec<RowKey> =
                to_write.iter().filter(|(_, d)| stays(d).is_none()).filter_map(|(_, d)| d.whole_key()).collect();
            let after: HashMap<RowKey, String> =
                target.whole(look.comparison, &written).await.map_err(VerifyError::Target)?;
            kept.extend(written.iter().map(|key| Written::written(&entity.name, key, before.get(key), after.get(key))));
            // They go with what is written, in the same statement; and stay with what is refused.
            let stay = target.whole(look.comparison, &going).await.map_err(VerifyError::Target)?;
            replaced.retain(|d| d.whole_key().is_some_and(|key| before.contains_key(&key) && !stay.contains_key(&key)));
            let gone = replaced.iter().filter_map(Difference::whole_key);
            kept.extend(gone.filter_map(|key| Some(Written::deleted(&entity.name, &key, before.get(&key)?))));
        } else {
            replaced.clear();
        }
        let kept = kept.into_iter().map(|row| self.shown(entity, row)).collect();
        let by = (&self.by.actor, &self.by.reason, self.by.command.as_str());
        target.keep_repairs(by.0, by.1, by.2, kept).await.map_err(VerifyError::Target)?;
        Ok(refused)
    }

    /// As it may be kept: without the values that nobody is shown.
    fn shown(&self, entity: &Entity, row: Written) -> Written {
        let sight = self.config.redact.for_admins();
        match &entity.table {
            Some(table) => row.shown(|text| sight.row(&table.schema, &table.table, text).into_owned()),
            None => row,
        }
    }

    fn note(&self, entity: &Entity, judgement: &Judgement, repaired: &mut Repaired) {
        let sight = self.config.redact.for_admins();
        for difference in &judgement.differences {
            let action = match difference.kind {
                Kind::MissingInNew | Kind::Differs => Action::Write,
                Kind::MissingInLegacy => Action::Delete,
                Kind::Refused => Action::Refused,
            };
            let shown = difference.clone().shown_to(&sight, Some(entity));
            let (key, message) = (shown.key.clone(), Some(what(&shown)));
            repaired.add(Change { entity: entity.name.clone(), action, key, message });
        }
        for waiting in &judgement.waiting {
            let event = waiting.event.map_or(String::new(), |id| format!(" (event {id})"));
            let message = format!("an event of its aggregate is {}{event}", waiting.status);
            repaired.add(Change {
                entity: entity.name.clone(),
                action: Action::Waits,
                key: waiting.key.clone(),
                message: Some(message),
            });
        }
    }
}

/// With `replace_by`, what is written takes the owner's other rows away: these. `None`: they are too many at a time, or cannot be named; of a single
/// legacy row they are refused.
async fn replaced(
    look: &Look<'_>,
    judgement: &mut Judgement,
    seen: &Seen,
    target: &mut TargetLane,
) -> Result<Option<Vec<Difference>>, VerifyError> {
    let is_written = |d: &Difference| matches!(d.kind, Kind::MissingInNew | Kind::Differs);
    let written = judgement.differences.iter().filter(|d| is_written(d));
    let writing: HashSet<RowKey> = written.filter_map(|d| d.legacy_key.clone()).collect();
    let (mut owners, mut stay): (HashMap<Vec<String>, RowKey>, HashSet<RowKey>) = (HashMap::new(), HashSet::new());
    for looked in seen.looked.iter().filter(|looked| writing.contains(&looked.from)) {
        if let Some(owner) = look.rule.owner(&looked.expected).filter(|owner| !owner.is_empty()) {
            owners.insert(owner, looked.from.clone());
        }
        stay.extend(looked.key.iter().cloned().collect::<Option<Vec<String>>>().map(RowKey));
    }
    if owners.is_empty() {
        return Ok(Some(Vec::new()));
    }
    stay.extend(judgement.extra());
    let given: Vec<Vec<String>> = owners.keys().cloned().collect();
    let rows = target.owned(look.comparison, &given, OWNED + 1).await.map_err(VerifyError::Target)?;
    let too_many = || {
        format!(
            "its owner has more than {} rows in the new table, which is more than are replaced: delete those that are too much by hand \
             first, or let its next event do it",
            thousands(OWNED as u64)
        )
    };
    let why = match rows.len() > OWNED {
        true => Some(too_many()),
        false => target.owns_nameless(look.comparison, &given).await.map_err(VerifyError::Target)?.then(|| {
            "its owner has rows with NULL in their key in the new table, which would go with what is written and could not be kept: delete them \
             by hand first, or let its next event do it"
                .to_owned()
        }),
    };
    if let Some(said) = why {
        if writing.len() > 1 {
            return Ok(None);
        }
        for difference in judgement.differences.iter_mut().filter(|d| is_written(d)) {
            (difference.kind, difference.message) = (Kind::Refused, Some(said.clone()));
        }
        return Ok(Some(Vec::new()));
    }
    let going = rows.into_iter().filter(|(key, _)| !stay.contains(key)).map(|(key, found)| {
        let owner: Option<Vec<String>> = found.values.iter().cloned().collect();
        let from = owner.and_then(|owner| owners.get(&owner).cloned());
        let aggregate_id = from.as_ref().and_then(|from| seen.there.get(from).cloned());
        Difference::new(Kind::MissingInLegacy, key.0.into_iter().map(Some).collect(), from, aggregate_id)
    });
    Ok(Some(going.collect()))
}

/// In chunks; what looks different of one legacy row stays together, for all that it yields is made right at once.
fn together(mut suspects: Vec<Suspect>) -> Vec<Vec<Suspect>> {
    suspects.sort_by(|a, b| a.from.cmp(&b.from));
    let mut chunks: Vec<Vec<Suspect>> = Vec::new();
    for of_one in suspects.chunk_by(|a, b| a.from == b.from) {
        match chunks.last_mut() {
            Some(last) if last.len() + of_one.len() <= ROWS => last.extend_from_slice(of_one),
            _ => chunks.push(of_one.to_vec()),
        }
    }
    chunks
}

/// The same in two chunks.
fn halves(here: &[Suspect]) -> [Vec<Suspect>; 2] {
    let of_each: Vec<&[Suspect]> = here.chunk_by(|a, b| a.from == b.from).collect();
    let (lower, upper) = of_each.split_at(of_each.len() / 2);
    [lower.concat(), upper.concat()]
}

/// The legacy keys of those that stand as they should by now: they were right, or were made so.
fn stand<'s>(here: &'s [Suspect], judgement: &Judgement) -> Vec<&'s RowKey> {
    let refused = judgement.differences.iter().filter(|d| d.kind == Kind::Refused).filter_map(|d| d.legacy_key.clone());
    let waiting =
        judgement.waiting.iter().filter_map(|w| w.key.iter().cloned().collect::<Option<Vec<_>>>().map(RowKey));
    let not: HashSet<RowKey> = refused.chain(waiting).collect();
    here.iter().filter_map(|suspect| suspect.from.as_ref()).filter(|from| !not.contains(from)).collect()
}

/// What is done to rows of the new table.
enum Act<'a> {
    /// Those of these keys are deleted, if they are of one of these versions.
    Delete(&'a Comparison, &'a [String]),
    /// What the legacy rows of these keys yield is written.
    Write(&'a Prepared, &'a HashMap<RowKey, Event>),
}

impl Act<'_> {
    /// Does it; what stood before a row was deleted.
    async fn on(&self, target: &mut TargetLane, keys: &[RowKey]) -> sqlx::Result<HashMap<RowKey, String>> {
        let before = match self {
            Act::Delete(comparison, versions) => target.delete_rows(comparison, keys, versions).await?,
            Act::Write(upsert, rows) => {
                let events = keys.iter().filter_map(|key| rows.get(key)).collect();
                target.run(upsert, &events).await.map(|_| HashMap::new())?
            }
        };
        target.check_constraints().await?;
        Ok(before)
    }
}

/// Does it to all of these; what the target refuses it is done to in halves, until what is refused stands alone. What stood before,
/// and what was refused, with the target's words.
async fn in_parts(
    target: &mut TargetLane,
    act: &Act<'_>,
    all: Vec<RowKey>,
) -> Result<(HashMap<RowKey, String>, Vec<(RowKey, String)>), VerifyError> {
    let (mut before, mut refused) = (HashMap::new(), Vec::new());
    let mut parts = if all.is_empty() { Vec::new() } else { vec![all] };
    let mut tried_empty = false;
    while let Some(mut part) = parts.pop() {
        let error = match act.on(target, &part).await {
            Ok(stood) => {
                before.extend(stood);
                target.keep().await.map_err(VerifyError::Target)?;
                continue;
            }
            Err(error) => error,
        };
        let disposition = disposition::of(&error);
        let may_be_a_rows = match disposition {
            // A row that another one needs, or stands in the way of, is as little to be written as one that is wrong.
            Disposition::Event | Disposition::Waiting => true,
            Disposition::Transient => disposition::may_be_of_a_value(&error),
            // What is deleted has no values that could be refused.
            Disposition::Operator => matches!(act, Act::Write(..)),
            Disposition::Contended => false,
        };
        if !may_be_a_rows {
            return Err(VerifyError::Target(error));
        }
        target.undo().await.map_err(VerifyError::Target)?;
        // By its code alone it cannot be told whose it is: what comes without any row too is no row's.
        if matches!(disposition, Disposition::Transient | Disposition::Operator) && !tried_empty {
            act.on(target, &[]).await.map_err(VerifyError::Target)?;
            target.undo().await.map_err(VerifyError::Target)?;
            tried_empty = true;
        }
        if part.len() > 1 {
            let upper = part.split_off(part.len() / 2);
            parts.extend([upper, part]);
        } else if let Some(one) = part.pop() {
            let said = said(&error);
            refused.push((one, format!("{} {}", said.code, said.message)));
        }
    }
    Ok((before, refused))
}
