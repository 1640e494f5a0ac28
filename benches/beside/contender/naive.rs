//! The loop of tutorials: a hundred pending events are read, and each is applied and marked by itself.

use std::time::Instant;

use anyhow::{Result, ensure};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use super::{Drain, OUTBOX};
use crate::ground::{Effect, Ground, Load, Pair, TRANSFORM, run};

pub(super) async fn drain(ground: &Ground, pair: &Pair, load: Load) -> Result<Drain> {
    ensure!(load.effect == Effect::Upsert, "the loop only upserts");
    run(&pair.legacy, OUTBOX).await?;
    load.write(&pair.legacy).await?;
    let before = ground.settled().await?;
    let started = Instant::now();
    let mut legacy = PgConnection::connect(&pair.legacy).await?;
    let mut new = PgConnection::connect(&pair.new).await?;
    let apply = format!(
        "INSERT INTO users (id, name, email, city, version) SELECT {TRANSFORM} FROM (SELECT $1::jsonb AS payload) e
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email, city = excluded.city, version = excluded.version"
    );
    loop {
        let next = "SELECT id, payload::text FROM outbox WHERE status = 'pending' ORDER BY id LIMIT 100";
        let rows = sqlx::query(next).fetch_all(&mut legacy).await?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            let (id, payload): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
            sqlx::query(AssertSqlSafe(apply.clone())).bind(payload).execute(&mut new).await?;
            let mark = "UPDATE outbox SET status = 'processed', processed_at = now() WHERE id = $1";
            sqlx::query(mark).bind(id).execute(&mut legacy).await?;
        }
    }
    let took = started.elapsed();
    Ok(Drain { events: load.events, took, cpu: ground.cpu()?.since(before), memory_mb: None })
}
