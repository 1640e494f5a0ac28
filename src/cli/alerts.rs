//! `alerts`: whether messages to the webhook arrive.

use super::args::AlertsCommand;
use super::{Exit, output};
use crate::alerts;
use crate::config::Config;

/// Sends a message that says it is a test.
pub(super) async fn command(command: &AlertsCommand, config: Config) -> anyhow::Result<Exit> {
    let AlertsCommand::Test = command;
    let Some(webhook) = &config.alerts.webhook else {
        anyhow::bail!("no webhook is configured: set OUTBOX_RELAY_ALERTS__WEBHOOK (or …_FILE), or [alerts] webhook");
    };
    if let Err(why) = alerts::test(&config, webhook).await {
        anyhow::bail!("{webhook} did not take the message: {why}");
    }
    output::print(format_args!("sent to {webhook}: look there for \"outbox-relay, test\"\n"))?;
    Ok(Exit::Done)
}
