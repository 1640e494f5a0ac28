//! Long pieces of work (a copy, a verification, a repair) as everybody sees them: who does which, how far it is, what came of it.
//!
//! Guarantees: a job stands on the target from its beginning, whoever does it (a command, the API of some instance, `[verify] every`),
//! so that every instance tells of it; whoever does it says so every two seconds, and one of whom nothing was heard for half a
//! minute is `lost`; anybody may ask for its end, and it ends where it can go on from. Does not keep two apart that write the
//! same rows: the lanes' locks do.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::target::{Begun, JobId, Progress, Target};

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

/// How it ended.
#[derive(Debug, Clone)]
pub enum Ending {
    /// It did all that it could.
    Done(Value),
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
        let code = database.and_then(crate::session::sqlstate).map_or_else(|| "failed".to_owned(), Into::into);
        Ending::Failed { code, message: message.into() }
    }

    /// As it is kept.
    pub(crate) fn state(&self) -> &'static str {
        match self {
            Ending::Done(_) => "done",
            Ending::Stopped(_) => "stopped",
            Ending::Failed { .. } => "failed",
        }
    }

    pub(crate) fn code(&self) -> Option<&str> {
        if let Ending::Failed { code, .. } = self { Some(code) } else { None }
    }

    pub(crate) fn message(&self) -> Option<&str> {
        if let Ending::Failed { message, .. } = self { Some(message) } else { None }
    }

    pub(crate) fn result(&self) -> Option<&Value> {
        match self {
            Ending::Done(result) => Some(result),
            Ending::Stopped(result) => result.as_ref(),
            Ending::Failed { .. } => None,
        }
    }
}

/// Between two words of whoever does it.
const BEAT: Duration = Duration::from_secs(2);

/// A job of this process. Clones are the same.
#[derive(Clone)]
pub struct Working {
    target: Target,
    /// Which.
    pub id: JobId,
    progress: Arc<Mutex<Option<Progress>>>,
    stop: CancellationToken,
}

impl std::fmt::Debug for Working {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Working").field(&self.id).finish()
    }
}

impl Working {
    /// Begins it. It is told to end with `stop`, or by whoever asks for it on the target.
    pub async fn begin(target: &Target, order: &Order, stop: &CancellationToken) -> sqlx::Result<Working> {
        match target.begin_job(order, &[]).await? {
            Begun::New(id) | Begun::Already(id) => Ok(Working::of(target, id, stop)),
        }
    }

    /// Begins it unless one of these kinds is under way for one of its entities: then that one's number.
    pub async fn begin_unless(
        target: &Target,
        order: &Order,
        unless: &[Kind],
        stop: &CancellationToken,
    ) -> sqlx::Result<Result<Working, JobId>> {
        let unless: Vec<&str> = unless.iter().map(|kind| kind.as_str()).collect();
        Ok(match target.begin_job(order, &unless).await? {
            Begun::New(id) => Ok(Working::of(target, id, stop)),
            Begun::Already(id) => Err(id),
        })
    }

    fn of(target: &Target, id: JobId, stop: &CancellationToken) -> Working {
        Working { target: target.clone(), id, progress: Arc::default(), stop: stop.child_token() }
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

    /// Does the work, and says meanwhile that it is under way.
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
