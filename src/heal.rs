//! Healing: one rule for every accident. Find the last batch that both logs remember; what only the source remembers is put
//! back, what only the target remembers is settled.
//!
//! Guarantees: one step a call, under both lane locks, worked out anew from both logs (`next_step`, pure); the target is only
//! read. Where no common batch is left, nothing is guessed: the lane stops, and says which time span to verify.

use std::collections::HashSet;

use chrono::{DateTime, Utc};

use crate::event::{BatchKey, Token};
use crate::failpoint::reach;
use crate::lease::LeaseError;
use crate::source::{Settled, SourceLane};
use crate::target::TargetLane;

/// A step of healing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Healed {
    /// The target had forgotten a batch: so many events are pending again.
    PutBack(u64),
    /// The source had forgotten a batch.
    Settled(Settled),
}

/// A side's log, newest first, and its mark: the newest token that was forgotten on purpose.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    pub(crate) entries: Vec<(BatchKey, DateTime<Utc>)>,
    pub(crate) mark: Option<(Token, DateTime<Utc>)>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Both end with the same batch.
    Nothing,
    /// Put the source's newest batch back.
    PutBack(BatchKey),
    /// Settle this batch of the target, the oldest that the source does not have.
    Settle(BatchKey),
    /// No batch is left that both remember: between these times nobody can tell what took effect.
    Impossible { since: Option<DateTime<Utc>>, until: Option<DateTime<Utc>> },
}

/// The next step.
pub(crate) fn next_step(source: &Log, target: &Log) -> Step {
    let on_target: HashSet<BatchKey> = target.entries.iter().map(|(key, _)| *key).collect();
    // Below a mark a log has holes: a common batch there tells nothing about what followed.
    let marked = [source, target].iter().filter_map(|log| log.mark.map(|(token, _)| token)).max();
    let is_whole = |key: &BatchKey| marked.is_none_or(|mark| key.token >= mark);
    let common = source.entries.iter().find(|(key, _)| on_target.contains(key));
    let Some((common, _)) = common.filter(|(key, _)| is_whole(key)) else {
        let oldest = [source, target].iter().filter_map(|log| log.mark.map(|(_, at)| at)).min();
        let first = [source, target].iter().filter_map(|log| log.entries.last().map(|(_, at)| *at)).min();
        let newest = [source, target].iter().filter_map(|log| log.entries.first().map(|(_, at)| *at)).max();
        return Step::Impossible { since: oldest.or(first), until: newest };
    };
    if let Some((newest, _)) = source.entries.first()
        && newest != common
    {
        return Step::PutBack(*newest);
    }
    match target.entries.iter().rev().find(|(key, _)| key.token > common.token) {
        Some((oldest, _)) => Step::Settle(*oldest),
        None => Step::Nothing,
    }
}

/// One step, under both locks, in a source transaction of its own; the target is only read. `pass`: aggregate types whose failed
/// events hold nobody back; at most about `release_at_most` held events are released.
pub async fn run_once(
    mut source: SourceLane,
    mut target: TargetLane,
    pass: &[String],
    release_at_most: u32,
) -> Result<Healed, LeaseError> {
    let lane = source.lane;
    let (step, put_back_at) = read_next_step(&mut source, &mut target).await?;
    let healed = match step {
        Step::Nothing => return Err(LeaseError::Overtaken),
        Step::PutBack(key) => {
            let done = source.put_back_newest().await.map_err(LeaseError::Source)?;
            if done.missing > 0 {
                return Err(LeaseError::Stopped(format!(
                    "lane {lane}: the new database forgot batch {}, and {} of its events are no longer in the outbox to be \
                     applied again: verify and resync what happened since {}",
                    key.token,
                    done.missing,
                    put_back_at.map(|at| at.to_rfc3339()).unwrap_or_default()
                )));
            }
            tracing::warn!(
                lane = lane.0,
                token = key.token.0,
                events = done.events,
                "healed: the target had forgotten a batch, its events are pending again"
            );
            Healed::PutBack(done.events)
        }
        Step::Settle(key) => {
            let entry = target.log_entry(key.token).await.map_err(LeaseError::Target)?;
            let identity = target.identity.clone();
            let done = source
                .settle_forgotten(&entry, &identity, pass, release_at_most)
                .await
                .map_err(LeaseError::of_settling)?;
            if done.divergent > 0 {
                tracing::error!(
                    lane = lane.0,
                    token = key.token.0,
                    events = done.divergent,
                    "the target knows events that the outbox does not have: their aggregates need a resync"
                );
            }
            tracing::warn!(
                lane = lane.0,
                token = key.token.0,
                events = done.events,
                overtaken = done.overtaken,
                "healed: a batch had taken effect without being settled"
            );
            Healed::Settled(done)
        }
        Step::Impossible { since, until } => {
            let time = |at: Option<DateTime<Utc>>| at.map_or("the beginning".to_owned(), |at| at.to_rfc3339());
            return Err(LeaseError::Stopped(format!(
                "lane {lane}: no batch is left that both databases remember; what happened between {} and {} must be verified, \
                 then: outbox-relay init --target-is-current",
                time(since),
                time(until)
            )));
        }
    };
    reach("heal_step");
    source.commit().await.map_err(LeaseError::Source)?;
    reach("heal_committed");
    target.abandon().await;
    Ok(healed)
}

