//! Long pieces of work, kept on the target: see [`crate::job`].

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::Row;
use sqlx::postgres::PgRow;
use utoipa::ToSchema;

use super::Target;
use crate::job::{Ending, Order, Taken};
use crate::session::Session;
use crate::sql::from_json;

/// Names a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobId(pub i64);

/// How far a piece of work has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Of which entity.
    pub entity: String,
    /// Rows of it so far.
    pub rows: u64,
    /// Rows of it in all, about.
    pub estimate: Option<u64>,
    /// Rows a second since it was begun or went on.
    pub rate: f64,
    /// What is waited for.
    pub waits_for: Option<String>,
}

/// A long piece of work: a copy, a verification, a repair.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Job {
    /// Its number.
    pub id: i64,
    /// `backfill`, `verify`, `repair` or `resync`.
    pub kind: String,
    /// Of which entities.
    pub entities: Vec<String>,
    /// `running`; `lost`: its process has said nothing for half a minute; `done`, `stopped` (it goes on where it was when it is begun
    /// again) or `failed`.
    pub state: String,
    /// What was asked for.
    #[schema(value_type = serde_json::Map<String, serde_json::Value>)]
    pub request: Box<RawValue>,
    /// Who asked.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// How: `command`, `api`, or `run` (by itself).
    pub via: String,
    /// Who does it: host and process.
    pub host: String,
    /// When it began, by the target's clock.
    pub began_at: DateTime<Utc>,
    /// When whoever does it last said so.
    pub beat_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Whether it was asked to end.
    pub stop_asked: bool,
    /// How far it has come.
    pub progress: Option<Progress>,
    /// Why it failed: SQLSTATE, or a code. Of a copy that is done: `rows_left`, if rows were left out.
    pub code: Option<String>,
    /// Likewise, for people.
    pub message: Option<String>,
    /// What came of it: of a copy its `copies`; of a verification its `report`, `outcome` and `differences`; of a repair the numbers,
    /// `changes` and `notes`.
    #[schema(value_type = Option<serde_json::Map<String, serde_json::Value>>)]
    pub result: Option<Box<RawValue>>,
}

impl Job {
    /// Whether somebody does it now.
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }
}

fn job(row: &PgRow) -> sqlx::Result<Job> {
    let progress: Option<String> = row.try_get("progress")?;
    Ok(Job {
        id: row.try_get("id")?,
        kind: row.try_get("kind")?,
        entities: row.try_get("entities")?,
        state: row.try_get("state")?,
        request: from_json(row.try_get("request")?)?,
        actor: row.try_get("actor")?,
        reason: row.try_get("reason")?,
        via: row.try_get("via")?,
        host: row.try_get("host")?,
        began_at: row.try_get("began_at")?,
        beat_at: row.try_get("beat_at")?,
        ended_at: row.try_get("ended_at")?,
        stop_asked: row.try_get("stop")?,
        // Another version's may look otherwise.
        progress: progress.and_then(|text| serde_json::from_str(&text).ok()),
        code: row.try_get("code")?,
        message: row.try_get("message")?,
        result: row.try_get::<Option<&str>, _>("result")?.map(from_json).transpose()?,
    })
}

/// What a job is read from: the columns of every statement that reads some.
pub(super) const COLUMNS: &str = "id, kind, entities, request::text AS request, actor, reason, via, host, began_at, beat_at, \
     progress::text AS progress, stop, ended_at, \
     CASE WHEN ended_at IS NOT NULL THEN state WHEN beat_at > clock_timestamp() - interval '30 seconds' THEN 'running' ELSE 'lost' END AS state, \
     code, message, result::text AS result";

impl Target {
    /// Begins a job.
    pub(crate) async fn begin_job(&self, order: &Order) -> sqlx::Result<JobId> {
        self.begin(self.alone().await?, order).await
    }

