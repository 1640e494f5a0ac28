//! What every chunk waits for before it takes a lane: an operator's pause, the pace, a legacy database that is busy. A copy that is paused
//! gives back its place among what its process does at a time, and waits for one when it goes on.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::pace::Pace;
use crate::config::Backfill;
use crate::job::Place;
use crate::source::Source;
use crate::target::Target;

/// How what is waited for begins while an operator wants it to rest.
pub(crate) const PAUSED: &str = "paused";
/// How often the databases are asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Gate<'a> {
    pub(super) source: &'a Source,
    pub(super) target: &'a Target,
    pub(super) entity: &'a str,
    pub(super) limits: &'a Backfill,
    pub(super) pace: &'a Pace,
    /// When it was looked last, and what stood in the way.
    pub(super) seen: Mutex<Option<(Instant, Option<Wait>)>>,
    pub(super) place: Option<&'a Place>,
}

/// What stands in the way.
#[derive(Clone)]
pub(super) enum Wait {
    /// An operator wants it to rest.
    Paused,
    /// The legacy database has enough to do.
    Busy(String),
}

impl Wait {
    fn why(&self) -> String {
        match self {
            Wait::Paused => format!("{PAUSED}: outbox-relay backfill --resume"),
            Wait::Busy(why) => why.clone(),
        }
    }
}

impl Gate<'_> {
    /// Waits until so many rows may be copied. False: it is to end. `tell` is told what is waited for, or that nothing is.
    pub(super) async fn pass(
        &self,
        rows: u32,
        tell: &(dyn Fn(Option<String>) + Sync),
        stop: &CancellationToken,
    ) -> bool {
        if let Some(pause) = self.pace.admit(rows)
            && !rest(pause, stop).await
        {
            return false;
        }
        loop {
            if stop.is_cancelled() {
                return false;
            }
            let wait = self.in_the_way().await;
            let mut why = wait.as_ref().map(Wait::why);
            match (&wait, self.place) {
                (Some(Wait::Paused), Some(place)) => place.give_back(),
                (None, Some(place)) if !place.take() => {
                    why = Some(
                        "this process does as much as it may at a time: it goes on when something ends".to_owned(),
                    );
                }
                _ => {}
            }
            tell(why.clone());
            if why.is_none() {
                return true;
            }
            if !rest(LOOK_EVERY, stop).await {
                return false;
            }
        }
    }

    /// As of a second ago at most.
    async fn in_the_way(&self) -> Option<Wait> {
        let mut seen = self.seen.lock().await;
        if let Some((at, wait)) = &*seen
            && at.elapsed() < LOOK_EVERY
        {
            return wait.clone();
        }
        let wait = self.look().await;
        *seen = Some((Instant::now(), wait.clone()));
        wait
    }

    async fn look(&self) -> Option<Wait> {
        // Whether a database is away is for the chunk to find out, which waits for it.
        if let Ok(copies) = self.target.copies().await
            && copies.iter().any(|copy| copy.entity == self.entity && copy.is_paused())
        {
            return Some(Wait::Paused);
        }
        if !self.limits.heeds_the_load() {
            return None;
        }
        let load = self.source.load().await.ok()?;
        if self.limits.max_sessions > 0 && load.active > i64::from(self.limits.max_sessions) {
            return Some(Wait::Busy(format!(
                "the legacy database is busy: {} active sessions, more than backfill.max_sessions = {}",
                load.active, self.limits.max_sessions
            )));
        }
        let lag = load.replica_lag.unwrap_or_default();
        if !self.limits.max_replica_lag.is_zero() && lag > self.limits.max_replica_lag {
            return Some(Wait::Busy(format!(
                "a replica of the legacy database is {lag:.1?} behind (backfill.max_replica_lag)"
            )));
        }
        None
    }
}

/// False: it is to end.
pub(super) async fn rest(pause: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(pause) => true,
    }
}
