//! The relay beside what users would pick instead: one program, one table, everything on throwaway servers that write as safely
//! as Postgres ships. `make bench`; what it found and what that means is in docs/performance.md.
//!
//! The contenders of a case take turns, so that whatever else the machine does meets all alike; ratios are of neighbours in the
//! same round. After each drain the new database is compared with the outbox: a run that lost, doubled or disordered an event
//! is void, and ends the program.

mod cases;
mod contender;
mod ground;
mod latency;
mod meter;
mod wire;

use anyhow::Result;
use clap::Parser;

use crate::cases::Case;

/// Measures the relay beside what users would pick instead, on throwaway servers of its own.
#[derive(Parser)]
struct Args {
    /// What to measure; without, everything
    #[arg(long, value_enum, value_delimiter = ',')]
    case: Vec<Case>,
    /// Events in a drain
    #[arg(long, default_value_t = 200_000)]
    size: u32,
    /// How often; ratios are told with their spread
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of writing, where latency is measured
    #[arg(long, default_value_t = 15)]
    seconds: u64,
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
    let mut args = Args::parse();
    if args.smoke {
        (args.size, args.rounds, args.seconds) = (2_000, 1, 2);
    }
    let cases = if args.case.is_empty() { Case::all() } else { args.case };
    for case in cases {
        let scale = cases::Scale { size: args.size, rounds: args.rounds, seconds: args.seconds };
        println!("\n{}", case.title(scale));
        let table = case.measure(scale, &args.relay.replace(';', "\n")).await?;
        println!("{table}");
    }
    Ok(())
}
