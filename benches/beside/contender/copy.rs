//! What can be had by hand: one connection pair, 5,000 events at a time by COPY from server to server, one statement that
//! applies them, one that marks them. It keeps no log: a crash between the two commits applies 5,000 events twice.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::{Drain, OUTBOX};
use crate::ground::{Effect, Ground, Load, Pair, TRANSFORM, run};

const EVENTS: i64 = 5_000;

/// A pair of connections, and what goes over them.
pub(crate) struct Pipeline {
    legacy: PgConnection,
    new: PgConnection,
    apply: String,
}

impl Pipeline {
    pub(crate) async fn new(legacy: &str, new: &str, effect: Effect) -> Result<Pipeline> {
        let mut new = PgConnection::connect(new).await?;
        new.execute(
            "CREATE TEMPORARY TABLE incoming (id bigint, aggregate_id text, payload jsonb) ON COMMIT DELETE ROWS",
        )
        .await?;
        let apply = match effect {
            Effect::Upsert => format!(
                "INSERT INTO users (id, name, email, city, version)
                 SELECT DISTINCT ON (id) id, name, email, city, version
                 FROM (SELECT id AS event, {TRANSFORM} FROM incoming) i ORDER BY id, event DESC
                 ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email, city = excluded.city, version = excluded.version"
            ),
            Effect::Row => "INSERT INTO applied (event, aggregate, version)
                            SELECT id, aggregate_id, (payload->>'version')::bigint FROM incoming ORDER BY id"
                .to_owned(),
            Effect::Counts => anyhow::bail!("the pipeline keeps only the last event of a user"),
        };
        Ok(Pipeline { legacy: PgConnection::connect(legacy).await?, new, apply })
    }

    /// One turn; how many events went over.
    pub(crate) async fn turn(&mut self) -> Result<usize> {
        self.legacy.execute("BEGIN").await?;
        let copy = format!(
            "COPY (SELECT id, aggregate_id, payload FROM outbox WHERE status = 'pending' ORDER BY id LIMIT {EVENTS}) TO STDOUT"
        );
        let mut ids: Vec<i64> = Vec::new();
        {
            let mut out = self.legacy.copy_out_raw(&copy).await?;
            let mut chunks = Vec::new();
            while let Some(chunk) = out.next().await {
                // A row each.
                let chunk = chunk?;
                let digits = chunk.split(|byte| *byte == b'\t').next().context("no id")?;
                ids.push(std::str::from_utf8(digits)?.parse()?);
                chunks.push(chunk);
            }
            drop(out);
            if !ids.is_empty() {
                self.new.execute("BEGIN").await?;
                let mut incoming = self.new.copy_in_raw("COPY incoming FROM STDIN").await?;
                incoming.send(chunks.concat()).await?;
                incoming.finish().await?;
            }
        }
        if !ids.is_empty() {
            sqlx::query(AssertSqlSafe(self.apply.clone())).execute(&mut self.new).await?;
            self.new.execute("COMMIT").await?;
            let mark = "UPDATE outbox SET status = 'processed', processed_at = now() WHERE id = ANY ($1)";
            let marked = sqlx::query(mark).bind(&ids).execute(&mut self.legacy).await?.rows_affected();
            ensure!(marked == ids.len() as u64, "events vanished");
        }
        self.legacy.execute("COMMIT").await?;
        Ok(ids.len())
    }
}

/// The outbox that it reads.
pub(crate) async fn prepare(pair: &Pair) -> Result<()> {
    run(&pair.legacy, OUTBOX).await
}

/// By the sockets in these folders.
pub(super) async fn drain(ground: &Ground, pair: &Pair, load: Load, sockets: &[String; 2]) -> Result<Drain> {
    prepare(pair).await?;
    load.write(&pair.legacy).await?;
    let before = ground.settled().await?;
    let started = Instant::now();
    let [legacy, new] = ground.addresses(&pair.name, sockets);
    let mut pipeline = Pipeline::new(&legacy, &new, load.effect).await?;
    while pipeline.turn().await? > 0 {}
    let took = started.elapsed().max(Duration::from_millis(1));
    Ok(Drain { events: load.events, took, cpu: ground.cpu()?.since(before), memory_mb: None })
}
