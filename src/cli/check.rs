//! `check`: everything is tried, nothing is changed.

use super::args::CheckArgs;
use super::{Exit, output};
use crate::admin::check_certificate;
use crate::check;
use crate::config::Config;

/// Prints the findings, the worst first.
pub(super) async fn command(args: &CheckArgs, config: Config) -> anyhow::Result<Exit> {
    let mut findings = check::admin(&config, check_certificate(&config.admin));
    findings.extend(check::check(&config).await);
    findings.sort_by_key(|finding| finding.severity);
    if args.json {
        output::json(&serde_json::json!({ "items": findings }))?;
    } else {
        output::print(output::painted(&check::render(&findings)))?;
    }
    Ok(if check::any_problem(&findings) { Exit::Found } else { Exit::Done })
}
