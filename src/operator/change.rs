//! Replay and skip: of one event, and of all that match a filter.
//!
//! Order is kept by the relay's own rules. A replayed event is pending again; when it is claimed and an earlier one of its
//! aggregate still waits, it is held like any other. The one thing that the relay cannot undo is a replay that overwrites newer
//! state, so that is refused here unless forced. Under `[retention] processed = "0s"`, and for events that retention has
//! deleted, nobody knows any more whether there was a newer one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use sqlx::Row;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::events::statement;
use super::{By, Event, EventRef, Filter, Operator, OperatorError, Result, audit};
use crate::event::{BatchKey, EventId, Lane, Status};
use crate::session;
use crate::source::SourceLane;
use crate::sql::{query, query_scalar};

/// Events a transaction: a lane is kept from the relay for some tens of milliseconds.
const CHUNK: usize = 500;
/// How long a call waits for a lane that batches come and go in.
const LANE_PATIENCE: Duration = Duration::from_secs(10);
/// How long one call may look for newer events.
const SCAN_ONE: Duration = Duration::from_secs(15);
/// Likewise for many.
const SCAN_MANY: Duration = Duration::from_secs(300);

/// What to do with events that fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Try again as if never tried.
    Replay,
    /// Pass over; what is held behind it goes on.
    Skip,
}

impl Verb {
    /// As in the audit table.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Replay => "replay",
            Verb::Skip => "skip",
        }
    }

    /// Which events a call for many means. Skipped ones are replayed only where they are asked for: somebody skipped them on
    /// purpose.
    fn statuses(self, wanted: Option<Status>) -> Result<Vec<Status>> {
        match (self, wanted) {
            (_, None) => Ok(vec![Status::Retry, Status::Failed]),
            (_, Some(status @ (Status::Retry | Status::Failed))) | (Verb::Replay, Some(status @ Status::Skipped)) => {
                Ok(vec![status])
            }
            (_, Some(status)) => Err(OperatorError::Invalid {
                code: "filter.status",
                message: format!(
                    "a {} of many takes failed and retry events (a replay skipped ones too), not {status} ones",
                    self.as_str()
                ),
            }),
        }
    }
}

/// A call for many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bulk {
    /// Which.
    pub filter: Filter,
    /// How many the caller believes they are.
    pub expected: Option<u64>,
    /// An empty filter is meant.
    pub all: bool,
    /// Only count.
    pub dry_run: bool,
    /// Replay also where a newer event of the aggregate was applied.
    pub force: bool,
}

/// What a call for many did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct BulkResult {
    /// Events that matched.
    pub matched: u64,
    /// Events that were changed.
    pub changed: u64,
    /// Events that were not, because a newer one of their aggregate was applied already.
    pub refused: u64,
}

/// What a call for one did.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Changed {
    /// False: it was so already.
    pub changed: bool,
    /// As it is now.
    #[serde(flatten)]
    pub event: Event,
}

/// What is the same for all lanes of a call.
struct Job<'a> {
    verb: Verb,
    force: bool,
    /// Looked at again under the lock: a waiting event may fail for another cause meanwhile.
    still: Option<(&'a Filter, &'a [Status])>,
    /// Events with a newer one applied, as found before the lock; and each lane's newest batch before that.
    newer: HashSet<EventId>,
    heads: HashMap<Lane, Option<BatchKey>>,
}

impl Operator {
    /// Replays one event. `force`: also one that was processed, or that a newer one of its aggregate has overtaken.
    pub async fn replay(&self, event: &EventRef, force: bool, by: &By) -> Result<Changed> {
        self.change_one(Verb::Replay, event, force, by).await
    }

    /// Passes one event over.
    pub async fn skip(&self, event: &EventRef, by: &By) -> Result<Changed> {
        self.change_one(Verb::Skip, event, false, by).await
    }

