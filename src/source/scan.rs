//! From where a lane's next scan may start, so that it does not walk over dead rows again while vacuum is held back.
//!
//! Guarantees: no event that was committed, or that an open transaction may still commit, has an id below the position, but for
//! those of stopped types, ids drawn ahead, and events made pending again. A full scan finds the second, and whoever makes an
//! event pending says so in the lane's transaction. Remembered in the source's log only: a failover takes it back.

use std::time::{Duration, Instant};

use super::claim::Claim;
use super::lane::Entry;
use super::{Source, SourceLane};
use crate::event::Status;
use crate::session::Session;

/// How old a batch's look at the writers' transactions must be before the next one.
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
    /// When, by this process' clock: it ages while a batch runs, too.
    pub(super) seen: Instant,
}

impl Mark {
    /// In seconds, as the log takes it.
    pub(super) fn age(&self) -> f64 {
        self.seen.elapsed().as_secs_f64()
    }

    /// Which of its holders may still commit, by what is open now. A transaction that was prepared meanwhile has another name
    /// (`:-1/<xid>`, without a process): as long as a holder of the mark had a process, an unknown prepared one may be it.
    fn still_open(&self, now: &[String]) -> Vec<String> {
        let is_prepared = |holder: &str| holder.starts_with(':');
        let may_have_turned = self.holders.iter().any(|holder| !is_prepared(holder));
        now.iter().filter(|h| self.holders.contains(h) || (may_have_turned && is_prepared(h))).cloned().collect()
    }
}

impl Scan {
    /// Where a scan that leaves these types out may start: from the very start, if it is to take a type that was passed by.
    pub(super) fn start(&self, stopped: &[String], put_back: Option<i64>) -> i64 {
        let takes_more = self.passed.iter().any(|kind| !stopped.contains(kind));
        if takes_more { i64::MIN } else { self.position.min(put_back.unwrap_or(i64::MAX)) }
    }

    /// Whether its look at the writers, if there was one, is older: time for another.
    pub(super) fn mark_is_older_than(&self, age: Duration) -> bool {
        self.mark.as_ref().is_none_or(|mark| mark.seen.elapsed() >= age)
    }

    /// Up to where every id is committed or rolled back, by a new look at the writers; and the mark to wait for next.
    pub(super) fn decide(&self, seen: Mark) -> (i64, Mark) {
        let Some(mark) = &self.mark else { return (self.position, seen) };
        let holders = mark.still_open(&seen.holders);
        if holders.is_empty() {
            (self.position.max(mark.sequence.saturating_add(1)), seen)
        } else {
            (self.position, Mark { holders, ..mark.clone() })
        }
    }
}

impl SourceLane {
    /// What the newest entry remembers.
    pub(super) fn last_scan(&self) -> Scan {
        last_scan(self.newest.as_ref())
    }

    /// Where a scan that leaves these types out may start. `full`: at the very start.
    pub(super) fn start(&self, stopped: &[String], full: bool) -> i64 {
        let scan = self.newest.as_ref().filter(|_| !full).map(|entry| &entry.scan);
        scan.map_or(i64::MIN, |scan| scan.start(stopped, self.put_back))
    }

    /// Up to where every id is committed or rolled back. Asked before the scan: what an open transaction commits between the
    /// scan and the question would be passed by.
    pub(super) async fn decided(&mut self) -> sqlx::Result<(i64, Option<Mark>)> {
        let Some(sequence) = self.source.sequence.clone() else { return Ok((i64::MIN, None)) };
        let before = self.last_scan();
        if !before.mark_is_older_than(MARK_EVERY) {
            return Ok((before.position, before.mark));
        }
        let (decided, mark) = before.decide(seen(&self.source, &sequence, &mut self.session).await?);
        Ok((decided, Some(mark)))
    }
}

/// What a lane's newest entry remembers; the very start, without one.
pub(super) fn last_scan(newest: Option<&Entry>) -> Scan {
    newest.map_or(Scan { position: i64::MIN, passed: Vec::new(), mark: None }, |entry| entry.scan.clone())
}

