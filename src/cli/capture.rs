//! `capture`: triggers that write a legacy table's events.

use serde::Serialize;

use super::args::{CaptureArgs, CaptureCommand};
use super::{Exit, output, shell};
use crate::capture::{self, State, Status};
use crate::config::{Config, Entity, LegacyRows, RowsFrom};
use crate::connect;
use crate::map;
use crate::source::Source;

/// Installs, removes, or tells what stands there.
pub(super) async fn command(command: &CaptureCommand, config: Config) -> anyhow::Result<Exit> {
    let (CaptureCommand::Install(args) | CaptureCommand::Remove(args) | CaptureCommand::Status(args)) = command;
    let entities = chosen(args, &config)?;
    let removes = matches!(command, CaptureCommand::Remove(_));
    if args.print {
        for entity in entities {
            output::print(capture::print(&config, entity, removes)?)?;
        }
        return Ok(Exit::Done);
    }
    let (source, _) = connect::open(&config).await?;
    match command {
        CaptureCommand::Status(_) => tell(args, &config, &entities, &source).await,
        _ => change(args, removes, &config, &entities, &source).await,
    }
}

async fn tell(args: &CaptureArgs, config: &Config, entities: &[&Entity], source: &Source) -> anyhow::Result<Exit> {
    let mut all = Vec::new();
    for entity in entities {
        all.push(capture::status(config, entity, source).await?);
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

/// One after the other, until one is refused, or the database is away; what was done before that is told all the same.
async fn change(
    args: &CaptureArgs,
    removes: bool,
    config: &Config,
    entities: &[&Entity],
    source: &Source,
) -> anyhow::Result<Exit> {
    let who = shell(args.reason.as_deref());
    let (mut done, mut ended) = (Vec::new(), Ok(Exit::Done));
    for entity in entities {
        let one = async {
            let changed = match removes {
                false => capture::install(config, entity, source, &who).await?,
                true => capture::remove(config, entity, source, &who).await?,
            };
            if args.json {
                done.push(Done { status: capture::status(config, entity, source).await?, changed });
            }
            anyhow::Ok(changed)
        };
        let changed = match one.await {
            Ok(changed) => changed,
            Err(error) => {
                ended = Err(error);
                break;
            }
        };
        if args.json {
            continue;
        }
        let what = match (removes, changed) {
            (false, true) => "installed",
            (false, false) => "stands there already",
            (true, true) => "removed",
            (true, false) => "was not there",
        };
        let others: Vec<&str> = capture::shared_with(config, entity).iter().map(|of| of.name.as_str()).collect();
        let with = match (removes && changed, others.is_empty()) {
            (true, false) => format!(", and with it that of {}, which the same triggers wrote", others.join(", ")),
            _ => String::new(),
        };
        output::print(format_args!("{}: capture {what}{with}\n", entity.name))?;
    }
    if args.json {
        output::json(&done)?;
    }
    ended
}

/// What came of installing or removing, for programs.
#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    status: Status,
    /// False: it was so already.
    changed: bool,
}

fn chosen<'a>(args: &CaptureArgs, config: &'a Config) -> anyhow::Result<Vec<&'a Entity>> {
    if !args.entities.is_empty() {
        return Ok(args.entities.iter().map(|name| map::entity(config, name)).collect::<Result<_, _>>()?);
    }
    let is_table = |rows: &LegacyRows| matches!(rows.from, RowsFrom::Table(_));
    let all: Vec<&Entity> = config.entities.iter().filter(|of| of.legacy.as_ref().is_some_and(is_table)).collect();
    if all.is_empty() {
        anyhow::bail!(
            "no entity says of which legacy table it is made: legacy = {{ table = \"public.users\", key = [\"id\"] }}"
        );
    }
    Ok(all)
}
