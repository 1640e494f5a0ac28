//! `check`: everything is tried, nothing is changed.

use super::args::CheckArgs;
use super::{Exit, output};
use crate::check;
use crate::config::Config;

/// Prints the findings, the worst first.
pub(super) async fn command(args: &CheckArgs, config: Config) -> anyhow::Result<Exit> {
    let findings = check::check(&config).await;
    if args.json {
        output::json(&serde_json::json!({ "items": findings }))?;
    } else {
        output::print(output::painted(&check::render(&findings)))?;
    }
    Ok(if check::any_problem(&findings) { Exit::Found } else { Exit::Done })
}