    /// The same, unless one of these kinds is under way for one of its entities: that one.
    pub(crate) async fn begin_job_unless(
        &self,
        order: &Order,
        unless: &[&str],
    ) -> sqlx::Result<Result<JobId, Box<Taken>>> {
        let mut session = self.alone().await?;
        let sql = self.render(include_str!("../../sql/target/job_beside.sql"));
        let beside = self.query(&sql).bind(unless).bind(&order.entities).fetch_all(session.connection()).await?;
        if let Some(taken) = Taken::of(beside.iter().map(job).collect::<sqlx::Result<_>>()?, order) {
            session.rollback().await;
            return Ok(Err(Box::new(taken)));
        }
        self.begin(session, order).await.map(Ok)
    }

    async fn begin(&self, mut session: Session, order: &Order) -> sqlx::Result<JobId> {
        let sql = self.render(include_str!("../../sql/target/job_begin.sql"));
        let begin = self
            .query_scalar(&sql)
            .bind(order.kind.as_str())
            .bind(&order.entities)
            .bind(order.request.to_string())
            .bind(&order.who.actor)
            .bind(&order.who.reason)
            .bind(order.who.via.as_str())
            .bind(crate::job::host());
        let id = begin.fetch_one(session.connection()).await?;
        session.commit().await?;
        Ok(JobId(id))
    }

    /// Jobs of these kinds that are under way for one of the order's entities, the first that began first.
    pub(crate) async fn jobs_beside(&self, order: &Order, kinds: &[&str]) -> sqlx::Result<Vec<Job>> {
        let sql = self.render(include_str!("../../sql/target/job_beside.sql"));
        self.ask(self.query(&sql).bind(kinds).bind(&order.entities)).await?.iter().map(job).collect()
    }

    /// Says that the job is under way; whether somebody asked for its end.
    pub(crate) async fn beat_job(&self, id: JobId, progress: Option<&Progress>) -> sqlx::Result<bool> {
        let sql = self.render(include_str!("../../sql/target/job_beat.sql"));
        let rows = self.ask(self.query(&sql).bind(id.0).bind(progress.map(text))).await?;
        rows.first().map_or(Ok(false), |row| row.try_get("stop"))
    }

    /// Says that it has ended.
    pub(crate) async fn end_job(&self, id: JobId, ending: &Ending, progress: Option<&Progress>) -> sqlx::Result<()> {
        let sql = self.render(include_str!("../../sql/target/job_end.sql"));
        let end = self
            .query(&sql)
            .bind(id.0)
            .bind(ending.state())
            .bind(ending.code())
            .bind(ending.message())
            .bind(ending.result().map(ToString::to_string))
            .bind(progress.map(text));
        self.ask(end).await.map(drop)
    }

    /// Asks for the end of a job, whoever does it. False: it has ended, or was asked before.
    pub async fn stop_job(&self, id: JobId) -> sqlx::Result<bool> {
        let sql = self.render(include_str!("../../sql/target/job_stop.sql"));
        Ok(!self.ask(self.query(&sql).bind(id.0)).await?.is_empty())
    }

    /// Jobs, newest first; `below`: only older ones than that.
    pub async fn jobs(&self, below: Option<JobId>, at_most: u32) -> sqlx::Result<Vec<Job>> {
        let sql = self.render(include_str!("../../sql/target/jobs.sql"));
        let below = below.map_or(i64::MAX, |id| id.0);
        self.ask(self.query(&sql).bind(below).bind(i64::from(at_most))).await?.iter().map(job).collect()
    }

    /// Jobs that have not ended, newest first.
    pub async fn open_jobs(&self) -> sqlx::Result<Vec<Job>> {
        let sql = self.render(include_str!("../../sql/target/jobs_open.sql"));
        self.ask(self.query(&sql)).await?.iter().map(job).collect()
    }

    /// One job.
    pub async fn job(&self, id: JobId) -> sqlx::Result<Option<Job>> {
        let sql = self.render(include_str!("../../sql/target/job.sql"));
        self.ask(self.query(&sql).bind(id.0)).await?.first().map(job).transpose()
    }
}

fn text(progress: &Progress) -> String {
    serde_json::to_string(progress).unwrap_or_default()
}
