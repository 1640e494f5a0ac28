//! The rows of one lane, made right under its lock.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::{Action, Change, Repair, Repaired};
use crate::config::Entity;
use crate::event::{Event, Lane};
use crate::failpoint::reach;
use crate::mapping::Mapping;
use crate::source::{RowKey, SourceLane};
use crate::target::{Repair as Written, TargetLane};
use crate::verify::report::what;
use crate::verify::{Difference, Ground, Judgement, Kind, Look, Suspect, VerifyError, passing};

/// Rows at a time under a lock.
const ROWS: usize = 100;

impl Repair<'_> {
    /// Makes these rows right, lane by lane.
    pub(super) async fn rows(
        &self,
        entity: &Entity,
        suspects: Vec<Suspect>,
        repaired: &mut Repaired,
    ) -> Result<(), VerifyError> {
        if suspects.is_empty() {
            return Ok(());
        }
        let ground = Ground::of(self.config, self.source, self.target, entity).await?;
        let mapping = self.target.mapping(entity).await.map_err(|error| VerifyError::Mapping(Box::new(error)))?;
        let pass = passing(&self.config.entities);
        let look = self.look(entity, &ground, &pass, &ground.comparison.columns);
        let (all, began, before) = (suspects.len(), Instant::now(), repaired.seen());
        let mut left = suspects;
        for _ in 0..10 {
            if left.is_empty() {
                return Ok(());
            }
            let (by_lane, homeless) = look.by_lane(&left).await?;
            self.homeless(entity, &look, &homeless, repaired).await?;
            left = Vec::new();
            for (lane, suspects) in by_lane {
                for some in suspects.chunks(ROWS) {
                    if self.stop.is_cancelled() {
                        return Err(VerifyError::Stopped);
                    }
                    left.extend(self.lane(entity, &look, &mapping, lane, some, repaired).await?);
                    self.tell(entity, repaired, began, before, all);
                }
            }
        }
        repaired.notes.push(format!(
            "{}: {} rows changed their aggregate all the time: run it again",
            entity.name,
            left.len()
        ));
        Ok(())
    }

    /// Rows that no legacy row yields, and whose aggregate is not known: fenced, as verification does it, and told; they are deleted only
    /// if they can be found by their key.
    async fn homeless(
        &self,
        entity: &Entity,
        look: &Look<'_>,
        suspects: &[Suspect],
        repaired: &mut Repaired,
    ) -> Result<(), VerifyError> {
        let by_key = suspects.iter().all(|s| s.from.is_some());
        for some in suspects.chunks(ROWS) {
            let judgement = if by_key {
                look.fenced(some, |keys| look.without_row(keys)).await?
            } else {
                let message = "which legacy row it would come from cannot be told from its key: delete it by hand, if verify finds it again";
                for suspect in some {
                    let key = suspect.key.clone().map_or(Vec::new(), |k| k.0.into_iter().map(Some).collect());
                    repaired.add(Change {
                        entity: entity.name.clone(),
                        action: Action::Waits,
                        key,
                        message: Some(message.to_owned()),
                    });
                }
                continue;
            };
            let keys: Vec<RowKey> = judgement
                .differences
                .iter()
                .filter_map(|d| d.key.iter().cloned().collect::<Option<Vec<_>>>())
                .map(RowKey)
                .collect();
            if self.apply && !keys.is_empty() {
                // Any lane's transaction will do: no event of theirs is open, and none can be told.
                let Some((source, mut target)) = look.take(Lane(0)).await? else {
                    return Err(VerifyError::Busy(Lane(0)));
                };
                let before = target.delete_rows(look.comparison, &keys).await.map_err(VerifyError::Target)?;
                let kept = before.iter().map(|(key, before)| Written::deleted(&entity.name, key, before));
                target
                    .keep_repairs(&self.by.actor, &self.by.reason, self.by.command.as_str(), kept.collect())
                    .await
                    .map_err(VerifyError::Target)?;
                target.commit().await.map_err(VerifyError::Target)?;
                source.release_lease().await;
            }
            self.note(entity, &judgement, repaired);
        }
        Ok(())
    }

    /// One chunk of a lane. Gives back what is another lane's by now.
    async fn lane(
        &self,
        entity: &Entity,
        look: &Look<'_>,
        mapping: &Mapping,
        lane: Lane,
        suspects: &[Suspect],
        repaired: &mut Repaired,
    ) -> Result<Vec<Suspect>, VerifyError> {
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
        Ok(again)
    }

    async fn locked(
        &self,
        entity: &Entity,
        look: &Look<'_>,
        mapping: &Mapping,
        suspects: &[Suspect],
        (source, target): (&mut SourceLane, &mut TargetLane),
    ) -> Result<(Judgement, Vec<Suspect>, u64), VerifyError> {
        let (seen, mut again, later) = look.seen_locked(source, target, suspects).await?;
        again.extend(later);
        let here: Vec<Suspect> = suspects.iter().filter(|s| !again.contains(s)).cloned().collect();
        let judgement = look.judged(&here, &seen);
        let right = (here.len() - judgement.unequal.len().min(here.len())) as u64;
        if self.apply && !judgement.differences.is_empty() {
            reach("repair_judged");
            self.change(entity, look, mapping, &judgement.differences, seen.rows, target).await?;
        }
        Ok((judgement, again, right))
    }

    async fn change(
        &self,
        entity: &Entity,
        look: &Look<'_>,
        mapping: &Mapping,
        differences: &[Difference],
        mut rows: HashMap<RowKey, Event>,
        target: &mut TargetLane,
    ) -> Result<(), VerifyError> {
        let whole_key = |d: &Difference| d.key.iter().cloned().collect::<Option<Vec<String>>>().map(RowKey);
        let of =
            |kinds: &[Kind]| -> Vec<&Difference> { differences.iter().filter(|d| kinds.contains(&d.kind)).collect() };
        let (to_write, to_delete) = (of(&[Kind::MissingInNew, Kind::Differs]), of(&[Kind::MissingInLegacy]));
        let mut kept: Vec<Written> = Vec::new();
        let gone: Vec<RowKey> = to_delete.iter().filter_map(|d| whole_key(d)).collect();
        if !gone.is_empty() {
            let before = target.delete_rows(look.comparison, &gone).await.map_err(VerifyError::Target)?;
            kept.extend(before.iter().map(|(key, before)| Written::deleted(&entity.name, key, before)));
        }
        let froms: HashSet<RowKey> = to_write.iter().filter_map(|d| d.legacy_key.clone()).collect();
        if let (false, Some(upsert)) = (froms.is_empty(), &mapping.upsert) {
            let keys: Vec<RowKey> = to_write.iter().filter_map(|d| whole_key(d)).collect();
            let before = target.whole(look.comparison, &keys).await.map_err(VerifyError::Target)?;
            // The rows that were judged, not what they are by now: since the look an event may have come that brings that.
            let events: Vec<Event> = froms.iter().filter_map(|from| rows.remove(from)).collect();
            target.run(upsert, &events.iter().collect()).await.map_err(VerifyError::Target)?;
            target.check_constraints().await.map_err(VerifyError::Target)?;
            let after: HashMap<RowKey, String> =
                target.whole(look.comparison, &keys).await.map_err(VerifyError::Target)?;
            kept.extend(keys.iter().map(|key| Written::written(&entity.name, key, before.get(key), after.get(key))));
        }
        let kept = kept.into_iter().map(|row| self.shown(entity, row)).collect();
        target
            .keep_repairs(&self.by.actor, &self.by.reason, self.by.command.as_str(), kept)
            .await
            .map_err(VerifyError::Target)
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
