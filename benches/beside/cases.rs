//! The cases, and the table of each.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::{Table, presets};

use crate::contender::relay::Setup;
use crate::contender::{Contender, Drain};
use crate::ground::{Effect, Ground, Load};
use crate::latency;
use crate::wire::Wire;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// A backlog, drained by each contender
    Drain,
    /// The same with own SQL, where every event counts, ten of an aggregate in a row
    OwnSql,
    /// The same with two milliseconds added to every round trip to both servers
    Far,
    /// Half of all events of one aggregate
    Hot,
    /// One, two and four processes
    Instances,
    /// Payloads of other sizes
    Payload,
    /// Backlogs of other lengths
    Backlog,
    /// From commit to commit, while events are written one by one
    Latency,
    /// What it costs when nothing is to be done
    Idle,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) size: u32,
    pub(crate) rounds: u32,
    pub(crate) seconds: u64,
}

/// A line of a table: who, with what, and how.
struct Line {
    label: &'static str,
    who: Contender,
    load: Load,
    setup: Setup,
    far: bool,
}

impl Line {
    fn new(label: &'static str, who: Contender, load: Load, relay: &str) -> Line {
        Line { label, who, load, setup: Setup { relay: relay.to_owned(), ..Setup::default() }, far: false }
    }
}

/// In each direction.
const DELAY: Duration = Duration::from_millis(1);

impl Case {
    pub(crate) fn all() -> Vec<Case> {
        Case::value_variants().to_vec()
    }

    pub(crate) fn title(self, scale: Scale) -> String {
        let Scale { size, rounds, seconds } = scale;
        match self {
            Case::Drain => format!("drain: {size} events, {rounds} rounds; the naive loop a twentieth of them"),
            Case::OwnSql => format!("own SQL, every event counts, ten of an aggregate in a row: {size} events"),
            Case::Far => format!("2 ms more for every round trip to both servers: {size} events"),
            Case::Hot => format!("half of all events of one aggregate: {size} events"),
            Case::Instances => format!("processes: {size} events"),
            Case::Payload => "payloads".to_owned(),
            Case::Backlog => "length of the backlog".to_owned(),
            Case::Latency => format!("latency, from commit to commit, {seconds} seconds of single-event transactions"),
            Case::Idle => "idle".to_owned(),
        }
    }

    /// The first line is the one that the others are compared with.
    fn lines(self, size: u32, relay: &str) -> Vec<Line> {
        use Contender::{Copy, Naive, Relay, Replication};
        let load = Load::of(size);
        let own = Load { effect: Effect::Counts, run: 10, ..load };
        match self {
            Case::Drain => vec![
                Line::new("outbox-relay", Relay, load, relay),
                Line::new("(c) COPY pipeline by hand", Copy, load, ""),
                Line::new("(b) logical replication, bulk", Replication, load, ""),
                Line::new("(b) logical replication, single", Replication, Load { single: true, ..load }, ""),
                Line::new("(a) naive loop", Naive, Load::of((size / 20).max(100)), ""),
            ],
            Case::OwnSql => vec![
                Line::new("outbox-relay", Relay, own, relay),
                Line::new("(b) logical replication, bulk", Replication, own, ""),
            ],
            Case::Far => vec![
                Line { far: true, ..Line::new("outbox-relay, far", Relay, load, relay) },
                Line::new("outbox-relay, near", Relay, load, relay),
                Line { far: true, ..Line::new("(c) COPY pipeline, far", Copy, load, "") },
            ],
            Case::Hot => vec![
                Line::new("outbox-relay, hot", Relay, Load { hot: true, ..load }, relay),
                Line::new("outbox-relay, even", Relay, load, relay),
            ],
            Case::Instances => [("1 process", 1), ("2 processes", 2), ("4 processes", 4)]
                .into_iter()
                .map(|(label, instances)| {
                    let line = Line::new(label, Relay, load, relay);
                    Line { setup: Setup { instances, ..line.setup }, ..line }
                })
                .collect(),
            Case::Payload => [
                ("330 B", 330, 1),
                ("200 B", 200, 1),
                ("2 kB", 2_000, 4),
                ("20 kB", 20_000, 40),
                ("2 MB", 2_000_000, 4000),
            ]
            .into_iter()
            .map(|(label, payload, fewer)| {
                Line::new(label, Relay, Load { payload, ..Load::of((size / fewer).max(10)) }, relay)
            })
            .collect(),
            Case::Backlog => [("short", size / 20), ("long", size * 5)]
                .into_iter()
                .map(|(label, size)| Line::new(label, Relay, Load::of(size), relay))
                .collect(),
            Case::Latency | Case::Idle => Vec::new(),
        }
    }

    pub(crate) async fn measure(self, scale: Scale, relay: &str) -> Result<Table> {
        match self {
            Case::Latency => return latency::measure(scale, relay).await,
            Case::Idle => return latency::idle(scale, relay).await,
            _ => {}
        }
        let lines = self.lines(scale.size, relay);
        let ground = Ground::new(&[]).await?;
        let mut drains: Vec<Vec<Drain>> = lines.iter().map(|_| Vec::new()).collect();
        for _ in 0..scale.rounds {
            for (line, drains) in lines.iter().zip(&mut drains) {
                let wires = match line.far {
                    true => Some((
                        Wire::delaying(ground.legacy.port(), DELAY).await?,
                        Wire::delaying(ground.new.port(), DELAY).await?,
                    )),
                    false => None,
                };
                let ports = wires.as_ref().map(|(legacy, new)| (legacy.port, new.port));
                let setup = Setup { ports, ..line.setup.clone() };
                let drain = line.who.drain(&ground, line.load, &setup).await?;
                eprintln!(
                    "{}: {:.0}/s, {:.1} µs of processor time an event",
                    line.label,
                    drain.per_second(),
                    drain.cpu_us()
                );
                drains.push(drain);
            }
        }
        Ok(table(&lines, &drains))
    }
}

fn table(lines: &[Line], drains: &[Vec<Drain>]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "",
        "events/s",
        "MB/s",
        "first line's rate to this one's",
        "CPU µs/event",
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
        let memory = runs
            .iter()
            .filter_map(|run| run.memory_mb)
            .fold(None, |most: Option<f64>, mb| Some(most.map_or(mb, |most| most.max(mb))));
        table.add_row([
            line.label.to_owned(),
            rates.told(0),
            format!("{:.1}", rates.middle * f64::from(line.load.payload) / 1e6),
            ratios.told(2),
            cpu.told(1),
            format!("{:.1} + {:.1} + {:.1}", part(|d| d.cpu.legacy), part(|d| d.cpu.new), part(|d| d.cpu.client)),
            memory.map(|mb| format!("{mb:.0}")).unwrap_or_default(),
        ]);
    }
    table
}

/// The middle one of some figures, the lowest and the highest.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spread {
    pub(crate) middle: f64,
    low: f64,
    high: f64,
}

pub(crate) fn spread(mut figures: Vec<f64>) -> Spread {
    figures.sort_by(f64::total_cmp);
    let at = |at: usize| figures.get(at).copied().unwrap_or(f64::NAN);
    Spread { middle: at(figures.len() / 2), low: at(0), high: at(figures.len().saturating_sub(1)) }
}

impl Spread {
    pub(crate) fn told(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}–{:.digits$})", self.middle, self.low, self.high)
    }
}
