//! Applies a batch's events on the target: all together, and where that fails by halves, until the failing events stand alone.
//!
//! Guarantees: every event has a verdict afterwards, and the transaction holds the effects of those that were applied and of no
//! other; what is behind a failed event of its aggregate is not tried. Commits nothing.

use std::collections::{HashMap, HashSet};

use super::Shared;
use super::plan::{self, Group};
use super::refusal::{Verdict, cause, decide, held};
use super::router::{Destination, Router, Step};
use super::stops::{Likeness, Stop, StopCode};
use crate::disposition::{self, Disposition, Said};
use crate::event::{Aggregate, Event, EventId, Lane, Status};
use crate::source::FailureRecord;
use crate::target::{Events, Hand, TargetLane};
use crate::telemetry::TraceParent;

/// Why a batch was given up as a whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    #[error(transparent)]
    Transient(sqlx::Error),
    /// A lock or statement timeout, out of memory: the first time as transient, then isolated.
    #[error(transparent)]
    Contended(sqlx::Error),
}

/// Events that were charged an attempt for what turned out to be the operator's error.
pub(super) type Charged = Vec<(Lane, EventId)>;

pub(super) struct Applying<'a> {
    pub(super) shared: &'a Shared,
    pub(super) router: &'a Router,
    pub(super) target: &'a mut TargetLane,
    pub(super) events: &'a [Event],
    /// Whether to isolate contended events too.
    pub(super) isolate: bool,
    pub(super) verdicts: Vec<Option<Verdict>>,
    pub(super) charged: Charged,
    blocked: HashSet<&'a Aggregate>,
    stopped: HashSet<&'a str>,
    /// How events of a type failed where another one passed: these are not the operator's, whichever comes next.
    own: HashSet<(&'a str, Likeness)>,
    /// Statements that were tried with zero events, and why these stop a type, if they do.
    tried_empty: HashMap<String, Option<Stop>>,
}

/// A statement that failed.
pub(super) struct Refusal<'r> {
    step: Option<&'r Step>,
    pub(super) error: sqlx::Error,
}

/// Runs the statements of these events, in order, up to the first that fails.
pub(super) async fn together<'r>(
    router: &'r Router,
    mut target: Hand<'_>,
    events: &[&Event],
) -> Result<(), Refusal<'r>> {
    let shaped = events.iter().enumerate().filter_map(|(at, event)| match router.destination(event) {
        Destination::Shape(shape) => Some((at, &event.aggregate, shape)),
        _ => None,
    });
    for wave in plan::waves(shaped) {
        for Group { route, events: group } in wave {
            let rows: Events<'_> = group.iter().map(|at| events[*at]).collect();
            for step in &router.route(route).steps {
                let result = target.run(&step.statement, &rows).await;
                result.map_err(|error| Refusal { step: Some(step), error })?;
            }
        }
    }
    if router.checks_late() {
        target.check_constraints().await.map_err(|error| Refusal { step: None, error })?;
    }
    Ok(())
}