/// A look at the writers: the sequence first, which may have been set and not have given out its value yet; then the holders, for
/// whoever drew an id up to there holds the lock by then, or has ended.
pub(super) async fn seen(source: &Source, sequence: &str, session: &mut Session) -> sqlx::Result<Mark> {
    let now = Instant::now();
    let sql = format!("SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM {sequence}");
    let sequence: i64 = source.query_scalar(&sql).fetch_one(session.connection()).await?;
    let sql = source.names.render(include_str!("../../sql/source/holders.sql"));
    let holders: Option<Vec<String>> = source.query_scalar(&sql).fetch_one(session.connection()).await?;
    Ok(Mark { sequence, holders: holders.unwrap_or_default(), seen: now })
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
    use std::sync::LazyLock;

    use super::*;
    use crate::event::{Aggregate, Event, EventId};

    fn mark(sequence: i64, holders: &[&str]) -> Mark {
        static SEEN: LazyLock<Instant> = LazyLock::new(Instant::now);
        Mark { sequence, holders: holders.iter().map(|h| (*h).to_owned()).collect(), seen: *SEEN }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_writer_that_was_prepared_meanwhile_is_still_open() {
        for (marked, now, still_open) in [
            (&["7:3/1", "8:4/1"][..], &["8:4/1", "9:5/1"][..], &["8:4/1"][..]),
            (&["7:3/1"], &["7:3/2", "9:5/1"], &[]),
            (&["7:3/1"], &[":-1/700"], &[":-1/700"]),
            // Those that were open at the mark have all ended or been prepared: what is prepared later is somebody else.
            (&[":-1/700"], &[":-1/701"], &[]),
            (&[], &[":-1/701"], &[]),
        ] {
            assert_eq!(mark(1, marked).still_open(&words(now)), words(still_open), "{marked:?}, then {now:?}");
        }
    }

    #[test]
    fn nothing_is_decided_above_a_mark_whose_writers_are_open() {
        let (one, both) = (&["7:3/1"][..], &["7:3/1", "8:4/1"][..]);
        for (before, seen, decided, next) in [
            // The first look only leaves a mark.
            (None, mark(50, one), 10, mark(50, one)),
            // All of the mark's writers are gone: every id up to it is decided, whoever writes now.
            (Some(mark(50, one)), mark(60, &["9:5/1"]), 51, mark(60, &["9:5/1"])),
            (Some(mark(50, &[])), mark(60, one), 51, mark(60, one)),
            // One is still open: the mark stays, and waits for that one alone.
            (Some(mark(50, both)), mark(60, one), 10, mark(50, one)),
            // A sequence that was set back does not set the position back.
            (Some(mark(5, &[])), mark(60, &[]), 10, mark(60, &[])),
        ] {
            let scan = Scan { position: 10, passed: Vec::new(), mark: before.clone() };
            assert_eq!(scan.decide(seen.clone()), (decided, next), "{before:?}, then {seen:?}");
        }
    }

    #[test]
    fn a_scan_that_takes_a_type_that_was_passed_by_starts_at_the_very_start() {
        for (passed, stopped, put_back, start) in [
            (&[][..], &[][..], None, 10),
            (&["User"], &["User", "Order"], None, 10),
            (&["User", "Order"], &["User"], None, i64::MIN),
            (&[], &[], Some(3), 3),
            (&[], &[], Some(30), 10),
        ] {
            let scan = Scan { position: 10, passed: words(passed), mark: None };
            assert_eq!(scan.start(&words(stopped), put_back), start, "{passed:?} {stopped:?} {put_back:?}");
        }
    }

    #[test]
    fn the_next_scan_passes_nothing_that_is_pending_or_may_yet_be_committed() {
        let event = |(id, was)| {
            let aggregate = Aggregate { kind: "User".into(), id: "1".into() };
            Event { id: EventId(id), was, ..Event::made_up(aggregate, "UserCreated", "{}".into()) }
        };
        let (pending, retry) = (Status::Pending, Status::Retry);
        // (from, position before, decided), claimed, the lowest that stays pending, nothing left: the position.
        for (scanned, claimed, lowest, nothing_left, position) in [
            // As far as the claim reached …
            ((10, 10, 100), &[(12, pending), (15, pending)][..], None, false, 16),
            // … but not past an id that an open transaction may commit,
            ((10, 10, 13), &[(12, pending), (15, pending)], None, false, 13),
            // an event that stays pending,
            ((10, 10, 100), &[(12, pending), (15, pending)], Some(12), false, 12),
            // or one that was released behind the scan.
            ((10, 10, 100), &[(12, pending)], Some(4), false, 4),
            // A retry tells nothing about how far the scan came.
            ((10, 10, 100), &[(40, retry)], None, false, 10),
            ((10, 10, 100), &[(12, pending), (40, retry)], None, false, 13),
            // A full scan that found only a retry takes nothing back.
            ((i64::MIN, 10, 100), &[(40, retry)], None, false, 10),
            // A full scan that found something below the position may have left more between.
            ((i64::MIN, 10, 100), &[(4, pending)], None, false, 5),
            // Nothing but stopped events, none of them locked: past all that is decided.
            ((10, 10, 100), &[], None, true, 100),
            // Without a sequence that can be trusted, never anywhere but at the very start.
            ((i64::MIN, i64::MIN, i64::MIN), &[(12, pending)], None, false, i64::MIN),
        ] {
            let (from, position_before, decided) = scanned;
            let events = claimed.iter().copied().map(event).collect();
            let claim = Claim { events, from, position_before, decided, nothing_left, ..Claim::default() };
            assert_eq!(next_scan(&claim, lowest).position, position, "{scanned:?} {claimed:?} {lowest:?}");
        }
    }
}
