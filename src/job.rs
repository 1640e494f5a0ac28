//! Long pieces of work (a copy, a verification, a repair) as everybody sees them: who does which, how far it is, what came of it.
//!
//! Guarantees: a job stands on the target from its beginning, whoever does it (a command, the API of some instance, `[verify] every`),
//! so that every instance tells of it; whoever does it says so every two seconds, and one of whom nothing was heard for half a
//! minute is `lost`; anybody may ask for its end, and it ends where it can go on from. Does not keep two apart that write the
//! same rows: the lanes' locks do.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::source::KeyTrouble;
use crate::target::{Job, JobId, Progress, Target};

/// What kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the commands of these names say it")]
pub enum Kind {
    Backfill,
    Verify,
    Repair,
    Resync,
}

impl Kind {
    /// The command's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Backfill => "backfill",
            Kind::Verify => "verify",
            Kind::Repair => "repair",
            Kind::Resync => "resync",
        }
    }
}

/// How it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Via {
    /// A command.
    #[default]
    Command,
    /// The admin API.
    Api,
    /// Nobody: `[verify] every`.
    Run,
}

impl Via {
    /// As it is kept.
    pub fn as_str(self) -> &'static str {
        match self {
            Via::Command => "command",
            Via::Api => "api",
            Via::Run => "run",
        }
    }
}

/// Who asked, how and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Who {
    /// A shell's user, a token's name.
    pub actor: String,
    /// In the actor's words.
    pub reason: String,
    /// How.
    pub via: Via,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Order {
    /// What kind.
    pub kind: Kind,
    /// Of which entities, by name.
    pub entities: Vec<String>,
    /// In the words of whoever asked: a JSON object.
    pub request: Value,
    /// Who asked.
    pub who: Who,
}

impl Order {
    /// Whether a job does what is ordered: the same, of the same entities, whoever asked for it, why and however fast. A copy that is to
    /// begin anew is done by none that has begun; one that is to go on, by one that has begun anew.
    pub fn is_done_by(&self, job: &Job) -> bool {
        let Ok(request) = serde_json::from_str(job.request.get()) else { return false };
        let sorted = |entities: &[String]| entities.iter().cloned().collect::<BTreeSet<_>>();
        self.request["restart"] != true
            && job.kind == self.kind.as_str()
            && sorted(&job.entities) == sorted(&self.entities)
            && essence(request) == essence(self.request.clone())
    }
}

/// A request without what makes no other work of it; of which entities it is, the job says.
fn essence(mut request: Value) -> Value {
    if let Some(words) = request.as_object_mut() {
        words.retain(|word, said| {
            !matches!(word.as_str(), "entity" | "entities" | "rate" | "restart" | "rows_per_second") && !said.is_null()
        });
    }
    request
}

/// Work that is under way, and beside which an order is not begun.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The job.
    pub job: Job,
    /// Whether it does what was ordered.
    pub is_same: bool,
}

impl Taken {
    /// What stands in the way of an order, if one of these kinds is under way for one of its entities.
    pub async fn look(target: &Target, order: &Order, unless: &[Kind]) -> sqlx::Result<Option<Taken>> {
        Ok(Taken::of(target.jobs_beside(order, &words(unless)).await?, order))
    }

    /// Of these, the one that does what was ordered, unless it was asked to end; else the first.
    pub(crate) fn of(jobs: Vec<Job>, order: &Order) -> Option<Taken> {
        let same = jobs.iter().position(|job| !job.stop_asked && order.is_done_by(job));
        let job = jobs.into_iter().nth(same.unwrap_or(0))?;
        Some(Taken { job, is_same: same.is_some() })
    }
}

fn words(kinds: &[Kind]) -> Vec<&'static str> {
    kinds.iter().map(|kind| kind.as_str()).collect()
}

/// How it ended.
#[derive(Debug, Clone)]
pub enum Ending {
    /// It did all that it could.
    Done(Value),
    /// It came to its end, and something is left for an operator to do.
    Left {
        /// What, for programs.
        code: &'static str,
        /// For people; nothing of a row is quoted.
        message: String,
        /// What came of it.
        result: Value,
    },
    /// It was told to end.
    Stopped(Option<Value>),
    /// It could not go on.
    Failed {
        /// SQLSTATE, or a code.
        code: String,
        /// For people.
        message: String,
    },
}

