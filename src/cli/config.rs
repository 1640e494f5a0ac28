//! `config`: a configuration to start from, or the one in effect.

use serde_json::json;

use super::args::{Cli, ConfigArgs};
use super::{Exit, output};
use crate::config::{Setting, template};

/// Prints it. With `--resolved`, mistakes are told as well, and what could be read is shown nevertheless.
pub(super) fn command(args: &ConfigArgs, cli: &Cli) -> anyhow::Result<Exit> {
    if !args.resolved {
        output::print(template())?;
        return Ok(Exit::Done);
    }
    let resolved = cli.resolve();
    if args.json {
        let setting = |setting: &Setting| json!({"key": setting.key, "value": setting.to_toml(), "origin": setting.origin.to_string()});
        output::json(&resolved.settings.iter().map(setting).collect::<Vec<_>>())?;
    } else {
        output::print(resolved.to_toml())?;
    }
    resolved.config?;
    Ok(Exit::Done)
}