    /// Replays or skips all that match, lane by lane, until `stop`. What is done is done: a call that ended early is repeated.
    pub async fn bulk(&self, verb: Verb, bulk: &Bulk, by: &By, stop: &CancellationToken) -> Result<BulkResult> {
        if bulk.filter.is_empty() && !bulk.all {
            let message = "an empty filter means every failing event: say \"all\": true if that is meant".to_owned();
            return Err(OperatorError::Invalid { code: "filter.empty", message });
        }
        let statuses = verb.statuses(bulk.filter.status)?;
        let found = self.collect(&bulk.filter, &statuses).await?;
        let mut result =
            BulkResult { matched: found.values().map(|ids| ids.len() as u64).sum(), ..BulkResult::default() };
        if let Some(expected) = bulk.expected.filter(|expected| *expected != result.matched) {
            return Err(OperatorError::NotAsExpected { expected, matched: result.matched });
        }
        if bulk.dry_run || result.matched == 0 {
            return Ok(result);
        }
        let job = self.prepare(verb, bulk.force, &found, SCAN_MANY).await?;
        let job = Job { still: Some((&bulk.filter, &statuses)), ..job };
        let audit = self.intend(verb, bulk, by, result.matched).await?;
        let unfinished = |why: String, result: BulkResult| {
            Err(OperatorError::Unfinished { why, matched: result.matched, changed: result.changed })
        };
        for (lane, ids) in &found {
            for chunk in ids.chunks(CHUNK) {
                if stop.is_cancelled() {
                    return unfinished("the relay is shutting down".to_owned(), result);
                }
                match self.change_chunk(&job, *lane, chunk, audit).await {
                    Ok((changed, refused)) => {
                        result.changed += changed;
                        result.refused += refused;
                    }
                    Err(error) if result.changed > 0 => return unfinished(error.to_string(), result),
                    Err(error) => return Err(error),
                }
            }
        }
        tracing::info!(actor = %by.actor, matched = result.matched, changed = result.changed, "{} of many", verb.as_str());
        Ok(result)
    }

    async fn change_one(&self, verb: Verb, event: &EventRef, force: bool, by: &By) -> Result<Changed> {
        let found = self.event(event).await?;
        let id = found.event.id;
        if !is_to_be_changed(verb, &found, force)? {
            return Ok(Changed { changed: false, event: found });
        }
        let job = self.prepare(verb, force, &BTreeMap::from([(found.lane, vec![id])]), SCAN_ONE).await?;
        let mut locked = self.lane(found.lane).await?;
        let (allowed, refused) = self.not_overtaken(&job, &mut locked, &[id]).await?;
        if refused > 0 {
            locked.release_lease().await;
            return Err(OperatorError::Refused {
                code: "newer_applied",
                message: format!(
                    "a newer event of {} {} was applied already, and event {id} would overwrite what it did. If that is what you \
                     want: \"force\": true",
                    found.event.aggregate.kind, found.event.aggregate.id
                ),
            });
        }
        let changed = self.change_locked(&job, &mut locked, &allowed).await?;
        if changed > 0 {
            let subject =
                json!({"id": id, "event_id": found.event.event_id, "was": found.event.status, "force": force});
            audit::insert(self.names(), locked.transaction(), by, verb.as_str(), &subject, (1, changed)).await?;
        }
        locked.commit().await?;
        let event = self.event(&EventRef::Id(id)).await?;
        if changed == 0 && is_to_be_changed(verb, &event, force)? {
            return Err(OperatorError::Busy(format!(
                "event {id} was changed by somebody else at the same time: look again"
            )));
        }
        tracing::info!(event.id = id.0, actor = %by.actor, changed = changed > 0, "{}", verb.as_str());
        Ok(Changed { changed: changed > 0, event })
    }

    async fn collect(&self, filter: &Filter, statuses: &[Status]) -> Result<BTreeMap<Lane, Vec<EventId>>> {
        let sql = statement(self.names(), include_str!("../../sql/operator/collect.sql"), statuses);
        let mut session = self.reading(Duration::from_secs(120)).await?;
        let rows = filter.bind(query(&sql, false)).fetch_all(session.connection()).await?;
        session.commit().await?;
        let mut lanes: BTreeMap<Lane, Vec<EventId>> = BTreeMap::new();
        for row in &rows {
            lanes.entry(row.try_get("lane")?).or_default().push(row.try_get("id")?);
        }
        Ok(lanes)
    }

