//! What is written where after a batch was applied, and what is counted of it. Pure, but for the trace.

use std::collections::HashMap;
use std::time::Instant;

use chrono::{DateTime, Utc};

use super::plan;
use super::refusal::Verdict;
use super::visit::Counts;
use crate::event::{Event, EventId, Status};
use crate::source::{Claim, Recheck, Settlement};
use crate::telemetry::{self, TraceParent};

/// What is written where.
#[derive(Default)]
pub(super) struct Tally<'a> {
    pub(super) applied: Vec<&'a Event>,
    pub(super) given_up: Vec<&'a Event>,
    pub(super) settlement: Settlement,
    pub(super) left: u64,
}

pub(super) fn tally<'a>(
    claim: &'a Claim,
    recheck: &Recheck,
    verdicts: &[Option<Verdict>],
    pass: &[String],
) -> Tally<'a> {
    let mut tally = Tally {
        applied: Vec::new(),
        given_up: Vec::new(),
        settlement: Settlement {
            left_lowest: recheck.unlocked.iter().map(|(_, id)| *id).min(),
            ..Settlement::default()
        },
        left: recheck.unlocked.len() as u64,
    };
    for (event, verdict) in claim.events.iter().zip(verdicts) {
        match verdict {
            Some(Verdict::Applied) => {
                tally.applied.push(event);
                tally.settlement.processed.push(event.id);
            }
            Some(Verdict::Unapplied(unapplied)) => {
                if unapplied.status == Status::Failed {
                    tally.given_up.push(event);
                }
                tally.settlement.unapplied.push((**unapplied).clone());
            }
            Some(Verdict::Left) | None => {
                tally.left += 1;
                if event.was == Status::Pending {
                    tally.settlement.left_lowest =
                        Some(tally.settlement.left_lowest.map_or(event.id, |id| id.min(event.id)));
                }
            }
        }
    }
    // What was given up and is passed over holds nobody back any more either.
    let passed = tally.given_up.iter().copied().filter(|e| pass.contains(&e.aggregate.kind));
    let freed = plan::aggregates(
        tally
            .applied
            .iter()
            .copied()
            .chain(passed)
            .filter(|e| e.was == Status::Retry || recheck.blocked.contains_key(&e.aggregate)),
    );
    tally.settlement.freed = freed;
    tally
}

pub(super) fn count(claim: &Claim, tally: &Tally<'_>, settled_at: DateTime<Utc>, started: Instant) -> Counts {
    let mut counts = Counts { more: claim.more, left: tally.left, took: started.elapsed(), ..Counts::default() };
    for event in &tally.applied {
        trace(event);
        telemetry::applied(event, counts.took);
        match counts.processed.get_mut(&event.aggregate.kind) {
            Some(events) => *events += 1,
            None => drop(counts.processed.insert(event.aggregate.kind.clone(), 1)),
        }
        counts.lags.push((settled_at - event.created_at).as_seconds_f64());
    }
    if !tally.settlement.unapplied.is_empty() {
        let kinds: HashMap<EventId, &str> = claim.events.iter().map(|e| (e.id, e.aggregate.kind.as_str())).collect();
        for unapplied in &tally.settlement.unapplied {
            let kind = kinds.get(&unapplied.id).copied().unwrap_or_default();
            *counts.unapplied.entry((kind.to_owned(), unapplied.status)).or_default() += 1;
        }
    }
    counts.more |= !tally.settlement.freed.is_empty();
    counts
}

/// Ties an applied event to the trace of its writer, for whoever asks for this level.
fn trace(event: &Event) {
    if tracing::enabled!(tracing::Level::TRACE) {
        let parent = event.headers.as_deref().and_then(TraceParent::from_headers);
        tracing::trace!(
            event.id = event.id.0,
            event.event_id = %event.event_id,
            aggregate_type = %event.aggregate.kind,
            event_type = %event.event_type,
            trace_id = parent.as_ref().map(|p| p.trace_id.as_str()),
            parent_span_id = parent.as_ref().map(|p| p.parent_id.as_str()),
            "applied"
        );
    }
}
