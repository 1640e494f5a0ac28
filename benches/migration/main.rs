//! The tools around the relay beside what one would pick instead, on throwaway servers that write as safely as Postgres ships:
//! `make bench CASE=copy`, `CASE=verify` and `CASE=capture`. What it found is in docs/performance.md.
//!
//! Contenders take turns, and ratios are of neighbours in the same round. After each copy both sides are compared, and a verification
//! that tells a difference ends the program.

mod capture;
mod copy;
mod ground;
#[path = "../shared/mod.rs"]
mod shared;
mod verify;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::shared::machine;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// backfill beside a COPY by hand through the same mapping, while a relay runs
    Copy,
    /// verify beside reladiff, over equal tables; and what it costs those who write
    Verify,
    /// what capture costs whoever writes
    Capture,
}

/// Measures the first copy and verification, on throwaway servers of its own.
#[derive(Parser)]
struct Args {
    /// What to measure; without, all
    #[arg(long, value_enum, value_delimiter = ',')]
    case: Vec<Case>,
    /// Rows of a table
    #[arg(long, default_value_t = 5_000_000)]
    size: u32,
    /// How often; ratios are told with their spread
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of writing, where its cost is measured
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// A short run, a tenth of the full size where rows are read: that it still works, and takes no more memory. Its rates mean nothing
    #[arg(long)]
    smoke: bool,
    /// What cargo bench says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) size: u32,
    pub(crate) rounds: u32,
    pub(crate) seconds: u64,
    pub(crate) smoke: bool,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut scale = Scale { size: args.size, rounds: args.rounds, seconds: args.seconds, smoke: args.smoke };
    if args.smoke {
        scale = Scale { size: args.size / 10, rounds: 1, seconds: 1, smoke: true };
    }
    let cases = if args.case.is_empty() { Case::value_variants().to_vec() } else { args.case };
    let mut told = false;
    for case in cases {
        let ground = ground::Ground::new(!args.smoke).await?;
        if !std::mem::replace(&mut told, true) {
            println!("{}", machine::told(&ground.legacy).await?);
        }
        let table = match case {
            Case::Copy => copy::measure(&ground, scale).await?,
            Case::Verify => verify::measure(&ground, scale).await?,
            Case::Capture if scale.smoke => capture::measure(&ground, Scale { size: 3_000, ..scale }).await?,
            Case::Capture => capture::measure(&ground, scale).await?,
        };
        println!("\n{} rows, {} rounds\n\n{table}", scale.size, scale.rounds);
    }
    Ok(())
}
