//! What does not flow although nothing is wrong with the events: aggregate types stopped by an operator's error, and the target
//! being away.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::event::{Aggregate, EventId, Lane};
use crate::retry::Pause;

/// How many different aggregates in a row must fail alike before that is not the events' fault.
pub const STREAK: usize = 20;

/// Why an aggregate type is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// For programs.
    pub code: StopCode,
    /// For people.
    pub message: String,
}

/// Why an aggregate type is stopped, for programs: its text is stable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopCode {
    /// `unmapped`: no entity takes it.
    Unmapped,
    /// A mapping is wrong: the code of its error, `mapping.column` and the like.
    Mapping(&'static str),
    /// `refused.<SQLSTATE>`: the target refuses its events, whichever they are.
    Refused(String),
}

impl StopCode {
    /// Whether trying its events tells when it works again. Else a change of the configuration or of the tables does.
    fn is_probed(&self) -> bool {
        matches!(self, StopCode::Refused(_))
    }
}

impl fmt::Display for StopCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopCode::Unmapped => f.write_str("unmapped"),
            StopCode::Mapping(code) => f.write_str(code),
            StopCode::Refused(sqlstate) => write!(f, "refused.{sqlstate}"),
        }
    }
}

impl Serialize for StopCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

struct Stopped {
    stop: Stop,
    since: chrono::DateTime<chrono::Utc>,
    pause: Pause,
    next_probe: Instant,
    probing: bool,
    /// Where it was probed last: the next probe goes elsewhere, if there is work elsewhere.
    probed_in: Option<Lane>,
}

impl Stopped {
    fn is_due(&self, lane: Option<Lane>) -> bool {
        let patience = if lane.is_some() && lane == self.probed_in { ELSEWHERE } else { Duration::ZERO };
        self.stop.code.is_probed() && !self.probing && self.next_probe + patience <= Instant::now()
    }
}

/// How long a due probe waits for another lane than the last one's, whose front may be just what cannot be applied.
const ELSEWHERE: Duration = Duration::from_millis(200);

/// A stopped aggregate type, for people.
#[derive(Debug, Clone, Serialize)]
pub struct StopReport {
    /// Which.
    pub aggregate_type: String,
    /// Why.
    #[serde(flatten)]
    pub stop: Stop,
    /// Since when.
    pub since: chrono::DateTime<chrono::Utc>,
}

/// The stopped aggregate types of this process, and the failures that may yet stop one.
#[derive(Default)]
pub struct Stops {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    stopped: BTreeMap<String, Stopped>,
    streaks: HashMap<String, Streak>,
    /// What the failures that stopped a type had in common.
    alike: HashMap<String, Likeness>,
    /// What failures had in common when another event of the type passed, and when they were last met.
    own: HashMap<String, (Likeness, Instant)>,
}

/// What failures have in common: SQLSTATE, column, constraint.
pub type Likeness = (String, Option<String>, Option<String>);

struct Streak {
    likeness: Likeness,
    aggregates: HashSet<Aggregate>,
    counted: Vec<(Lane, EventId)>,
}

/// A claim that probes. When it ends, whatever it learned and however it ends, others may.
pub struct Probing<'a> {
    stops: &'a Stops,
    kinds: Vec<String>,
}

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        let mut inner = self.stops.lock();
        for kind in &self.kinds {
            if let Some(stopped) = inner.stopped.get_mut(kind) {
                stopped.probing = false;
            }
        }
    }
}

impl Stops {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Stops an aggregate type; whether that is news. If it was stopped already, the reason and the time of the next probe change.
    pub fn stop(&self, aggregate_type: &str, stop: Stop) -> bool {
        let mut inner = self.lock();
        inner.streaks.remove(aggregate_type);
        if let Some(stopped) = inner.stopped.get_mut(aggregate_type) {
            stopped.next_probe = Instant::now() + stopped.pause.next_pause();
            stopped.probing = false;
            // What a mapping's own check says is better than what a statement made of it met.
            let better = stopped.stop.code.is_probed() && !stop.code.is_probed();
            stopped.stop = stop;
            return better;
        }
        let mut pause = Pause::new(Duration::from_millis(250), Duration::from_secs(5));
        let next_probe = Instant::now() + pause.next_pause();
        let since = chrono::Utc::now();
        inner.stopped.insert(
            aggregate_type.to_owned(),
            Stopped { stop, since, pause, next_probe, probing: false, probed_in: None },
        );
        true
    }

