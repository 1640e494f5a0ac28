//! `init`: makes what is missing, prints it, or takes it away.

use super::args::InitArgs;
use super::confirm::confirm;
use super::{Exit, output};
use crate::config::Config;
use crate::connect;
use crate::init::{self, Choices, Roles, Side};

/// Makes, prints or removes, as the flags say.
pub(super) async fn command(args: &InitArgs, config: Config) -> anyhow::Result<Exit> {
    let source = connect::source(&config, 2)?;
    let target = connect::target(&config, 2)?;
    let choices = Choices {
        target_is_empty: args.target_is_empty,
        target_is_current: args.target_is_current,
        moved: args.moved,
        existing: args.existing,
    };
    if args.print {
        let usual = Roles::default();
        let roles = Roles {
            app: args.app_role.clone().unwrap_or(usual.app),
            relay: args.relay_role.clone().unwrap_or(usual.relay),
        };
        output::print(init::print(&config, &source, &target, choices, &roles).await?)?;
        return Ok(Exit::Done);
    }
    if args.remove {
        return remove(args, &config, &source, &target).await;
    }
    let plan = init::plan(&config, &source, &target, choices).await?;
    if args.target_is_empty {
        confirm("All retained events are applied again, to a new database that must be empty. Go on?", args.yes)?;
    }
    for step in &plan.source {
        output::print(format_args!("{}: {}\n", Side::Legacy, step.why))?;
    }
    for step in &plan.target {
        output::print(format_args!("{}: {}\n", Side::New, step.why))?;
    }
    init::init(&config, &source, &target, choices).await?;
    let done = if plan.is_empty() { "nothing was missing" } else { "done" };
    output::print(format_args!("{done}; next: outbox-relay check\n"))?;
    Ok(Exit::Done)
}

async fn remove(
    args: &InitArgs,
    config: &Config,
    source: &sqlx::PgPool,
    target: &sqlx::PgPool,
) -> anyhow::Result<Exit> {
    let removal = init::removal(config, source, target).await?;
    for (side, steps) in [(Side::Legacy, &removal.source), (Side::New, &removal.target)] {
        for step in steps {
            output::print(format_args!("{side}: {}\n", step.why))?;
        }
    }
    if removal.source.is_empty() && removal.target.is_empty() {
        output::print("nothing is there to be removed\n")?;
        return Ok(Exit::Found);
    }
    confirm("The relay's tables, with its logs and its audit, are dropped on both sides. Go on?", args.yes)?;
    let removed = init::remove(config, source, target).await?;
    for note in &removed.notes {
        output::print(format_args!("{note}\n"))?;
    }
    for (column, statement) in &removed.columns {
        output::print(format_args!("left in place: column {column}, which init had added; to drop it: {statement}\n"))?;
    }
    output::print("removed; the outbox and its rows are left\n")?;
    Ok(Exit::Done)
}
