//! The program: parses, dispatches, and tells how it ended. Everything else is the library's.

use std::process::ExitCode;

use clap::Parser;
use outbox_relay::cli::{self, Cli};
use outbox_relay::telemetry;

#[tokio::main]
async fn main() -> ExitCode {
    let exit = cli::dispatch(&Cli::parse()).await.unwrap_or_else(|error| cli::report(&error));
    telemetry::flush();
    exit.into()
}