    /// Ends every stop that does not end by probing, as after a new configuration.
    pub fn resume_unless(&self, mut still: impl FnMut(&str, &Stop) -> bool) {
        self.lock().stopped.retain(|kind, stopped| still(kind, &stopped.stop));
    }

    /// Whether something is stopped that a look at mappings and tables may explain or end.
    pub fn any_by_mapping(&self) -> bool {
        self.lock().stopped.values().any(|s| s.stop.code != StopCode::Unmapped)
    }

    /// Whether a type is stopped that batches try again and again.
    pub fn any_probed(&self) -> bool {
        self.lock().stopped.values().any(|stopped| stopped.stop.code.is_probed())
    }

    /// What a look leaves out: types that are stopped and not due to be probed.
    pub fn excluded(&self) -> Vec<String> {
        self.lock().stopped.iter().filter(|(_, s)| !s.is_due(None)).map(|(kind, _)| kind.clone()).collect()
    }

    /// What a claim leaves out; those left in are probed by this claim alone, until the guard is dropped.
    pub fn exclude_for_claim(&self, lane: Lane) -> (Vec<String>, Probing<'_>) {
        let mut excluded = Vec::new();
        let mut probes = Vec::new();
        for (kind, stopped) in &mut self.lock().stopped {
            if stopped.is_due(Some(lane)) {
                stopped.probing = true;
                stopped.probed_in = Some(lane);
                probes.push(kind.clone());
            } else {
                excluded.push(kind.clone());
            }
        }
        (excluded, Probing { stops: self, kinds: probes })
    }

    /// Something of this type was applied. Whether it was stopped until now.
    pub fn passed(&self, aggregate_type: &str) -> bool {
        let mut inner = self.lock();
        inner.streaks.remove(aggregate_type);
        let probing = inner.stopped.get(aggregate_type).is_some_and(|s| s.stop.code.is_probed());
        probing && inner.stopped.remove(aggregate_type).is_some()
    }

    /// All is tried anew: what was known of failures may have another reason now.
    pub fn forget(&self) {
        self.lock().own.clear();
    }

    /// Another event of the type passed where so many had failed alike: those are the events' own affair.
    pub fn another_passed(&self, aggregate_type: &str, likeness: Likeness) {
        self.lock().own.insert(aggregate_type.to_owned(), (likeness, Instant::now()));
    }

    /// An event failed by itself. `Some`: as many different aggregates in a row failed alike as make it the operator's error,
    /// and these are the events that were charged an attempt for it. `known`: it has failed before, and is its own affair if others that failed like
    /// it were, as long ago as that.
    pub fn failed(
        &self,
        aggregate: &Aggregate,
        likeness: Likeness,
        counted: Option<(Lane, EventId)>,
        known: Option<Duration>,
    ) -> Option<Vec<(Lane, EventId)>> {
        let mut inner = self.lock();
        if let (Some(known), Some((own, at))) = (known, inner.own.get_mut(&aggregate.kind))
            && *own == likeness
            && at.elapsed() < known
        {
            *at = Instant::now();
            return None;
        }
        // A probe that still fails the same way needs no second streak; one that fails otherwise is that event's affair.
        let still = inner.stopped.contains_key(&aggregate.kind) && inner.alike.get(&aggregate.kind) == Some(&likeness);
        let streak = inner.streaks.entry(aggregate.kind.clone()).or_insert_with(|| Streak {
            likeness: likeness.clone(),
            aggregates: HashSet::new(),
            counted: Vec::new(),
        });
        if streak.likeness != likeness {
            *streak = Streak { likeness: likeness.clone(), aggregates: HashSet::new(), counted: Vec::new() };
        }
        streak.aggregates.insert(aggregate.clone());
        streak.counted.extend(counted);
        let enough = if still { 1 } else { STREAK };
        let charged = (streak.aggregates.len() >= enough).then(|| std::mem::take(&mut streak.counted));
        if charged.is_some() {
            inner.alike.insert(aggregate.kind.clone(), likeness);
        }
        charged
    }

    /// For readiness and pages.
    pub fn report(&self) -> Vec<StopReport> {
        self.lock()
            .stopped
            .iter()
            .map(|(kind, s)| StopReport { aggregate_type: kind.clone(), stop: s.stop.clone(), since: s.since })
            .collect()
    }
}

/// Keeps one worker probing while the target is away, instead of all of them.
#[derive(Default)]
pub struct Breaker {
    open: Mutex<Option<Open>>,
}

