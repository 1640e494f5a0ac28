//! Drains out of a long backlog, and beside crowds of events that stand still: neither may cost more than its own events.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::case::Scale;
use crate::contender::relay::{Installed, Setup};
use crate::contender::{Drain, relay};
use crate::drains::told;
use crate::ground::{Effect, Ground, Load, Pair, run, value};
use crate::report::{Report, Target, of, rounds, spread, table, thousands};

/// What is drained, out of whatever there is.
const DRAINED: u32 = 200_000;

/// What stands in the outbox before the load is written.
#[derive(Debug, Clone, Copy)]
enum Crowd {
    None,
    /// So many aggregates with an event that failed and one that is held behind it.
    Stuck(u32),
    /// So many events of a paused type, which the relay meets for the first time.
    Paused(u32),
    /// The same, after a relay has passed them by once.
    Passed(u32),
}

/// A second aggregate type, so that there is one to be paused.
const OTHER: &str = "[[entity]]\naggregate_type = \"Other\"\n[entity.events]\nOtherChanged = \"ignore\"\n";

impl Crowd {
    async fn gather(self, installed: &Installed, pair: &Pair) -> Result<()> {
        match self {
            Crowd::None => Ok(()),
            Crowd::Stuck(aggregates) => {
                let stuck = format!(
                    "WITH stuck AS (
                         INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload, status, attempts, last_error)
                         SELECT 'User', 'stuck' || i, 'UserChanged', jsonb_build_object('id', -i), s, 1, 'made up'
                         FROM generate_series(1, {aggregates}) i, unnest(ARRAY['failed', 'held']) WITH ORDINALITY AS s (s, n)
                         ORDER BY i, n
                         RETURNING id, status)
                     INSERT INTO outbox_relay.failure (id, lane, entity, aggregate_type, cause, disposition, code, message, first_at, last_at)
                     SELECT id, 0, 'User', 'User', 'made up', 'event', 'P0001', 'made up', now(), now() FROM stuck WHERE status = 'failed'"
                );
                run(&pair.legacy, &stuck).await
            }
            Crowd::Paused(events) | Crowd::Passed(events) => {
                let other = format!(
                    "INSERT INTO outbox (aggregate_type, aggregate_id, event_type, payload)
                     SELECT 'Other', (i % 20000)::text, 'OtherChanged', jsonb_build_object('n', i) FROM generate_series(1, {events}) i"
                );
                run(&pair.legacy, &other).await?;
                installed.tell(&["pause", "--aggregate-type", "Other", "--reason", "measured"]).await?;
                if matches!(self, Crowd::Passed(_)) {
                    passed_by(installed, pair).await?;
                }
                Ok(())
            }
        }
    }
}

/// Has a relay run until every lane starts behind all that is paused; less than it can notice is left as it is.
async fn passed_by(installed: &Installed, pair: &Pair) -> Result<()> {
    let started = Instant::now();
    let process = installed.start(&[])?;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let behind: i64 = value(
            &pair.legacy,
            "SELECT count(*) FROM outbox_relay.lane n, (SELECT max(id) AS last, count(*) AS events FROM outbox) o
             WHERE events > 200000
                AND coalesce((SELECT position FROM outbox_relay.batch_log b WHERE b.lane = n.lane ORDER BY token DESC LIMIT 1), 0) <= last",
        )
        .await?;
        if behind == 0 {
            break;
        }
        ensure!(started.elapsed() < Duration::from_secs(120), "{behind} lanes still start in front of what is paused");
    }
    eprintln!("passed by after {:.1} s", started.elapsed().as_secs_f64());
    relay::end(process)
}

