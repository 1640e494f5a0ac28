//! Cases that drain a backlog, line by line and round by round.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use comfy_table::Table;
use sqlx::{Connection, Executor, PgConnection};

use crate::case::{Case, Scale};
use crate::contender::relay::Setup;
use crate::contender::{Contender, Drain};
use crate::ground::{Effect, Ground, Load};
use crate::report::{Report, Target, of, rounds, spread, table};
use crate::wire::Wire;

/// Events of a drain in full.
const FULL: u32 = 200_000;

/// In each direction.
const DELAY: Duration = Duration::from_millis(1);

/// A line of a table: who, with what, and how.
struct Line {
    label: &'static str,
    who: Contender,
    load: Load,
    setup: Setup,
    far: bool,
    /// Of the first line's rate to this one's.
    ratio: Option<Target>,
    /// Of the process' memory at its peak, in MB.
    memory: Option<Target>,
}

impl Line {
    fn new(label: &'static str, who: Contender, load: Load, relay: &str) -> Line {
        let setup = Setup { relay: relay.to_owned(), ..Setup::default() };
        Line { label, who, load, setup, far: false, ratio: None, memory: None }
    }

    fn at_least(self, ratio: f64) -> Line {
        Line { ratio: Some(Target::AtLeast(ratio)), ..self }
    }
}

/// The first line is the one that the others are compared with.
fn lines(case: Case, size: u32, relay: &str) -> Vec<Line> {
    use Contender::{Copy, Naive, Relay, Replication, Unflushed};
    let load = Load::of(size);
    let own = Load { effect: Effect::Counts, run: 10, ..load };
    match case {
        Case::OwnSql => vec![
            Line::new("outbox-relay", Relay, own, relay),
            Line::new("(b) logical replication, bulk", Replication, own, "").at_least(1.0),
        ],
        Case::Far => vec![
            Line { far: true, ..Line::new("outbox-relay, far", Relay, load, relay) },
            Line::new("outbox-relay, near", Relay, load, relay).at_least(0.6),
            Line { far: true, ..Line::new("(c) COPY pipeline, far", Copy, load, "") }.at_least(1.0),
        ],
        Case::Hot => vec![
            Line::new("outbox-relay, hot", Relay, Load { hot: true, ..load }, relay),
            Line::new("outbox-relay, even", Relay, load, relay).at_least(0.6),
        ],
        // Sixteen workers on a few cores, and as many as one process has: what is lost to the number of processes, and what to that of workers.
        Case::Instances => [
            ("1 process", 1, ""),
            ("2 processes", 2, ""),
            ("4 processes", 4, ""),
            ("4 with a worker each", 4, "workers = 1"),
        ]
        .into_iter()
        .map(|(label, instances, workers)| {
            let line = Line::new(label, Relay, load, &format!("{relay}\n{workers}"));
            let ratio = (instances > 1).then_some(Target::AtMost(1.11));
            Line { setup: Setup { instances, ..line.setup }, ratio, ..line }
        })
        .collect(),
        Case::Payload => [
            ("330 B", 330, 1, Some(30.0)),
            ("200 B", 200, 1, None),
            ("2 kB", 2_000, 4, None),
            ("20 kB", 20_000, 40, None),
            ("2 MB", 2_000_000, 2000, Some(150.0)),
        ]
        .into_iter()
        .map(|(label, payload, fewer, memory)| Line {
            memory: memory.map(Target::AtMost),
            ..Line::new(label, Relay, Load { payload, ..Load::of((size / fewer).max(10)) }, relay)
        })
        .collect(),
        _ => vec![
            Line { memory: Some(Target::AtMost(30.0)), ..Line::new("outbox-relay", Relay, load, relay) },
            Line::new("(c) COPY pipeline by hand", Copy, load, "").at_least(1.2),
            Line::new("(b) logical replication, bulk", Replication, load, "").at_least(2.0),
            Line::new("(b) logical replication, single", Replication, Load { single: true, ..load }, "").at_least(3.0),
            Line::new("… bulk, by its own default: its log is not waited for", Unflushed, load, "").at_least(2.0),
            Line::new("… single, likewise", Unflushed, Load { single: true, ..load }, "").at_least(3.0),
            Line::new("(a) naive loop, a twentieth of them", Naive, Load::of((size / 20).max(100)), "").at_least(40.0),
        ],
    }
}