impl Ending {
    /// For an error of a database, or one in other words.
    pub fn failed(database: Option<&sqlx::Error>, message: impl Into<String>) -> Ending {
        Ending::Failed { code: code(database), message: message.into() }
    }

    /// As it is kept.
    pub(crate) fn state(&self) -> &'static str {
        match self {
            Ending::Done(_) | Ending::Left { .. } => "done",
            Ending::Stopped(_) => "stopped",
            Ending::Failed { .. } => "failed",
        }
    }

    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Ending::Failed { code, .. } => Some(code),
            Ending::Left { code, .. } => Some(code),
            Ending::Done(_) | Ending::Stopped(_) => None,
        }
    }

    pub(crate) fn message(&self) -> Option<&str> {
        match self {
            Ending::Failed { message, .. } | Ending::Left { message, .. } => Some(message),
            Ending::Done(_) | Ending::Stopped(_) => None,
        }
    }

    pub(crate) fn result(&self) -> Option<&Value> {
        match self {
            Ending::Done(result) | Ending::Left { result, .. } => Some(result),
            Ending::Stopped(result) => result.as_ref(),
            Ending::Failed { .. } => None,
        }
    }
}

/// By which programs tell why: of a key that does not tell rows apart its own, the SQLSTATE of what else a database said, else `failed`.
pub(crate) fn code(database: Option<&sqlx::Error>) -> String {
    let of = |error| match KeyTrouble::of(error) {
        Some(trouble) => Some(trouble.code().to_owned()),
        None => crate::session::sqlstate(error).map(Into::into),
    };
    database.and_then(of).unwrap_or_else(|| "failed".to_owned())
}

/// Between two words of whoever does it.
const BEAT: Duration = Duration::from_secs(2);

/// A place among the few pieces of work that this process does at a time, held until it is given back or nobody has it any more. Clones are
/// the same.
#[derive(Debug, Clone)]
pub struct Place {
    all: Arc<Semaphore>,
    held: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl Place {
    /// One of these; none: all are taken.
    pub fn of(all: &Arc<Semaphore>) -> Option<Place> {
        let place = Place { all: all.clone(), held: Arc::default() };
        place.take().then_some(place)
    }

    fn held(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves it to others.
    pub fn give_back(&self) {
        drop(self.held().take());
    }

    /// Takes one again, if it was given back. False: all are taken.
    pub fn take(&self) -> bool {
        let mut held = self.held();
        if held.is_none() {
            *held = self.all.clone().try_acquire_owned().ok();
        }
        held.is_some()
    }
}

/// A job of this process. Clones are the same.
#[derive(Clone)]
pub struct Working {
    target: Target,
    /// Which.
    pub id: JobId,
    progress: Arc<Mutex<Option<Progress>>>,
    stop: CancellationToken,
    place: Option<Place>,
}

impl std::fmt::Debug for Working {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Working").field(&self.id).finish()
    }
}

impl Working {
    /// Begins it. It is told to end with `stop`, or by whoever asks for it on the target.
    pub async fn begin(target: &Target, order: &Order, stop: &CancellationToken) -> sqlx::Result<Working> {
        Ok(Working::of(target, target.begin_job(order).await?, stop))
    }

    /// Begins it unless one of these kinds is under way for one of its entities.
    pub async fn begin_unless(
        target: &Target,
        order: &Order,
        unless: &[Kind],
        stop: &CancellationToken,
    ) -> sqlx::Result<Result<Working, Box<Taken>>> {
        Ok(target.begin_job_unless(order, &words(unless)).await?.map(|id| Working::of(target, id, stop)))
    }

    fn of(target: &Target, id: JobId, stop: &CancellationToken) -> Working {
        Working { target: target.clone(), id, progress: Arc::default(), stop: stop.child_token(), place: None }
    }

    /// It takes a place.
    #[must_use]
    pub fn at(self, place: Place) -> Working {
        Working { place: Some(place), ..self }
    }

