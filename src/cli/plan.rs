//! `plan`: what the split does to foreign keys.

use super::args::PlanArgs;
use super::{Exit, output};
use crate::config::Config;
use crate::{connect, plan};

/// Prints the plan; with `--orphans` also rows that refer to nothing, and then exits 1 if there are any, 2 if not all could be looked for.
pub(super) async fn command(args: &PlanArgs, config: Config) -> anyhow::Result<Exit> {
    let legacy = connect::source(&config, 2)?;
    let new = connect::target(&config, 2)?;
    connect::reached("legacy", &legacy).await?;
    connect::reached("new", &new).await?;
    let planned = plan::plan(&config.entities, &legacy, &new).await?;
    let orphans = if args.orphans { Some(plan::orphans(&planned, &legacy, &new).await?) } else { None };
    if args.json {
        output::json(&serde_json::json!({ "plan": planned, "orphans": orphans }))?;
    } else {
        output::print(plan::render(&planned, orphans.as_deref()))?;
    }
    let any = |is: &dyn Fn(&plan::Orphans) -> bool| orphans.iter().flatten().any(is);
    Ok(if any(&|of| of.count > 0) {
        Exit::Found
    } else if any(&|of| of.skipped.is_some()) {
        Exit::CouldNotRun
    } else {
        Exit::Done
    })
}