impl<'a> Applying<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        router: &'a Router,
        target: &'a mut TargetLane,
        events: &'a [Event],
        isolate: bool,
    ) -> Applying<'a> {
        Applying {
            shared,
            router,
            target,
            events,
            isolate,
            verdicts: vec![None; events.len()],
            charged: Vec::new(),
            blocked: HashSet::new(),
            stopped: HashSet::new(),
            own: HashSet::new(),
            tried_empty: HashMap::new(),
        }
    }

    /// Applies these events, in order. Every one has a verdict afterwards.
    pub(super) async fn apply(&mut self, todo: Vec<usize>) -> Result<(), ApplyError> {
        // A stack, the earlier half on top: what fails holds back only what comes later.
        let mut parts = vec![todo];
        // Whether there is something that an undo must not take along. Nearly always all passes at once, and nothing follows.
        let mut to_keep = false;
        while let Some(part) = parts.pop() {
            let part = self.still_possible(part);
            if part.is_empty() {
                continue;
            }
            if std::mem::take(&mut to_keep) {
                self.target.keep().await.map_err(ApplyError::Transient)?;
            }
            let Err(refusal) = self.try_together(&part).await else {
                self.passed(&part);
                to_keep = true;
                continue;
            };
            let disposition = match disposition::of(&refusal.error) {
                Disposition::Transient if !disposition::may_be_of_a_value(&refusal.error) => {
                    return Err(ApplyError::Transient(refusal.error));
                }
                Disposition::Transient | Disposition::Contended if !self.isolate => {
                    return Err(ApplyError::Contended(refusal.error));
                }
                // It came again. And what does not come with zero events is not the operator's alone.
                Disposition::Transient | Disposition::Operator => Disposition::Event,
                known => known,
            };
            self.target.undo().await.map_err(ApplyError::Transient)?;
            if let Some(stop) = self.operators(&refusal).await? {
                self.stop_type(&part, refusal.step, stop);
                parts.push(part);
            } else if let [one] = part[..] {
                to_keep = self.fail(one, &refusal, disposition, &mut parts).await?;
            } else {
                let later = part[part.len() / 2..].to_vec();
                parts.push(later);
                parts.push(part[..part.len() / 2].to_vec());
            }
        }
        Ok(())
    }

    /// Without what an earlier failure holds back or stopped.
    fn still_possible(&mut self, part: Vec<usize>) -> Vec<usize> {
        let mut possible = Vec::with_capacity(part.len());
        for at in part {
            let aggregate = &self.events[at].aggregate;
            if self.stopped.contains(aggregate.kind.as_str()) {
                self.verdicts[at] = Some(Verdict::Left);
            } else if self.blocked.contains(aggregate) {
                self.verdicts[at] = Some(Verdict::Unapplied(held(&self.events[at], None)));
            } else {
                possible.push(at);
            }
        }
        possible
    }

    async fn try_together(&mut self, part: &[usize]) -> Result<(), Refusal<'a>> {
        let events: Vec<&Event> = part.iter().map(|at| &self.events[*at]).collect();
        together(self.router, self.target.hand(), &events).await
    }

    fn passed(&mut self, part: &[usize]) {
        let mut kinds = HashSet::new();
        for at in part {
            self.verdicts[*at] = Some(Verdict::Applied);
            kinds.insert(self.events[*at].aggregate.kind.as_str());
        }
        for kind in kinds {
            if self.shared.stops.passed(kind) {
                tracing::info!(aggregate_type = kind, "flows again");
            }
        }
    }

    /// Whether the error is the operator's, whatever its code: because it comes with zero events too. By its code alone that cannot be told, for
    /// what a value of a type like `tsquery` or `regclass` is refused for has the codes of a statement that is wrong.
    async fn operators(&mut self, refusal: &Refusal<'a>) -> Result<Option<Stop>, ApplyError> {
        let Some(step) = refusal.step else { return Ok(None) };
        if let Some(known) = self.tried_empty.get(&step.statement.sql) {
            return Ok(known.clone());
        }
        let empty = Events::default();
        let result = self.target.run(&step.statement, &empty).await;
        self.target.undo().await.map_err(ApplyError::Transient)?;
        let stop = match result {
            Ok(_) => None,
            Err(error) => match disposition::of(&error) {
                Disposition::Transient => return Err(ApplyError::Transient(error)),
                Disposition::Contended => None,
                _ => Some(stop_of(step, &disposition::said(&error))),
            },
        };
        self.tried_empty.insert(step.statement.sql.clone(), stop.clone());
        Ok(stop)
    }

    /// Whether this statement is one of the event's; without one, whether it has any.
    fn goes_through(&self, event: &Event, step: Option<&Step>) -> bool {
        let Destination::Shape(shape) = self.router.destination(event) else { return false };
        let steps = &self.router.route(shape.route).steps;
        step.map_or(!steps.is_empty(), |step| steps.contains(step))
    }

    fn stop_type(&mut self, part: &[usize], step: Option<&Step>, stop: Stop) {
        let kinds: HashSet<&'a str> = part
            .iter()
            .map(|at| &self.events[*at])
            .filter(|event| self.goes_through(event, step))
            .map(|event| event.aggregate.kind.as_str())
            .collect();
        for kind in kinds {
            self.stopped.insert(kind);
            if self.shared.stops.stop(kind, stop.clone()) {
                tracing::error!(aggregate_type = kind, code = %stop.code, "stopped until it is mended: {}", stop.message);
            }
        }
        // What of these failed by itself in this very batch was not the event's fault either; but what was passed over, and a
        // later event of its aggregate applied, must not be applied by itself any more.
        let mut overtaken: HashSet<&Aggregate> = HashSet::new();
        for (at, verdict) in self.verdicts.iter_mut().enumerate().rev() {
            let event = &self.events[at];
            match verdict {
                Some(Verdict::Applied) => {
                    overtaken.insert(&event.aggregate);
                }
                Some(Verdict::Unapplied(_))
                    if self.stopped.contains(event.aggregate.kind.as_str())
                        && !overtaken.contains(&event.aggregate) =>
                {
                    *verdict = Some(Verdict::Left);
                }
                _ => {}
            }
        }
    }

    /// Whether another event of the type passes through the statement by which this one was refused, of those that are left: the last one that is
    /// its aggregate's first. What has failed alike until now is then not the operator's.
    async fn another_passes(
        &mut self,
        failed: &Event,
        step: Option<&Step>,
        parts: &mut [Vec<usize>],
    ) -> Result<bool, ApplyError> {
        let mut left: Vec<usize> = parts.iter().flatten().copied().collect();
        left.sort_unstable();
        // Nothing of the failed one's own aggregate goes before it.
        let mut seen = HashSet::from([&failed.aggregate]);
        let events = self.events;
        left.retain(|at| {
            let event = &events[*at];
            let is_first = seen.insert(&event.aggregate) && !self.blocked.contains(&event.aggregate);
            is_first && event.aggregate.kind == failed.aggregate.kind && self.goes_through(event, step)
        });
        let Some(other) = left.pop() else { return Ok(false) };
        if let Err(refusal) = self.try_together(&[other]).await {
            self.target.undo().await.map_err(ApplyError::Transient)?;
            return match disposition::of(&refusal.error) {
                Disposition::Transient if !disposition::may_be_of_a_value(&refusal.error) => {
                    Err(ApplyError::Transient(refusal.error))
                }
                _ => Ok(false),
            };
        }
        self.passed(&[other]);
        parts.iter_mut().for_each(|part| part.retain(|at| *at != other));
        Ok(true)
    }

    /// One event failed by itself. Whether another one was applied meanwhile.
    async fn fail(
        &mut self,
        at: usize,
        refusal: &Refusal<'a>,
        disposition: Disposition,
        parts: &mut [Vec<usize>],
    ) -> Result<bool, ApplyError> {
        let event = &self.events[at];
        let said = disposition::said(&refusal.error);
        let entity = refusal.step.map_or("", |step| step.entity.as_str());
        let place = refusal.step.and_then(|step| place(step, said.position));
        let record = FailureRecord {
            entity: entity.to_owned(),
            aggregate_type: event.aggregate.kind.clone(),
            cause: cause(entity, &said),
            disposition: disposition.as_str(),
            code: said.code.clone(),
            message: said.message.clone(),
            constraint: said.constraint.clone(),
            column: said.column.clone(),
            detail: said.detail.clone(),
            place,
        };
        let unapplied = decide(event, disposition, record, &self.shared.config.retry);
        // Logs, and the message of a stop, are for everybody.
        let told = self.shared.config.redact.logged(&event.aggregate.kind, &said.code, &said.message);
        let likeness = (said.code.clone(), said.column.clone(), said.constraint.clone());
        let counted = (unapplied.attempts > event.attempts).then_some((self.target.lane, event.id));
        // What waits for another row waits by itself. Twenty children before their parent are nobody's error, and a type that
        // stopped for them could not apply the parent if that is of the same type.
        let waits = matches!(disposition, Disposition::Contended | Disposition::Waiting) && counted.is_none();
        let kind = event.aggregate.kind.as_str();
        // Known to be its own; what comes again may come with none beside it that passes.
        let known = (event.was == Status::Retry).then_some(self.shared.config.retry.max * 2);
        let streak = match waits || self.own.contains(&(kind, likeness.clone())) {
            true => None,
            false => self.shared.stops.failed(&event.aggregate, likeness.clone(), counted, known),
        };
        let applied = streak.is_some() && self.another_passes(event, refusal.step, parts).await?;
        if applied {
            self.target.keep().await.map_err(ApplyError::Transient)?;
            // Or it is mended, just now.
            if self.try_together(&[at]).await.is_ok() {
                self.passed(&[at]);
                return Ok(true);
            }
            self.target.undo().await.map_err(ApplyError::Transient)?;
            self.shared.stops.another_passed(kind, likeness.clone());
            self.own.insert((kind, likeness));
        }
        if let Some(charged) = streak.filter(|_| !applied) {
            let stop = Stop {
                code: StopCode::Refused(said.code.clone()),
                message: format!(
                    "every event of the last {} aggregates was refused alike by {entity}: {told} ({}). It resumes by itself once one passes",
                    super::stops::STREAK,
                    said.code
                ),
            };
            self.charged.extend(charged.into_iter().filter(|(_, id)| !self.events.iter().any(|e| e.id == *id)));
            self.verdicts[at] = Some(Verdict::Left);
            self.stop_type(&[at], refusal.step, stop);
            return Ok(false);
        }
        if plan::holds_back(unapplied.status, self.router.on_failure(&event.aggregate.kind)) {
            self.blocked.insert(&event.aggregate);
        }
        let parent = event.headers.as_deref().and_then(TraceParent::from_headers);
        macro_rules! tell {
            ($level:ident) => {
                tracing::$level!(
                    event.id = event.id.0,
                    trace_id = parent.as_ref().map(|p| p.trace_id.as_str()),
                    parent_span_id = parent.as_ref().map(|p| p.parent_id.as_str()),
                    aggregate_type = %event.aggregate.kind,
                    entity,
                    disposition = %disposition,
                    code = %said.code,
                    attempts = unapplied.attempts,
                    status = %unapplied.status,
                    "event refused: {}",
                    told
                )
            };
        }
        // What waits for another row is tried several times a second: a crowd of it would fill the log.
        if waits && event.failing_for.is_some() {
            tell!(debug)
        } else {
            tell!(warn)
        }
        self.verdicts[at] = Some(Verdict::Unapplied(Box::new(unapplied)));
        Ok(applied)
    }
}

fn stop_of(step: &Step, said: &Said) -> Stop {
    let place = place(step, said.position).map(|p| format!(" at {p}")).unwrap_or_default();
    Stop {
        code: StopCode::Refused(said.code.clone()),
        message: format!("{}: {} ({}){place}", step.entity, said.message, said.code),
    }
}

/// `mappings/user.sql:4:3`
fn place(step: &Step, position: Option<usize>) -> Option<String> {
    let file = step.statement.file.as_ref()?;
    Some(match position.and_then(|at| step.statement.place(at)) {
        Some((line, column)) => format!("{file}:{line}:{column}"),
        None => file.clone(),
    })
}
