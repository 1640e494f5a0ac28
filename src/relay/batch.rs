//! One batch of one lane: claim → apply → settle, or one step of healing. Every statement's place in it is the protocol's.
//!
//! Guarantees: what is claimed takes effect once, whatever ends the process or either server in between; it is settled now, or
//! healed by whoever takes the lane next. Nothing takes effect unless the source answered under the lease after the target was
//! locked. Does not retry: an error is the worker's to wait for.

use std::collections::HashSet;
use std::time::Instant;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::Shared;
use super::apply::{ApplyError, Applying, Charged};
use super::plan;
use super::refusal::{Verdict, held};
use super::router::{Destination, Router};
use super::stops::{Stop, StopCode};
use super::tally::{Tally, count, tally};
pub use super::visit::{BatchError, Counts, Errand, Healed, Outcome};
use crate::disposition::{self, Disposition};
use crate::event::{Aggregate, BatchKey, Event, Lane};
use crate::failpoint::reach;
use crate::heal;
use crate::lease::{self, LeaseError, Taken};
use crate::source::{Claim, SourceLane};
use crate::target::TargetLane;

/// One batch, or one step of healing, of one lane.
pub async fn run_once(shared: &Shared, lane: Lane, errand: Errand) -> Result<(Outcome, Charged), BatchError> {
    let deadline = shared.config.relay.deadline;
    match tokio::time::timeout(deadline, attempt(shared, lane, errand)).await {
        // What took effect is settled once that lock is gone.
        Ok(Err(error)) if error.is_row_locked() => {
            let who = shared.source.row_lockers().await.ok().flatten().unwrap_or_else(|| "somebody".to_owned());
            Err(BatchError::Stopped(format!(
                "lane {lane}: rows of the outbox that are to be settled are locked by {who}"
            )))
        }
        Ok(result) => result,
        // Both sessions were dropped, and with them their connections.
        Err(_) => Err(BatchError::Deadline(deadline)),
    }
}

async fn attempt(shared: &Shared, lane: Lane, errand: Errand) -> Result<(Outcome, Charged), BatchError> {
    let started = Instant::now();
    let (mut source, target) = match lease::take(&shared.source, &shared.target, lane, None).await? {
        Taken::Busy => return Ok((Outcome::Busy, Charged::new())),
        Taken::Differ(source, target) => {
            let healed = heal::run_once(source, target, &shared.router().passing(), shared.config.relay.batch).await?;
            return Ok((Outcome::Healed(healed), Charged::new()));
        }
        Taken::Both(source, target) => (source, target),
    };
    if source.all_paused() {
        target.abandon().await;
        source.release_lease().await;
        return Ok((Outcome::Paused, Charged::new()));
    }
    if let Some((newest, _)) = &target.newest {
        source.draw_above(newest.token).await.map_err(BatchError::Source)?;
    }
    // Given back however this ends: a probe that a deadline cut off must not be the last one.
    let (mut excluded, _probing) = shared.stops.exclude_for_claim(lane);
    excluded.extend(source.paused.iter().cloned());
    excluded.sort();
    excluded.dedup();
    batch(shared, source, target, errand, &excluded, started).await
}

async fn batch(
    shared: &Shared,
    mut source: SourceLane,
    mut target: TargetLane,
    errand: Errand,
    excluded: &[String],
    started: Instant,
) -> Result<(Outcome, Charged), BatchError> {
    let relay = &shared.config.relay;
    // Only now: that the source still answers in this transaction is the proof that this worker is no ghost.
    let mut claim = source
        .claim(excluded, errand.full, errand.due, errand.at_most(relay.batch), relay.batch_bytes)
        .await
        .map_err(BatchError::Source)?;
    reach("claimed");
    if errand.advance && source.is_worth_an_entry(&mut claim).await.map_err(BatchError::Source)? {
        // A batch without events, for the sake of its entry: the next scan starts past the stopped ones.
        take_effect(source, target, (&claim, &Tally::default()), &shared.router(), &[], 0).await?;
        return Ok((Outcome::Settled(Counts { took: started.elapsed(), ..Counts::default() }), Charged::new()));
    }
    if claim.events.is_empty() {
        target.abandon().await;
        source.release_lease().await;
        return Ok((Outcome::Nothing, Charged::new()));
    }
    let router = shared.router();
    let pass = router.passing();
    let recheck = source.recheck(&claim, &pass).await.map_err(BatchError::Source)?;
    let sorted = plan::sort(&claim.events, &recheck);
    let (todo, mut verdicts) = route(shared, &router, &claim.events, &sorted);
    let mut charged = Charged::new();
    if !todo.is_empty() {
        if errand.isolate && todo.len() > 1 {
            target.isolate().await.map_err(BatchError::Target)?;
        }
        let mut applying = Applying::new(shared, &router, &mut target, &claim.events, errand.isolate);
        applying.apply(todo).await.map_err(|error| match error {
            ApplyError::Transient(error) => BatchError::Target(error),
            ApplyError::Contended(error) => BatchError::Contended(error),
        })?;
        for (verdict, found) in verdicts.iter_mut().zip(applying.verdicts) {
            *verdict = found.or(verdict.take());
        }
        charged = applying.charged;
    }
    reach("applied");
    let tally = tally(&claim, &recheck, &verdicts, &pass);
    if tally.settlement.processed.is_empty() && tally.settlement.unapplied.is_empty() {
        target.abandon().await;
        source.release_lease().await;
        return Ok((Outcome::Nothing, charged));
    }
    let settled_at = take_effect(source, target, (&claim, &tally), &router, &pass, relay.batch).await?;
    let counts = count(&claim, &tally, settled_at, started);
    Ok((Outcome::Settled(counts), charged))
}

