//! The relay beside what users would pick instead: one program, a table for each case, everything on throwaway servers that write as
//! safely as Postgres ships. `make bench`; what it found and what that means is in docs/performance.md.
//!
//! The contenders of a case take turns, so that whatever else the machine does meets all alike; ratios are of neighbours in the
//! same round. After each drain the new database is compared with the outbox: a run that lost, doubled or disordered an event
//! is void, and ends the program.

mod application;
mod case;
mod contender;
mod crowds;
mod drains;
mod floor;
mod flow;
mod ground;
mod growth;
mod latency;
mod meter;
mod open;
mod report;
#[path = "../shared/mod.rs"]
mod shared;
mod wire;

use anyhow::{Context, Result};
use clap::Parser;

use crate::case::{Case, Scale};
use crate::ground::Ground;
use crate::shared::machine;

/// Measures the relay beside what users would pick instead, on throwaway servers of its own.
#[derive(Parser)]
struct Args {
    /// What to measure; without, everything
    #[arg(long, value_enum, value_delimiter = ',')]
    case: Vec<Case>,
    /// Events; without, as many as the case is meant for
    #[arg(long)]
    size: Option<u32>,
    /// How often; ratios are told with their spread
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of writing or waiting; without, as many as the case is meant for
    #[arg(long)]
    seconds: Option<u64>,
    /// A tiny run of everything, to see that it still works; its figures mean nothing
    #[arg(long)]
    smoke: bool,
    /// Lines of the relay's configuration, a semicolon between them
    #[arg(long, default_value = "")]
    relay: String,
    /// What cargo bench says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let scale = match args.smoke {
        true => Scale { size: Some(1_000), rounds: 1, seconds: Some(1) },
        false => Scale { size: args.size, rounds: args.rounds, seconds: args.seconds },
    };
    let cases = if args.case.is_empty() { Case::all() } else { args.case };
    let relay = args.relay.replace(';', "\n");
    // One pair of servers for a smoke, which need not write safely; else each case has its own.
    let all = match args.smoke {
        true => {
            Some(Ground::new(&cases.iter().flat_map(|case| case.settings(scale)).collect::<Vec<_>>(), false).await?)
        }
        false => None,
    };
    let mut told = false;
    for case in cases {
        let own = match all {
            Some(_) => None,
            None => Some(Ground::new(&case.settings(scale), true).await?),
        };
        let ground = all.as_ref().or(own.as_ref()).context("no servers")?;
        if !std::mem::replace(&mut told, true) {
            println!("{}", machine::told(&ground.legacy).await?);
        }
        let report = case.measure(ground, scale, &relay).await;
        let report = report.with_context(|| format!("case {}", case.name()))?;
        let also: String =
            case.settings(scale).iter().map(|(name, value)| format!(", servers with `{name} = {value}`")).collect();
        println!("\n### {}\n\n`{}`{also}: {}\n\n{}", case.title(), case.name(), report.done, report.table);
    }
    Ok(())
}