/// The next step, and when the source's newest entry was settled. Reads the ends of both logs, and more of them only until a
/// common entry is found: the source's log is as long as retention.
async fn read_next_step(
    source: &mut SourceLane,
    target: &mut TargetLane,
) -> Result<(Step, Option<DateTime<Utc>>), LeaseError> {
    let mut reach = 64;
    loop {
        // From the lower of both on, neither log has a hole, so the newest common entry found is the newest there is.
        let ends = (
            source.token_of(reach).await.map_err(LeaseError::Source)?,
            target.token_of(reach).await.map_err(LeaseError::Target)?,
        );
        let from = match ends {
            (Some(source), Some(target)) => source.min(target),
            _ => Token(i64::MIN),
        };
        // The marks after the entries: who forgets leaves the mark in the same transaction.
        let source_log = Log {
            entries: source.log(from).await.map_err(LeaseError::Source)?,
            mark: source.mark().await.map_err(LeaseError::Source)?,
        };
        let target_log = Log {
            entries: target.log(from).await.map_err(LeaseError::Target)?,
            mark: target.mark().await.map_err(LeaseError::Target)?,
        };
        let step = next_step(&source_log, &target_log);
        if from.0 == i64::MIN || !matches!(step, Step::Impossible { .. }) {
            return Ok((step, source_log.entries.first().map(|(_, at)| *at)));
        }
        reach *= 16;
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn log(entries: &[(i64, u128)]) -> Log {
        let at = DateTime::UNIX_EPOCH;
        Log { entries: entries.iter().rev().map(|(t, n)| (key(*t, *n), at)).collect(), mark: None }
    }

    #[test]
    fn a_common_batch_below_a_mark_tells_nothing() {
        let mark = |token| Some((Token(token), DateTime::UNIX_EPOCH));
        let source = log(&[(1, 0)]);
        let target = Log { mark: mark(2), ..log(&[(1, 0), (3, 0)]) };
        assert!(matches!(next_step(&source, &target), Step::Impossible { .. }));
        let target = Log { mark: mark(1), ..log(&[(1, 0), (2, 0)]) };
        assert_eq!(next_step(&source, &target), Step::Settle(key(2, 0)));
    }

    fn key(token: i64, nonce: u128) -> BatchKey {
        BatchKey { token: Token(token), nonce: Uuid::from_u128(nonce) }
    }

    #[test]
    fn every_accident_has_its_next_step() {
        let impossible = Step::Impossible { since: Some(DateTime::UNIX_EPOCH), until: Some(DateTime::UNIX_EPOCH) };
        for (source, target, expected) in [
            (&[(1, 0)][..], &[(1, 0)][..], Step::Nothing),
            // A worker died between apply and settle, or the source went back.
            (&[(1, 0)], &[(1, 0), (2, 0), (3, 0)], Step::Settle(key(2, 0))),
            // The target went back.
            (&[(1, 0), (2, 0), (3, 0)], &[(1, 0)], Step::PutBack(key(3, 0))),
            // One after the other: what only the source knows is put back first.
            (&[(1, 0), (2, 7)], &[(1, 0), (2, 0)], Step::PutBack(key(2, 7))),
            (&[(1, 0)], &[(1, 0), (2, 0)], Step::Settle(key(2, 0))),
            // The same token of another history is another batch.
            (&[(1, 0), (2, 7), (3, 0)], &[(1, 0), (2, 0), (3, 0)], Step::Nothing),
            (&[(1, 0)], &[(2, 0)], impossible.clone()),
        ] {
            assert_eq!(next_step(&log(source), &log(target)), expected, "{source:?} {target:?}");
        }
    }
}
