//! From where a lane's next scan may start, so that it does not walk over dead rows again while vacuum is held back.
//!
//! Guarantees: no event that was committed, or that an open transaction may still commit, has an id below the position, but for
//! those of stopped types, ids drawn ahead, and events made pending again. A full scan finds the second, and whoever makes an
//! event pending says so in the lane's transaction. Remembered in the source's log only: a failover takes it back.

use std::time::Duration;

use super::SourceLane;
use super::claim::Claim;
use crate::event::Status;

/// How old a look at the writers' transactions must be before the next one.
const MARK_EVERY: Duration = Duration::from_millis(500);

/// From where the lane's next scan may start. Kept in the log, so that a failover takes it back together with the events.
#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    /// All ids below are decided, and none is pending …
    pub position: i64,
    /// … but events of these aggregate types, which were stopped.
    pub passed: Vec<String>,
    pub(super) mark: Option<Mark>,
}

/// What was seen of the writers at some moment: once these holders are gone, every id up to `sequence` is decided.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mark {
    pub(super) sequence: i64,
    pub(super) holders: Vec<String>,
    pub(super) age: Duration,
}

impl Mark {
    /// Which of its holders may still commit, by what is open now. A transaction that was prepared meanwhile has another name
    /// (`:-1/<xid>`, without a process): as long as a holder of the mark had a process, an unknown prepared one may be it.
    fn still_open(&self, now: &[String]) -> Vec<String> {
        let is_prepared = |holder: &str| holder.starts_with(':');
        let may_have_turned = self.holders.iter().any(|holder| !is_prepared(holder));
        now.iter().filter(|h| self.holders.contains(h) || (may_have_turned && is_prepared(h))).cloned().collect()
    }
}

impl SourceLane {
    /// Where a scan that leaves these types out may start.
    pub(super) fn start(&self, stopped: &[String], full: bool) -> i64 {
        match &self.newest {
            Some(entry) if !full && entry.scan.passed.iter().all(|kind| stopped.contains(kind)) => {
                entry.scan.position.min(self.put_back.unwrap_or(i64::MAX))
            }
            _ => i64::MIN,
        }
    }

    /// Up to where every id is committed or rolled back. Asked before the scan: what an open transaction commits between the
    /// scan and the question would be passed by.
    pub(super) async fn decided(&mut self) -> sqlx::Result<(i64, Option<Mark>)> {
        let before = self.newest.as_ref().map(|entry| entry.scan.clone());
        let Some(sequence) = self.source.sequence.clone() else { return Ok((i64::MIN, None)) };
        let decided = before.as_ref().map_or(i64::MIN, |scan| scan.position);
        let mark = before.and_then(|scan| scan.mark);
        if mark.as_ref().is_some_and(|mark| mark.age < MARK_EVERY) {
            return Ok((decided, mark));
        }
        // A sequence that was just set has not given out its value yet.
        let sql = format!("SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM {sequence}");
        let last: i64 = self.source.query_scalar(&sql).fetch_one(self.session.connection()).await?;
        let sql = self.source.names.render(include_str!("../../sql/source/holders.sql"));
        let holders: Option<Vec<String>> = self.source.query_scalar(&sql).fetch_one(self.session.connection()).await?;
        let holders = holders.unwrap_or_default();
        let fresh = Mark { sequence: last, holders, age: Duration::ZERO };
        let Some(mark) = mark else { return Ok((decided, Some(fresh))) };
        let holders = mark.still_open(&fresh.holders);
        Ok(if holders.is_empty() {
            (decided.max(mark.sequence.saturating_add(1)), Some(fresh))
        } else {
            (decided, Some(Mark { holders, ..mark }))
        })
    }
}

/// Where the next scan may start: below the lowest event that stays pending, below every id that an open transaction could
/// still commit, and not above what this scan reached.
pub(super) fn next_scan(claim: &Claim, lowest: Option<i64>) -> Scan {
    let nowhere = if claim.nothing_left { claim.decided } else { claim.from.max(claim.position_before) };
    let last = claim.events.iter().rfind(|event| event.was == Status::Pending);
    let reached = last.map_or(nowhere, |event| event.id.0.saturating_add(1));
    let position = claim.decided.min(reached).min(lowest.unwrap_or(i64::MAX));
    Scan { position, passed: claim.stopped.clone(), mark: claim.mark.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_was_prepared_meanwhile_is_still_open() {
        let open = |marked: &[&str], now: &[&str]| {
            let holders = marked.iter().map(|h| (*h).to_owned()).collect();
            let now: Vec<String> = now.iter().map(|h| (*h).to_owned()).collect();
            Mark { sequence: 1, holders, age: Duration::ZERO }.still_open(&now).join(" ")
        };
        assert_eq!(open(&["7:3/1", "8:4/1"], &["8:4/1", "9:5/1"]), "8:4/1");
        assert_eq!(open(&["7:3/1"], &["7:3/2", "9:5/1"]), "");
        assert_eq!(open(&["7:3/1"], &[":-1/700"]), ":-1/700");
        // Those that were open at the mark have all ended or been prepared: what is prepared later is somebody else.
        assert_eq!(open(&[":-1/700"], &[":-1/701"]), "");
        assert_eq!(open(&[], &[":-1/701"]), "");
    }
}