    /// What must be known before a lane is locked, because finding it out takes long.
    async fn prepare(
        &self,
        verb: Verb,
        force: bool,
        found: &BTreeMap<Lane, Vec<EventId>>,
        at_most: Duration,
    ) -> Result<Job<'static>> {
        let mut job = Job { verb, force, still: None, newer: HashSet::new(), heads: HashMap::new() };
        if verb == Verb::Skip || force {
            return Ok(job);
        }
        // The logs first: what is settled while the events are looked through is found in there.
        job.heads = self.source.heads().await?;
        let ids: Vec<EventId> = found.values().flatten().copied().collect();
        let mut session = self.reading(at_most).await?;
        let sql = self.names().render(include_str!("../../sql/operator/newer_applied.sql"));
        let newer = query_scalar(&sql, false).bind(&ids).fetch_all(session.connection()).await;
        job.newer = newer.map_err(undecided)?.into_iter().collect();
        session.commit().await?;
        Ok(job)
    }

    /// Written before the first change; each transaction adds what it changed.
    async fn intend(&self, verb: Verb, bulk: &Bulk, by: &By, matched: u64) -> Result<i64> {
        let subject = json!({"filter": bulk.filter, "force": bulk.force});
        let mut transaction = self.pool().begin().await?;
        let id = audit::insert(self.names(), &mut transaction, by, verb.as_str(), &subject, (matched, 0)).await?;
        transaction.commit().await?;
        Ok(id)
    }

    async fn change_chunk(&self, job: &Job<'_>, lane: Lane, ids: &[EventId], audit: i64) -> Result<(u64, u64)> {
        let mut locked = self.lane(lane).await?;
        let mut ids = ids.to_vec();
        if let Some((filter, statuses)) = job.still {
            let sql = statement(self.names(), include_str!("../../sql/operator/still_match.sql"), statuses);
            let filter = Filter { ids: Some(ids), ..filter.clone() };
            let rows = filter.bind(query(&sql, false)).fetch_all(locked.transaction()).await?;
            ids = rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>()?;
        }
        let (allowed, refused) = self.not_overtaken(job, &mut locked, &ids).await?;
        let changed = self.change_locked(job, &mut locked, &allowed).await?;
        if changed > 0 {
            audit::add(self.names(), locked.transaction(), audit, changed).await?;
        }
        locked.commit().await?;
        Ok((changed, refused))
    }

    async fn lane(&self, lane: Lane) -> Result<SourceLane> {
        self.source.wait_for_lane(lane, LANE_PATIENCE).await?.ok_or_else(|| {
            OperatorError::Busy(format!(
                "lane {lane} was busy for {LANE_PATIENCE:?} (does the new database hang?): nothing was changed, try again"
            ))
        })
    }

    /// Without the events that would overwrite newer state; and how many these are.
    async fn not_overtaken(
        &self,
        job: &Job<'_>,
        locked: &mut SourceLane,
        ids: &[EventId],
    ) -> Result<(Vec<EventId>, u64)> {
        let mut overtaken: HashSet<EventId> = HashSet::new();
        if job.verb == Verb::Replay
            && !job.force
            && let Some(Some(head)) = job.heads.get(&locked.lane)
        {
            let since = locked.newer_since(ids, *head).await?.ok_or_else(|| {
                OperatorError::Busy(format!(
                    "lane {} was healed in the meantime: nothing was changed, try again",
                    locked.lane
                ))
            })?;
            overtaken = job.newer.iter().copied().chain(since).collect();
        }
        let allowed: Vec<EventId> = ids.iter().copied().filter(|id| !overtaken.contains(id)).collect();
        let refused = (ids.len() - allowed.len()) as u64;
        Ok((allowed, refused))
    }

    async fn change_locked(&self, job: &Job<'_>, locked: &mut SourceLane, ids: &[EventId]) -> Result<u64> {
        let changed = match job.verb {
            Verb::Replay => locked.replay(ids, job.force).await,
            Verb::Skip => locked.skip(ids, &self.passing(), self.batch).await,
        };
        match changed {
            Ok(changed) => Ok(changed.len() as u64),
            Err(error) if session::is_lock_timeout(&error) => Err(OperatorError::Busy(
                "somebody else holds a lock on these events: nothing was changed, try again".to_owned(),
            )),
            Err(error) => Err(error.into()),
        }
    }
}

fn undecided(error: sqlx::Error) -> OperatorError {
    if session::is_statement_timeout(&error) {
        return OperatorError::Refused {
            code: "newer_unknown",
            message: "whether a newer event was applied could not be found out in time: the outbox is large, and these events are \
                      old. If you know that none was: \"force\": true"
                .to_owned(),
        };
    }
    error.into()
}

/// Whether there is something to do; an error where it must not be done.
fn is_to_be_changed(verb: Verb, event: &Event, force: bool) -> Result<bool> {
    let refused = |code: &'static str, message: String| Err(OperatorError::Refused { code, message });
    let id = event.event.id;
    let Ok(status) = event.event.status.parse::<Status>() else {
        return refused(
            "unknown_status",
            format!("event {id} has the status {:?}, which is none of the relay's", event.event.status),
        );
    };
    match (verb, status) {
        (Verb::Replay, Status::Pending) | (Verb::Skip, Status::Skipped) => Ok(false),
        (_, Status::Failed | Status::Retry) | (Verb::Replay, Status::Skipped) => Ok(true),
        (Verb::Replay, Status::Processed) if force => Ok(true),
        (Verb::Replay, Status::Processed) => {
            refused("processed", format!("event {id} was applied already. To apply it again: \"force\": true"))
        }
        (_, Status::Held) => {
            let behind = event.held_behind.map_or_else(
                || event.event.last_error.clone().unwrap_or_else(|| "it is about to be released".to_owned()),
                |before| format!("it goes on once event {before} of its aggregate is processed or skipped"),
            );
            refused("held", format!("event {id} is held: {behind}"))
        }
        (Verb::Skip, _) => {
            refused("not_failing", format!("event {id} is {status}; only failed and retry events can be skipped"))
        }
    }
}
