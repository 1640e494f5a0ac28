//! The program: parses, dispatches, and tells how it ended. Everything else is the library's.

use std::process::ExitCode;

use clap::Parser;
use outbox_relay::cli::{self, Cli};

#[tokio::main]
async fn main() -> ExitCode {
    cli::dispatch(&Cli::parse()).await.unwrap_or_else(|error| cli::report(&error)).into()
}
