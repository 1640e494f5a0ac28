//! Healing: one rule for every accident. Find the last batch that both logs remember; what only the source remembers is put
//! back, what only the target remembers is settled. The decision is here, and pure; each step is worked out anew.

use std::collections::HashSet;

use chrono::{DateTime, Utc};

use crate::event::{BatchKey, Token};

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
