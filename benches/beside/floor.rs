//! The statements that nobody who moves these events can do without, each alone, over the same rows: what is left of a relay's cost
//! when all that makes it a relay is taken away. And ways that were not taken, to show why.

use std::time::Duration;

use anyhow::{Result, ensure};
use chrono::{DateTime, Utc};
use outbox_relay::target::EVENTS;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use crate::case::Scale;
use crate::contender::OUTBOX;
use crate::ground::{Ground, Load, TRANSFORM, run};
use crate::report::{Report, of, rounds, spread, table};

const FULL: u32 = 200_000;
const BATCH: u32 = 2_000;

/// What is measured: on which side, what it is, and whether it belongs to the least that must be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Read,
    Claim,
    Mark,
    MarkInPlace,
    Send,
    SendObjects,
    SendCopy,
    Apply,
}

const PARTS: [(Part, &str, bool); 8] = [
    (Part::Read, "legacy: read the oldest 2,000 pending, payload as text", false),
    (Part::Claim, "legacy: the same `FOR NO KEY UPDATE`, and commit", true),
    (Part::Mark, "legacy: `UPDATE` by id, and commit", true),
    (Part::MarkInPlace, "legacy: the same if no index named the status and each page were half empty (HOT)", false),
    (Part::Send, "new: eight arrays to rows, payload to `jsonb` (as the relay does)", true),
    (Part::SendObjects, "new: one array of objects to rows instead", false),
    (Part::SendCopy, "new: `COPY` to a temporary table instead", false),
    (Part::Apply, "new: transform and upsert rows that are there already, and commit", true),
];

pub(crate) async fn measure(ground: &Ground, scale: Scale) -> Result<Report> {
    let size = scale.size.unwrap_or(FULL);
    let mut figures: [Vec<f64>; PARTS.len()] = Default::default();
    for _ in 0..scale.rounds {
        for ((part, label, _), figures) in PARTS.iter().zip(&mut figures) {
            let each = once(ground, *part, size).await?;
            eprintln!("{label}: {each:.1} µs");
            figures.push(each);
        }
    }
    let mut table = table(["", "server's processor time, µs/event", "cannot be done without"]);
    let mut least = 0.0;
    for ((_, label, counts), figures) in PARTS.iter().zip(figures) {
        let each = spread(figures);
        least += if *counts { each.middle } else { 0.0 };
        table.add_row([
            (*label).to_owned(),
            each.told(1),
            if *counts { format!("{:.1}", each.middle) } else { String::new() },
        ]);
    }
    table.add_row(["all of these".to_owned(), String::new(), format!("{least:.1}")]);
    let done = format!("{} in batches of {BATCH}, one connection, {}", of(size, FULL, "events"), rounds(scale.rounds));
    Ok(Report { done, table })
}

/// Microseconds of the servers' processor time an event.
async fn once(ground: &Ground, part: Part, size: u32) -> Result<f64> {
    let pair = ground.pair().await?;
    let on_legacy = matches!(part, Part::Read | Part::Claim | Part::Mark | Part::MarkInPlace);
    let url = if on_legacy { &pair.legacy } else { &pair.new };
    run(url, OUTBOX).await?;
    if part == Part::MarkInPlace {
        run(url, "DROP INDEX outbox_pending; ALTER TABLE outbox SET (fillfactor = 45)").await?;
    }
    Load::of(size).write(url).await?;
    let mut connection = PgConnection::connect(url).await?;
    // Read before, so that to send them costs the server nothing here.
    let batches = match part {
        Part::Send | Part::SendObjects | Part::SendCopy => Batch::read_all(&mut connection, size).await?,
        _ => Vec::new(),
    };
    if part == Part::SendCopy {
        connection
            .execute("CREATE TEMPORARY TABLE incoming (id bigint, event_id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, created_at timestamptz) ON COMMIT DELETE ROWS")
            .await?;
    }
    let before = ground.settled().await?;
    let mut from = 0;
    for at in 0..size.div_ceil(BATCH) {
        let to = from + i64::from(BATCH);
        match part {
            Part::Read => {
                connection.fetch_all(AssertSqlSafe(pending(from, ""))).await?;
            }
            Part::Claim => {
                connection.execute("BEGIN").await?;
                connection.fetch_all(AssertSqlSafe(pending(from, "FOR NO KEY UPDATE"))).await?;
                connection.execute("COMMIT").await?;
            }
            Part::Mark | Part::MarkInPlace => {
                let ids: Vec<i64> = (from + 1..=to.min(size.into())).collect();
                let mark = "UPDATE outbox SET status = 'processed', processed_at = now() WHERE id = ANY ($1)";
                let marked = sqlx::query(mark).bind(&ids).execute(&mut connection).await?.rows_affected();
                ensure!(marked == ids.len() as u64, "events vanished");
            }
            Part::Send | Part::SendObjects | Part::SendCopy => {
                if let Some(batch) = batches.get(at as usize) {
                    batch.send(&mut connection, part).await?;
                }
            }
            Part::Apply => {
                let apply = format!(
                    "INSERT INTO users (id, name, email, city, version)
                     SELECT DISTINCT ON (id) id, name, email, city, version
                     FROM (SELECT id AS event, {TRANSFORM} FROM outbox WHERE id > $1 AND id <= $2) i ORDER BY id, event DESC
                     ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email, city = excluded.city, version = excluded.version"
                );
                sqlx::query(AssertSqlSafe(apply)).bind(from).bind(to).execute(&mut connection).await?;
            }
        }
        from = to;
    }
    connection.close().await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let spent = ground.cpu()?.since(before);
    ground.drop(pair).await?;
    Ok((spent.legacy + spent.new) * 1e6 / f64::from(size))
}