pub(crate) async fn measure(case: Case, ground: &Ground, scale: Scale, relay: &str) -> Result<Report> {
    let size = scale.size.unwrap_or(FULL);
    let lines = lines(case, size, relay);
    let mut drains: Vec<Vec<Drain>> = lines.iter().map(|_| Vec::new()).collect();
    let mut longer = String::new();
    for _ in 0..scale.rounds {
        for (line, drains) in lines.iter().zip(&mut drains) {
            let wires = match line.far {
                true => Some([
                    Wire::delaying(ground.legacy.port(), &ground.sockets[0], DELAY).await?,
                    Wire::delaying(ground.new.port(), &ground.sockets[1], DELAY).await?,
                ]),
                false => None,
            };
            let sockets = wires.as_ref().map(|wires| wires.each_ref().map(Wire::socket));
            if let Some(sockets) = sockets.as_ref().filter(|_| longer.is_empty()) {
                let [near, far] = [&ground.sockets, sockets].map(|sockets| ground.addresses("postgres", sockets));
                let more = round_trip(&far[0]).await?.saturating_sub(round_trip(&near[0]).await?);
                longer = format!("; a round trip took {:.1} ms more", more.as_secs_f64() * 1e3);
            }
            let setup = Setup { sockets, ..line.setup.clone() };
            let drain = line.who.drain(ground, line.load, &setup).await?;
            told(line.label, &drain);
            drains.push(drain);
        }
    }
    let done = format!("{}, {}{longer}", of(size, FULL, "events"), rounds(scale.rounds));
    Ok(Report { done, table: drained(&lines, &drains) })
}

/// The middle one of some round trips.
async fn round_trip(url: &str) -> Result<Duration> {
    let mut connection = PgConnection::connect(url).await?;
    let mut took = Vec::new();
    for _ in 0..51 {
        let asked = Instant::now();
        connection.execute("SELECT").await?;
        took.push(asked.elapsed());
    }
    connection.close().await?;
    took.sort();
    took.get(25).copied().context("no round trip")
}

/// Progress, to those who wait.
pub(crate) fn told(label: &str, drain: &Drain) {
    eprintln!("{label}: {:.0}/s, {:.1} µs of processor time an event", drain.per_second(), drain.cpu_us());
}

fn drained(lines: &[Line], drains: &[Vec<Drain>]) -> Table {
    let mut table = table([
        "",
        "events/s",
        "MB/s",
        "first line's rate to this one's",
        "which is to be",
        "processor time, µs/event",
        "legacy + new + client",
        "MB of memory",
    ]);
    for (line, runs) in lines.iter().zip(drains) {
        let first = drains.first().map(Vec::as_slice).unwrap_or_default();
        let rates = spread(runs.iter().map(Drain::per_second).collect());
        let ratios = spread(first.iter().zip(runs).map(|(first, run)| first.per_second() / run.per_second()).collect());
        let cpu = spread(runs.iter().map(Drain::cpu_us).collect());
        let part = |of: fn(&Drain) -> f64| {
            spread(runs.iter().map(|run| of(run) * 1e6 / f64::from(run.events)).collect()).middle
        };
        let memory = runs.iter().filter_map(|run| run.memory_mb).reduce(f64::max);
        table.add_row([
            line.label.to_owned(),
            rates.told(0),
            format!("{:.1}", rates.middle * f64::from(line.load.payload) / 1e6),
            ratios.told(2),
            line.ratio.map(|target| target.told(ratios.middle)).unwrap_or_default(),
            cpu.told(1),
            format!("{:.1} + {:.1} + {:.1}", part(|d| d.cpu.legacy), part(|d| d.cpu.new), part(|d| d.cpu.client)),
            match (memory, line.memory) {
                (Some(mb), Some(target)) => format!("{mb:.0} ({})", target.told(mb)),
                (Some(mb), None) => format!("{mb:.0}"),
                (None, _) => String::new(),
            },
        ]);
    }
    table
}