/// The source's clock as it was read, and when that was.
pub(super) struct Clock(DateTime<Utc>, Instant);

impl Clock {
    /// What it shows now.
    pub(super) fn now(&self) -> DateTime<Utc> {
        self.0 + self.1.elapsed()
    }
}

/// With when it was answered: the target may still be committing then.
pub(super) async fn timed<E>(settling: impl Future<Output = Result<DateTime<Utc>, E>>) -> Result<Clock, E> {
    settling.await.map(|at| Clock(at, Instant::now()))
}

/// A commit that the target refuses for what was applied: then nothing took effect, and whose it is the next batch finds out, which checks before.
pub(super) fn refused_commit(router: &Router, error: sqlx::Error) -> BatchError {
    match disposition::of(&error) {
        Disposition::Event | Disposition::Waiting if !router.check_late() => BatchError::Contended(error),
        _ => BatchError::Target(error),
    }
}

/// What was applied takes effect, and only then what settles it is committed; both logs get the batch's entry. The statements that settle are
/// made while the target commits. The source's clock.
async fn take_effect(
    mut source: SourceLane,
    mut target: TargetLane,
    (claim, tally): (&Claim, &Tally<'_>),
    router: &Router,
    pass: &[String],
    release_at_most: u32,
) -> Result<DateTime<Utc>, BatchError> {
    let key = BatchKey { token: source.token, nonce: Uuid::new_v4() };
    let (here, there) = (source.identity.clone(), target.identity.clone());
    let effect = async {
        let appended = target.append(key, &here, &tally.applied, &tally.given_up).await.map_err(BatchError::Target)?;
        if !appended {
            return Err(BatchError::Overtaken);
        }
        reach("appended");
        target.commit().await.map_err(|error| refused_commit(router, error))
    };
    let settling = source.settle(key, &there, claim, &tally.settlement, pass, release_at_most);
    let (effect, settled) = tokio::join!(effect, timed(settling));
    effect?;
    // It has taken effect.
    reach("target_committed");
    let settled_at = settled.map_err(LeaseError::of_settling)?.now();
    reach("settled");
    source.commit().await.map_err(BatchError::Source)?;
    reach("source_committed");
    Ok(settled_at)
}

/// Which events go to the target, and what is clear about the others.
fn route(
    shared: &Shared,
    router: &Router,
    events: &[Event],
    sorted: &plan::Sorted,
) -> (Vec<usize>, Vec<Option<Verdict>>) {
    let mut verdicts: Vec<Option<Verdict>> = vec![None; events.len()];
    for at in &sorted.held {
        verdicts[*at] = Some(Verdict::Unapplied(held(&events[*at], None)));
    }
    for at in &sorted.left {
        verdicts[*at] = Some(Verdict::Left);
    }
    let mut todo = Vec::with_capacity(sorted.apply.len());
    let mut behind: HashSet<&Aggregate> = HashSet::new();
    for at in &sorted.apply {
        let event = &events[*at];
        if behind.contains(&event.aggregate) {
            verdicts[*at] = Some(Verdict::Unapplied(held(event, None)));
            continue;
        }
        match router.destination(event) {
            Destination::Shape(_) => todo.push(*at),
            Destination::Broken => verdicts[*at] = Some(Verdict::Left),
            Destination::UnknownEventType => {
                let why = format!(
                    "unmapped: no entity of aggregate type {} names the event type {}: map it or set it to \"ignore\"",
                    event.aggregate.kind, event.event_type
                );
                behind.insert(&event.aggregate);
                verdicts[*at] = Some(Verdict::Unapplied(held(event, Some(why))));
            }
            Destination::UnknownAggregateType => {
                let message = format!(
                    "no entity takes the aggregate type \"{}\": add an [[entity]] for it, or one that ignores it",
                    event.aggregate.kind
                );
                if shared.stops.stop(&event.aggregate.kind, Stop { code: StopCode::Unmapped, message: message.clone() })
                {
                    tracing::error!(aggregate_type = %event.aggregate.kind, code = %StopCode::Unmapped, "stopped until it is mended: {message}");
                }
                verdicts[*at] = Some(Verdict::Left);
            }
        }
    }
    (todo, verdicts)
}