fn pending(after: i64, lock: &str) -> String {
    format!(
        "SELECT id, event_id, aggregate_type, aggregate_id, event_type, payload::text, created_at FROM outbox
         WHERE status = 'pending' AND id > {after} ORDER BY id LIMIT {BATCH} {lock}"
    )
}

/// A batch's events as they are sent.
#[derive(Default)]
struct Batch {
    ids: Vec<i64>,
    event_ids: Vec<uuid::Uuid>,
    kinds: Vec<String>,
    aggregates: Vec<String>,
    types: Vec<String>,
    payloads: Vec<String>,
    created: Vec<DateTime<Utc>>,
}

impl Batch {
    async fn read_all(connection: &mut PgConnection, size: u32) -> Result<Vec<Batch>> {
        let mut batches = Vec::new();
        for at in 0..size.div_ceil(BATCH) {
            let rows =
                sqlx::query(AssertSqlSafe(pending(i64::from(at * BATCH), ""))).fetch_all(&mut *connection).await?;
            let mut batch = Batch::default();
            for row in &rows {
                batch.ids.push(row.try_get(0)?);
                batch.event_ids.push(row.try_get(1)?);
                batch.kinds.push(row.try_get(2)?);
                batch.aggregates.push(row.try_get(3)?);
                batch.types.push(row.try_get(4)?);
                batch.payloads.push(row.try_get(5)?);
                batch.created.push(row.try_get(6)?);
            }
            batches.push(batch);
        }
        Ok(batches)
    }

    /// To rows that are counted, and nothing else.
    async fn send(&self, connection: &mut PgConnection, part: Part) -> Result<()> {
        let count = "count(id), count(aggregate_id), count(payload), count(created_at)";
        let columns = "id bigint, event_id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, created_at timestamptz";
        let texts = || (0..self.ids.len()).map(|at| self.tab_separated(at));
        match part {
            Part::Send => {
                let none: Vec<Option<&str>> = vec![None; self.ids.len()];
                sqlx::query(AssertSqlSafe(format!("WITH event AS {EVENTS} SELECT {count} FROM event")))
                    .bind(&self.ids)
                    .bind(&self.event_ids)
                    .bind(&self.kinds)
                    .bind(&self.aggregates)
                    .bind(&self.types)
                    .bind(&self.payloads)
                    .bind(none)
                    .bind(&self.created)
                    .execute(connection)
                    .await?;
            }
            Part::SendObjects => {
                let objects: Vec<String> = (0..self.ids.len()).map(|at| self.object(at)).collect();
                let sql = format!("SELECT {count} FROM jsonb_to_recordset($1::text::jsonb) AS e ({columns})");
                sqlx::query(AssertSqlSafe(sql)).bind(format!("[{}]", objects.join(","))).execute(connection).await?;
            }
            _ => {
                connection.execute("BEGIN").await?;
                let mut copy = connection.copy_in_raw("COPY incoming FROM STDIN").await?;
                copy.send(texts().collect::<String>().into_bytes()).await?;
                copy.finish().await?;
                connection.execute(AssertSqlSafe(format!("SELECT {count} FROM incoming"))).await?;
                connection.execute("COMMIT").await?;
            }
        }
        Ok(())
    }

    fn tab_separated(&self, at: usize) -> String {
        let (id, event, created) = (self.ids[at], self.event_ids[at], self.created[at].to_rfc3339());
        let payload = self.payloads[at].replace('\\', "\\\\");
        format!(
            "{id}\t{event}\t{}\t{}\t{}\t{payload}\t{created}\n",
            self.kinds[at], self.aggregates[at], self.types[at]
        )
    }

    fn object(&self, at: usize) -> String {
        let (id, event, created) = (self.ids[at], self.event_ids[at], self.created[at].to_rfc3339());
        format!(
            "{{\"id\": {id}, \"event_id\": \"{event}\", \"aggregate_type\": \"{}\", \"aggregate_id\": \"{}\", \"event_type\": \"{}\", \"payload\": {}, \"created_at\": \"{created}\"}}",
            self.kinds[at], self.aggregates[at], self.types[at], self.payloads[at]
        )
    }
}
