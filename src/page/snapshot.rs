//! What is so, gathered for everybody who looks: however many do, the databases are asked once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::config::Role;
use crate::health::{self, Facts, Gatherer};
use crate::migration::{self, Migration};
use crate::operator::{Cause, Holder};

/// How long an answer of the source stands.
const FRESH: Duration = Duration::from_millis(900);
/// Asking may take this share of the time.
const SHARE: u32 = 10;
/// How long an answer about the migration stands, and how long it may take.
const MIGRATION_FRESH: Duration = Duration::from_secs(5);
const MIGRATION_WITHIN: Duration = Duration::from_secs(3);
/// A source that takes longer is told of as away.
const ASK_WITHIN: Duration = Duration::from_secs(4);

/// What the source was asked, and what it said.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    pub(super) health: health::Asked,
    /// `None`: it could not be asked.
    pub(super) causes: Option<Vec<Cause>>,
    pub(super) holders: Vec<Holder>,
}

struct Kept {
    asked: Arc<Asked>,
    until: Instant,
}

/// The one place where pages ask.
pub(super) struct Snapshots {
    gatherer: Gatherer,
    /// What each role may see of it.
    for_admins: Mutex<Option<Kept>>,
    for_readers: Mutex<Option<Kept>>,
    /// Until when it stands; it has nothing in it that only some may see.
    migration: Mutex<Option<(Instant, Option<Arc<Migration>>)>>,
}

/// All that the overview shows.
pub(super) struct Snapshot {
    pub(super) facts: Facts,
    pub(super) asked: Arc<Asked>,
    /// Aggregate types that some entity takes.
    pub(super) mapped: Vec<String>,
}

impl Snapshots {
    pub(super) fn new(gatherer: Gatherer) -> Snapshots {
        Snapshots { gatherer, for_admins: Mutex::default(), for_readers: Mutex::default(), migration: Mutex::default() }
    }

    /// Ends with the server.
    pub(super) fn shutdown(&self) -> &CancellationToken {
        &self.gatherer.shutdown
    }

    /// Something was just changed: the next one who looks asks anew.
    pub(super) async fn forget(&self) {
        *self.for_admins.lock().await = None;
        *self.for_readers.lock().await = None;
    }

    /// As of a moment ago.
    pub(super) async fn take(&self, role: Role) -> Snapshot {
        let asked = self.ask(role).await;
        let mut facts = self.gatherer.facts(&asked.health);
        facts.failing = asked.causes.as_ref().map(|causes| {
            causes.iter().fold((0, 0), |(failed, retry), cause| (failed + cause.failed, retry + cause.retry))
        });
        Snapshot { facts, asked, mapped: self.gatherer.operator.mapped() }
    }

    /// How far the migration has come, as of a moment ago; `None`: no entity says of which legacy rows it is made, or a database is
    /// away.
    pub(super) async fn migration(&self) -> Option<Arc<Migration>> {
        let relay = self.gatherer.operator.relay()?;
        let tells = relay.entities().iter().any(|entity| entity.legacy.is_some());
        if !tells || relay.breaker.report().is_some() || relay.state().source_away.is_some() {
            return None;
        }
        let mut kept = self.migration.lock().await;
        if let Some((_, found)) = kept.as_ref().filter(|(until, _)| *until > Instant::now()) {
            return found.clone();
        }
        let started = Instant::now();
        let readers = self.gatherer.operator.seen_by(Role::Read);
        let asked = tokio::time::timeout(MIGRATION_WITHIN, migration::state(relay, readers.sight())).await;
        let found = asked.ok().and_then(Result::ok).map(Arc::new);
        *kept = Some((Instant::now() + MIGRATION_FRESH.max(started.elapsed() * SHARE), found.clone()));
        found
    }

    async fn ask(&self, role: Role) -> Arc<Asked> {
        let kept = if role == Role::Admin { &self.for_admins } else { &self.for_readers };
        let mut kept = kept.lock().await;
        if let Some(kept) = kept.as_ref().filter(|kept| kept.until > Instant::now()) {
            return kept.asked.clone();
        }
        let started = Instant::now();
        let mut health = self.gatherer.ask(ASK_WITHIN).await;
        let (mut causes, mut holders) = (None, Vec::new());
        if health.away.is_none() {
            let left = ASK_WITHIN.saturating_sub(started.elapsed());
            match tokio::time::timeout(left, self.gatherer.operator.seen_by(role).failures()).await {
                Ok(Ok(found)) => {
                    causes = Some(found);
                    holders = self.gatherer.operator.lane_holders().await.unwrap_or_default();
                }
                Ok(Err(error)) => health.away = Some(error.to_string()),
                Err(_) => health.away = Some(format!("no answer within {ASK_WITHIN:?}")),
            }
        }
        let asked = Arc::new(Asked { health, causes, holders });
        *kept = Some(Kept { asked: asked.clone(), until: Instant::now() + FRESH.max(started.elapsed() * SHARE) });
        asked
    }
}
