//! `capture`: triggers that write a legacy table's events.

use super::args::{CaptureArgs, CaptureCommand};
use super::{Exit, output, shell};
use crate::capture::{self, State};
use crate::config::{Config, Entity};
use crate::connect;
use crate::map;

/// Installs, removes, or tells what stands there.
pub(super) async fn command(command: &CaptureCommand, config: Config) -> anyhow::Result<Exit> {
    let (args, verb) = match command {
        CaptureCommand::Install(args) => (args, "install"),
        CaptureCommand::Remove(args) => (args, "remove"),
        CaptureCommand::Status(args) => (args, "status"),
    };
    let entities = chosen(args, &config)?;
    if args.print {
        for entity in entities {
            output::print(capture::print(&config, entity, verb == "remove")?)?;
        }
        return Ok(Exit::Done);
    }
    let (source, _) = connect::open(&config).await?;
    let who = shell(args.reason.as_deref());
    let mut all = Vec::new();
    for entity in &entities {
        match verb {
            "install" => {
                let done = capture::install(&config, entity, &source, &who).await?;
                let what = if done { "installed" } else { "stands there already" };
                output::print(format_args!("{}: capture {what}\n", entity.name))?;
            }
            "remove" => {
                let done = capture::remove(&config, entity, &source, &who).await?;
                let what = if done { "removed" } else { "was not there" };
                output::print(format_args!("{}: capture {what}\n", entity.name))?;
            }
            _ => all.push(capture::status(&config, entity, &source).await?),
        }
    }
    if verb != "status" {
        return Ok(Exit::Done);
    }
    if args.json {
        output::json(&all)?;
    } else {
        for status in &all {
            let state = match status.state {
                State::Installed => "installed",
                State::Outdated => "outdated: outbox-relay capture install",
                State::Disabled => "disabled: a trigger of it is switched off",
                State::Absent => "absent",
            };
            output::print(format_args!("{} ({}): {state}\n", status.entity, status.table))?;
        }
    }
    Ok(if all.iter().all(|status| status.state == State::Installed) { Exit::Done } else { Exit::Found })
}

fn chosen<'a>(args: &CaptureArgs, config: &'a Config) -> anyhow::Result<Vec<&'a Entity>> {
    if !args.entities.is_empty() {
        return Ok(args.entities.iter().map(|name| map::entity(config, name)).collect::<Result<_, _>>()?);
    }
    let all: Vec<&Entity> = config.entities.iter().filter(|entity| entity.legacy.is_some()).collect();
    if all.is_empty() {
        anyhow::bail!(
            "no entity says of which legacy table it is made: legacy = {{ table = \"public.users\", key = [\"id\"] }}"
        );
    }
    Ok(all)
}
