//! How long an event is under way, and what it costs to wait for one.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::case::Scale;
use crate::contender::Contender;
use crate::contender::relay::{Installed, Setup, end};
use crate::flow::{self, Flow};
use crate::ground::{Effect, Ground};
use crate::meter;
use crate::report::{Report, Spread, Target, of, rounds, spread, table};

/// Seconds of writing.
const FULL: u64 = 15;

/// A line of the table.
struct Line {
    label: &'static str,
    who: Contender,
    /// Events a second.
    rate: u32,
    /// What the median and the 99th percentile are to be at most, in ms.
    p50: Option<f64>,
    p99: Option<f64>,
    /// Further lines of the relay's configuration.
    relay: &'static str,
}

const fn line(label: &'static str, who: Contender, rate: u32, p50: Option<f64>, p99: Option<f64>) -> Line {
    Line { label, who, rate, p50, p99, relay: "" }
}

const LINES: [Line; 8] = [
    line("outbox-relay", Contender::Relay, 1_000, Some(4.0), Some(10.0)),
    line("(c) COPY pipeline by hand", Contender::Copy, 1_000, None, None),
    line("(b) logical replication", Contender::Replication, 1_000, None, None),
    line("outbox-relay", Contender::Relay, 5_000, None, Some(30.0)),
    line("(c) COPY pipeline by hand", Contender::Copy, 5_000, None, None),
    line("(b) logical replication", Contender::Replication, 5_000, None, None),
    line("outbox-relay, an event now and then", Contender::Relay, 5, None, None),
    // Nearly what a wake-up could bring: that would spare one more millisecond, and the look.
    Line { relay: "poll_max = \"2ms\"", ..line("… that looks every 2 ms", Contender::Relay, 5, None, None) },
];

pub(crate) async fn measure(ground: &Ground, scale: Scale, relay: &str) -> Result<Report> {
    let seconds = scale.seconds.unwrap_or(FULL);
    let mut figures: Vec<[Vec<f64>; 5]> = vec![Default::default(); LINES.len()];
    for _ in 0..scale.rounds {
        for (Line { who, rate, relay: more, .. }, figures) in LINES.iter().zip(&mut figures) {
            let flow = Flow { who: *who, rate: *rate, seconds, before: 0, open: false };
            let flowed = flow::measure(flow, ground, &format!("{relay}\n{more}")).await?;
            let (p50, p99, most) = (flowed.quantile(0.5), flowed.quantile(0.99), flowed.quantile(1.0));
            eprintln!("{who:?} at {rate}/s: p50 {p50:.1} ms, p99 {p99:.1} ms, {:.0} µs an event", flowed.cpu_us);
            figures
                .iter_mut()
                .zip([flowed.written, p50, p99, most, flowed.cpu_us])
                .for_each(|(all, one)| all.push(one));
        }
    }
    let mut table =
        table(["", "written/s", "p50 ms", "p99 ms", "highest ms", "processor time with the writers', µs/event"]);
    let judged = |found: Spread, digits: usize, target: Option<f64>| match target {
        Some(target) => format!("{} ({})", found.told(digits), Target::AtMost(target).told(found.middle)),
        None => found.told(digits),
    };
    let [ours, by_hand, ..] = figures.as_slice() else { bail!("too few lines") };
    let [_, p50, p99, ..] = std::array::from_fn::<_, 5, _>(|at| {
        spread(ours[at].iter().zip(&by_hand[at]).map(|(ours, by_hand)| ours / by_hand).collect())
    });
    let beside = [judged(p50, 2, Some(2.0)), judged(p99, 2, Some(2.0))];
    for (Line { label, rate, p50: p50_target, p99: p99_target, .. }, figures) in LINES.iter().zip(figures) {
        let [written, p50, p99, most, cpu] = figures.map(spread);
        table.add_row([
            (*label).to_owned(),
            // Where the rate was not reached, the line tells of another one.
            format!(
                "{:.0} of {rate} ({})",
                written.middle,
                Target::AtLeast(0.95 * f64::from(*rate)).told(written.middle)
            ),
            judged(p50, 1, *p50_target),
            judged(p99, 1, *p99_target),
            most.told(1),
            cpu.told(0),
        ]);
    }
    let [p50, p99] = beside;
    table.add_row(["the first line's to (c)'s".to_owned(), String::new(), p50, p99, String::new(), String::new()]);
    let done = format!("{} of single-event transactions, {}", of(seconds, FULL, "seconds"), rounds(scale.rounds));
    Ok(Report { done, table })
}

/// Processor time while nothing is to be done, as a share of one core.
pub(crate) async fn idle(ground: &Ground, scale: Scale, relay: &str) -> Result<Report> {
    /// Seconds of waiting.
    const FULL: u64 = 60;
    let seconds = scale.seconds.unwrap_or(FULL);
    let wait = Duration::from_secs(seconds);
    let mut alone = Vec::new();
    let lines = [("outbox-relay and both servers", ""), ("… that looks once a second", "poll_max = \"1s\"")];
    let mut figures: [[Vec<f64>; 4]; 2] = Default::default();
    for _ in 0..scale.rounds {
        for ((label, more), figures) in lines.iter().zip(&mut figures) {
            let (servers, parts) = waits(ground, &format!("{relay}\n{more}"), wait).await?;
            eprintln!("{label}: {:.2} %, the servers without it {servers:.2} %", parts.iter().sum::<f64>());
            alone.push(servers);
            let all = [parts.iter().sum(), parts[0], parts[1], parts[2]];
            figures.iter_mut().zip(all).for_each(|(figures, one)| figures.push(one));
        }
    }
    let mut table = table(["", "% of a core", "which is to be", "legacy + new + relay"]);
    for ((label, _), figures) in lines.iter().zip(figures) {
        let [all, legacy, new, relay] = figures.map(spread);
        table.add_row([
            (*label).to_owned(),
            all.told(2),
            Target::AtMost(1.0).told(all.middle),
            format!("{:.2} + {:.2} + {:.2}", legacy.middle, new.middle, relay.middle),
        ]);
    }
    table.add_row(["both servers without it".to_owned(), spread(alone).told(2), String::new(), String::new()]);
    let done = format!("{}, {}", of(seconds, FULL, "seconds"), rounds(scale.rounds));
    Ok(Report { done, table })
}

/// What the servers of a pair take of a core by themselves, in percent; and while a relay waits: legacy, new, relay.
async fn waits(ground: &Ground, relay: &str, wait: Duration) -> Result<(f64, [f64; 3])> {
    let pair = ground.pair().await?;
    let setup = Setup { relay: relay.to_owned(), ..Setup::default() };
    let installed = Installed::new(ground, &pair, Effect::Upsert, &setup).await?;
    let (servers, started) = (ground.settled().await?, Instant::now());
    tokio::time::sleep(wait).await;
    let spent = ground.cpu()?.since(servers);
    let alone = 100.0 * (spent.legacy + spent.new) / started.elapsed().as_secs_f64();
    let mut process = installed.start(&[])?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (servers, relay, started) = (ground.cpu()?, meter::process(process.id())?, Instant::now());
    tokio::time::sleep(wait).await;
    let (spent, relay) = (ground.cpu()?.since(servers), meter::process(process.id())? - relay);
    let elapsed = started.elapsed().as_secs_f64();
    ensure!(process.try_wait()?.is_none(), "void: the relay has ended");
    end(process)?;
    ground.drop(pair).await?;
    Ok((alone, [spent.legacy, spent.new, relay].map(|seconds| 100.0 * seconds / elapsed)))
}
