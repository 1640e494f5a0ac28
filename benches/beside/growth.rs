//! What a flow leaves behind in the legacy database while retention deletes what is old: log written, dead rows, and the size of
//! the tables, which is to become steady.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sqlx::{Connection, Executor, PgConnection, Row};

use crate::case::Scale;
use crate::contender::relay::{Installed, Setup};
use crate::flow::{NOTHING_ELSE, write_evenly};
use crate::ground::{Effect, Ground, in_order, value};
use crate::report::{Report, Target, of, table};

/// Events a second.
const RATE: u32 = 1_000;
/// Seconds of writing.
const FULL: u64 = 600;
/// Looks at the sizes, evenly.
const LOOKS: u64 = 10;

/// How things stand.
#[derive(Debug, Clone, Copy)]
struct Look {
    outbox: i64,
    indexes: i64,
    log: i64,
    live: i64,
    dead: i64,
    /// Row versions that updates and deletes have left dead so far.
    died: i64,
    vacuums: i64,
    wal: i64,
}

const LOOK: &str =
    "SELECT pg_table_size('outbox'), pg_indexes_size('outbox'), pg_total_relation_size('outbox_relay.batch_log'),
       t.n_live_tup, t.n_dead_tup, t.n_tup_upd + t.n_tup_del, t.autovacuum_count,
       pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint
    FROM pg_stat_user_tables t WHERE t.relid = 'outbox'::regclass";

async fn look(connection: &mut PgConnection) -> Result<Look> {
    let row = connection.fetch_one(LOOK).await?;
    let at = |at: usize| row.try_get::<i64, _>(at);
    Ok(Look {
        outbox: at(0)?,
        indexes: at(1)?,
        log: at(2)?,
        live: at(3)?,
        dead: at(4)?,
        died: at(5)?,
        vacuums: at(6)?,
        wal: at(7)?,
    })
}

/// Seconds between two rounds of autovacuum: a sixtieth of the time.
pub(crate) fn naptime(scale: Scale) -> u64 {
    (scale.seconds.unwrap_or(FULL) / 60).max(1)
}

pub(crate) async fn measure(ground: &Ground, scale: Scale, relay: &str) -> Result<Report> {
    let seconds = scale.seconds.unwrap_or(FULL);
    // Everything in proportion: processed events are kept for a tenth of the time.
    let (kept, naptime) = ((seconds / 10).max(1), naptime(scale));
    let pair = ground.pair().await?;
    let setup = Setup {
        relay: format!("{relay}\nreplica_lag = \"{kept}s\""),
        more: format!("[retention]\nprocessed = \"{kept}s\""),
        ..Setup::default()
    };
    // An event is a row there: retention leaves nothing here to compare with.
    let installed = Installed::new(ground, &pair, Effect::Row, &setup).await?;
    let mut legacy = PgConnection::connect(&pair.legacy).await?;
    ground.settled().await?;
    // What the writers alone write to the log.
    let before = look(&mut legacy).await?;
    write_evenly(&pair.legacy, RATE, kept, NOTHING_ELSE).await?;
    let first = look(&mut legacy).await?;
    let events: i64 = value(&pair.legacy, "SELECT last_value FROM outbox_id_seq").await?;
    let writers = (first.wal - before.wal) as f64 / events as f64;
    let mut process = installed.start(&[])?;
    let part = (seconds / LOOKS).max(1);
    let url = pair.legacy.clone();
    let writing = tokio::spawn(async move { write_evenly(&url, RATE, seconds, NOTHING_ELSE).await });
    let mut looks = Vec::new();
    let started = Instant::now();
    for at in 1..=seconds / part {
        tokio::time::sleep(Duration::from_secs(at * part).saturating_sub(started.elapsed())).await;
        looks.push(look(&mut legacy).await?);
    }
    writing.await??;
    let all: i64 = value(&pair.legacy, "SELECT last_value FROM outbox_id_seq").await?;
    let ended = Instant::now();
    while value::<i64>(&pair.new, "SELECT count(*) FROM applied").await? < all {
        ensure!(ended.elapsed() < Duration::from_secs(60), "not all has arrived");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let last = look(&mut legacy).await?;
    process.kill()?;
    process.wait()?;
    in_order(&pair, all).await?;
    ground.drop(pair).await?;
    let mut table =
        table(["after", "outbox MB", "its indexes MB", "the relay's log MB", "rows", "dead rows", "vacuums so far"]);
    let mb = |bytes: i64| format!("{:.1}", bytes as f64 / 1e6);
    for (at, look) in looks.iter().enumerate() {
        table.add_row([
            format!("{} s", (at as u64 + 1) * part),
            mb(look.outbox),
            mb(look.indexes),
            mb(look.log),
            look.live.to_string(),
            look.dead.to_string(),
            look.vacuums.to_string(),
        ]);
    }
    let size = |look: &Look| (look.outbox + look.indexes + look.log) as f64;
    let half = looks.get(looks.len() / 2).map_or(f64::NAN, size);
    let done = format!(
        "{} at {RATE} events/s; processed events are kept for {kept} s, autovacuum looks every {naptime} s. Log written an event: {writers:.0} bytes by the \
         writers, {:.0} by relay and retention. Row versions that died an event: {:.1}. All sizes at the end to those at half time: {:.2} ({}).",
        of(seconds, FULL, "seconds"),
        (last.wal - first.wal) as f64 / (all - events) as f64 - writers,
        last.died as f64 / all as f64,
        size(&last) / half,
        Target::AtMost(1.1).told(size(&last) / half),
    );
    Ok(Report { done, table })
}
