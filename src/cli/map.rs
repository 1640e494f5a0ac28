//! `map`: what one event would write.

use std::io::Read as _;

use anyhow::Context as _;

use super::args::MapArgs;
use super::{Exit, output};
use crate::config::Config;
use crate::connect;
use crate::event::EventId;
use crate::map;

/// Prints the rows that an entity's mapping yields for an event of the outbox (the newest if none is named), or for a payload.
pub(super) async fn command(args: &MapArgs, config: Config) -> anyhow::Result<Exit> {
    let entity = map::entity(&config, &args.entity)?;
    let event = match (args.id, &args.payload) {
        (Some(id), _) => {
            let source = connect::source(&config, 1)?;
            map::event_by_id(&config, &source, EventId(id)).await?
        }
        (None, Some(file)) => {
            let text = if file.as_os_str() == "-" {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("cannot read the payload from stdin")?;
                text
            } else {
                std::fs::read_to_string(file).with_context(|| format!("cannot read the payload {}", file.display()))?
            };
            map::event_of_payload(entity, text)
        }
        (None, None) => {
            let source = connect::source(&config, 1)?;
            map::newest_event(&config, &source, entity).await?
        }
    };
    if args.psql {
        output::print(map::psql(&config, entity, &event))?;
        return Ok(Exit::Done);
    }
    let target = connect::target(&config, 1)?;
    let mapped = map::map(&config, entity, &target, &event).await?;
    if args.json {
        output::json(&mapped)?;
    } else {
        output::print(map::render(&mapped))?;
    }
    Ok(Exit::Done)
}