    /// Its place, to be given back while it rests.
    pub fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// Cancelled when it is to end.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// How far it has come; told to everybody with the next beat.
    pub fn tell(&self, progress: Progress) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress);
    }

    fn told(&self) -> Option<Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does the work, and says meanwhile that it is under way. All that a job waits for is done in here, connecting too: else a slow
    /// server looks like a process that is gone.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let beat = async {
            loop {
                tokio::time::sleep(BEAT).await;
                // A target that is away is for the work to wait for.
                match self.target.beat_job(self.id, self.told().as_ref()).await {
                    Ok(true) => self.stop.cancel(),
                    Ok(false) => {}
                    Err(error) => tracing::debug!(%error, job = self.id.0, "could not tell how far the work is"),
                }
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            never = beat => { let never: Infallible = never; match never {} }
        }
    }

    /// Says how it ended. Where the target is away, the job is `lost` to others.
    pub async fn end(&self, ending: &Ending) {
        if let Err(error) = self.target.end_job(self.id, ending, self.told().as_ref()).await {
            tracing::debug!(%error, job = self.id.0, "could not tell how the work ended");
        }
    }
}

/// This process, for people: host and number.
pub fn host() -> String {
    let host = nix::unistd::gethostname().map(|host| host.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{host}:{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn order(kind: Kind, entities: &[&str], request: Value) -> Order {
        Order { kind, entities: entities.iter().map(|&name| name.to_owned()).collect(), request, who: Who::default() }
    }

    fn job(id: i64, of: &Order, stop_asked: bool) -> Job {
        let request = serde_json::value::to_raw_value(&of.request).unwrap();
        Job {
            id,
            kind: of.kind.as_str().to_owned(),
            entities: of.entities.clone(),
            state: "running".to_owned(),
            request,
            actor: "ada".to_owned(),
            reason: "another".to_owned(),
            via: "api".to_owned(),
            host: String::new(),
            began_at: chrono::DateTime::UNIX_EPOCH,
            beat_at: chrono::DateTime::UNIX_EPOCH,
            ended_at: None,
            stop_asked,
            progress: None,
            code: None,
            message: None,
            result: None,
        }
    }

    #[test]
    fn a_job_does_what_is_ordered_if_it_is_the_same_work_of_the_same_entities_however_fast() {
        let copy = |request| order(Kind::Backfill, &["users"], request);
        let whole = copy(json!({ "entities": ["users"], "restart": false, "rows_per_second": null }));
        let verify = |entities: &[&str], sample: Option<u32>| {
            order(Kind::Verify, entities, json!({ "entities": entities, "sample": sample, "rate": 5 }))
        };
        for (asked, done, same) in [
            (&whole, &whole, true),
            // A command's has other words for the same.
            (&whole, &copy(json!({ "entities": [], "restart": false })), true),
            (&whole, &copy(json!({ "restart": false, "rows_per_second": 9 })), true),
            (&whole, &copy(json!({ "restart": true })), true),
            (&copy(json!({ "restart": true })), &whole, false),
            (&copy(json!({ "restart": true })), &copy(json!({ "restart": true })), false),
            (&whole, &order(Kind::Backfill, &["users", "orders"], json!({ "restart": false })), false),
            (&whole, &order(Kind::Resync, &["users"], whole.request.clone()), false),
            (&verify(&["a", "b"], None), &verify(&["b", "a"], None), true),
            (&verify(&["a"], Some(5)), &verify(&["a"], Some(6)), false),
            (&verify(&["a"], None), &verify(&["a"], Some(6)), false),
        ] {
            assert_eq!(asked.is_done_by(&job(1, done, false)), same, "{asked:?} {done:?}");
        }
    }

    #[test]
    fn a_place_that_is_given_back_is_anothers_until_that_one_is_gone() {
        let all = Arc::new(Semaphore::new(1));
        let first = Place::of(&all).unwrap();
        assert!(Place::of(&all).is_none() && first.clone().take());
        first.give_back();
        let other = Place::of(&all).unwrap();
        assert!(!first.take());
        drop(other);
        assert!(first.take() && Place::of(&all).is_none());
        drop(first);
        assert!(Place::of(&all).is_some());
    }

    #[test]
    fn the_one_that_does_the_same_is_told_before_any_other_but_not_once_it_is_to_end() {
        let asked = order(Kind::Verify, &["users"], json!({ "sample": null }));
        let another = order(Kind::Verify, &["users"], json!({ "sample": 5 }));
        for (jobs, expected) in [
            (vec![], None),
            (vec![job(1, &another, false), job(2, &asked, false)], Some((2, true))),
            (vec![job(1, &another, false), job(2, &asked, true)], Some((1, false))),
            (vec![job(2, &asked, true)], Some((2, false))),
        ] {
            assert_eq!(Taken::of(jobs, &asked).map(|taken| (taken.job.id, taken.is_same)), expected);
        }
    }
}