struct Open {
    why: String,
    since: chrono::DateTime<chrono::Utc>,
    pause: Pause,
    until: Instant,
    probing: bool,
    /// A batch has met it, so a batch has to close it while any is tried: what hinders batches need not hinder a look.
    by_batch: bool,
}

/// After so long without a try, although one was allowed, there is nothing to be tried.
const UNTRIED: Duration = Duration::from_secs(5);

impl Open {
    fn new(why: String, by_batch: bool) -> Open {
        let mut pause = Pause::new(Duration::from_millis(100), Duration::from_secs(2));
        let until = Instant::now() + pause.next_pause();
        Open { why, since: chrono::Utc::now(), pause, until, probing: false, by_batch }
    }
}

impl Breaker {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether a worker may try now; else how long to wait.
    pub fn admit(&self) -> Result<(), Duration> {
        match self.lock().as_mut() {
            None => Ok(()),
            Some(open) if !open.probing && open.until <= Instant::now() => {
                open.probing = true;
                Ok(())
            }
            Some(open) => Err(open.until.saturating_duration_since(Instant::now()).max(Duration::from_millis(20))),
        }
    }

    /// The target answered. Whether the breaker was open.
    pub fn succeeded(&self) -> bool {
        self.lock().take().is_some()
    }

    /// The worker that was admitted learned nothing about the target.
    pub fn learned_nothing(&self) {
        if let Some(open) = self.lock().as_mut() {
            open.probing = false;
        }
    }

    /// A batch met a target that is away. Whether that is news.
    pub fn failed(&self, why: String) -> bool {
        let mut guard = self.lock();
        match guard.as_mut() {
            Some(open) => {
                open.until = Instant::now() + open.pause.next_pause();
                open.probing = false;
                open.by_batch = true;
                open.why = why;
                false
            }
            None => {
                *guard = Some(Open::new(why, true));
                true
            }
        }
    }

    /// A look met a target that cannot be reached, with nothing pending perhaps. Whether that is news.
    pub fn missed(&self, why: String) -> bool {
        let mut guard = self.lock();
        match guard.as_mut() {
            Some(open) => {
                open.why = why;
                false
            }
            None => {
                *guard = Some(Open::new(why, false));
                true
            }
        }
    }

    /// A look was answered. Whether that closed the breaker: not while batches try it and fail. What they failed at may be gone
    /// since, though (an errand of its own, another process), and then nobody else would ever find out.
    pub fn seen(&self) -> bool {
        let mut guard = self.lock();
        let tried = |open: &Open| open.by_batch && (open.probing || open.until + UNTRIED > Instant::now());
        if guard.as_ref().is_none_or(tried) {
            return false;
        }
        guard.take().is_some()
    }

    /// Why and since when it is open.
    pub fn report(&self) -> Option<(String, chrono::DateTime<chrono::Utc>)> {
        self.lock().as_ref().map(|open| (open.why.clone(), open.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_opens_the_breaker_and_closes_what_no_batch_meets() {
        let breaker = Breaker::default();
        assert!(!breaker.seen());
        assert!(breaker.missed("refused".into()) && !breaker.missed("refused".into()));
        assert!(breaker.report().is_some() && breaker.seen() && breaker.report().is_none());
        breaker.missed("refused".into());
        assert!(!breaker.failed("not within 10 s".into()));
        breaker.missed("refused".into());
        assert_eq!(breaker.report().unwrap().0, "refused");
        assert!(!breaker.seen() && breaker.succeeded());
        // A batch had met it, and there is none any more.
        breaker.failed("not within 10 s".into());
        let long_ago = Instant::now().checked_sub(UNTRIED);
        breaker.lock().iter_mut().for_each(|open| open.until = long_ago.unwrap_or(open.until));
        assert!(breaker.seen());
    }

    #[test]
    fn a_probe_that_is_cut_off_is_not_the_last_one() {
        let stops = Stops::default();
        let code = StopCode::Refused("42P01".into());
        stops.stop("User", Stop { code, message: String::new() });
        let due = || stops.lock().stopped.values_mut().for_each(|s| s.next_probe = Instant::now());
        due();
        let (_, probing) = stops.exclude_for_claim(Lane(0));
        assert_eq!(stops.excluded(), ["User"], "one at a time");
        drop(probing);
        due();
        assert!(stops.excluded().is_empty());
    }
}