/// Drains `enough` of the load, beside the crowd.
async fn drain(ground: &Ground, load: Load, crowd: Crowd, enough: u32, relay: &str) -> Result<(Drain, Option<f64>)> {
    let pair = ground.pair().await?;
    let setup = Setup { relay: relay.to_owned(), more: OTHER.to_owned(), ..Setup::default() };
    let installed = Installed::new(ground, &pair, Effect::Upsert, &setup).await?;
    crowd.gather(&installed, &pair).await?;
    load.write(&pair.legacy).await?;
    run(&pair.legacy, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements; SELECT pg_stat_statements_reset()").await?;
    let before = ground.settled().await?;
    let drain = relay::drain_some(ground, &pair, &installed, before, enough).await?;
    load.check_those(&pair, "status = 'processed'").await?;
    let claim: Option<f64> = value(
        &pair.legacy,
        "SELECT sum(total_exec_time) * 1000 / nullif(sum(rows), 0) FROM pg_stat_statements
         WHERE position('-- The oldest pending events' IN query) > 0 AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .await?;
    ground.drop(pair).await?;
    Ok((drain, claim))
}

/// A line: what it is called, what is written, amid what, and how much of it is drained.
struct Line {
    label: String,
    load: Load,
    crowd: Crowd,
    enough: u32,
    /// Of this line's rate to the first one's.
    ratio: Option<Target>,
}

async fn compare(ground: &Ground, lines: Vec<Line>, scale: Scale, relay: &str, done: String) -> Result<Report> {
    let mut drains: Vec<Vec<(Drain, f64)>> = lines.iter().map(|_| Vec::new()).collect();
    for _ in 0..scale.rounds {
        for (line, drains) in lines.iter().zip(&mut drains) {
            let (drain, claim) = self::drain(ground, line.load, line.crowd, line.enough, relay).await?;
            told(&line.label, &drain);
            drains.push((drain, claim.unwrap_or(f64::NAN)));
        }
    }
    let mut table = table([
        "",
        "events/s",
        "its rate to the first line's",
        "which is to be",
        "claim, µs/event",
        "processor time, µs/event",
    ]);
    let first: Vec<f64> = drains.first().into_iter().flatten().map(|(drain, _)| drain.per_second()).collect();
    for (line, runs) in lines.iter().zip(&drains) {
        let ratio = spread(first.iter().zip(runs).map(|(first, (run, _))| run.per_second() / first).collect());
        table.add_row([
            line.label.clone(),
            spread(runs.iter().map(|(run, _)| run.per_second()).collect()).told(0),
            ratio.told(2),
            line.ratio.map(|target| target.told(ratio.middle)).unwrap_or_default(),
            spread(runs.iter().map(|(_, claim)| *claim).collect()).told(1),
            spread(runs.iter().map(|(run, _)| run.cpu_us()).collect()).told(1),
        ]);
    }
    Ok(Report { done: format!("{done}; {}", rounds(scale.rounds)), table })
}

/// A short backlog, and the first half of a long one.
pub(crate) async fn backlog(ground: &Ground, scale: Scale, relay: &str) -> Result<Report> {
    /// Pending events of the long one.
    const FULL: u32 = 10_000_000;
    let size = scale.size.unwrap_or(FULL);
    // Ten thousand, as in the smallest of backlogs, would be gone in the time that a process takes to start.
    let short = (size / 50).clamp(1_000, DRAINED);
    // Half of the long one: what a relay does once when it starts (it counts the backlog, for the metrics) is not of the rate.
    let long = size.max(short);
    let line = |pending: u32, enough: u32, ratio: Option<f64>| Line {
        label: format!("{} of {} pending", thousands(enough.into()), thousands(pending.into())),
        load: Load::of(pending),
        crowd: Crowd::None,
        enough,
        ratio: ratio.map(Target::AtLeast),
    };
    let done = format!("the first of {}", of(size, FULL, "pending events"));
    compare(ground, vec![line(short, short, None), line(long, long / 2, Some(0.9))], scale, relay, done).await
}

/// Beside aggregates that are stuck, and beside a type that is paused.
pub(crate) async fn measure(ground: &Ground, scale: Scale, relay: &str) -> Result<Report> {
    /// Events of the paused type; a tenth as many aggregates are stuck.
    const FULL: u32 = 1_000_000;
    let size = scale.size.unwrap_or(FULL);
    // As many again: what a relay does once when it starts, or when it meets a crowd, is not of the rate.
    let drained = size.max(1_000);
    let line = |label: String, crowd: Crowd, ratio: Option<f64>| Line {
        label,
        load: Load::of(drained),
        crowd,
        enough: drained,
        ratio: ratio.map(Target::AtLeast),
    };
    let lines = vec![
        line("alone".to_owned(), Crowd::None, None),
        line(
            format!("beside {} aggregates with a failed and a held event", thousands((size / 10).into())),
            Crowd::Stuck(size / 10),
            Some(0.95),
        ),
        line(
            format!("beside {} events of a paused type, passed by before", thousands(size.into())),
            Crowd::Passed(size),
            Some(0.95),
        ),
        line(format!("beside {} of them, met for the first time", thousands(size.into())), Crowd::Paused(size), None),
    ];
    let done = format!(
        "{} drained beside {}",
        thousands(drained.into()),
        of(size, FULL, "events, and a tenth as many aggregates")
    );
    compare(ground, lines, scale, relay, done).await
}
