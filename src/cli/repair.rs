//! `repair`, `resync`: rows of the new database, made right from the legacy one.

use super::args::{ApplyArgs, RepairArgs, ResyncArgs};
use super::confirm::confirm;
use super::{Exit, output, shell_user};
use crate::config::{Config, Entity};
use crate::connect;
use crate::job::{Kind, Via};
use crate::map;
use crate::repair::{Action, By, Repair, Repaired, Since, Task, Wanted, odd_key, render, render_dry};
use crate::run::on_signals;
use crate::source::RowKey;
use crate::target::ReportId;
use crate::verify::VerifyError;
use crate::words::several;

/// `repair`
pub(super) async fn repair(args: &RepairArgs, config: Config) -> anyhow::Result<Exit> {
    let entity = args.entity.as_deref().map(|name| map::entity(&config, name)).transpose()?;
    if let Some(entity) = entity.filter(|entity| entity.legacy.is_none()) {
        anyhow::bail!(
            "entity {} does not say of which legacy rows it is made (legacy = {{ table = …, key = … }})",
            entity.name
        );
    }
    run(&args.how, &config, Kind::Repair, &Task::Reported(args.report.map(ReportId), entity)).await
}

/// `resync`
pub(super) async fn resync(args: &ResyncArgs, config: Config) -> anyhow::Result<Exit> {
    let entity = map::entity(&config, &args.entity)?;
    let wanted = match args.since {
        Some(since) => Wanted::Since(Since { since, until: args.until }),
        None if args.divergent => Wanted::Divergent,
        None => Wanted::Keys(keys_of(entity, &args.keys)?),
    };
    run(&args.how, &config, Kind::Resync, &Task::Resync(entity, wanted)).await
}

/// The same, each of as many parts as the legacy key.
fn keys_of(entity: &Entity, given: &[String]) -> anyhow::Result<Vec<RowKey>> {
    let keys = keys(given)?;
    // An entity without legacy rows is refused in its own words.
    let Some(rows) = &entity.legacy else { return Ok(keys) };
    if let Some(other) = odd_key(rows, &keys) {
        let parts = rows.key.len();
        let columns = rows.key.join(", ");
        let example = rows.key.iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>().join(",");
        let remedy = if parts == 1 { "--keys 1,2".to_owned() } else { format!("--keys '[{example}]', with values") };
        anyhow::bail!(
            "--keys: the legacy key of {} has {} ({columns}), and {other} has {}: {remedy}",
            entity.name,
            several(parts as u64, "part"),
            other.0.len()
        );
    }
    Ok(keys)
}

/// A key each, of one part as it stands, of several as a JSON array; a comma within an array does not part keys.
fn keys(given: &[String]) -> anyhow::Result<Vec<RowKey>> {
    let joined = given.join(",");
    if !joined.trim_start().starts_with('[') {
        return Ok(given.iter().map(|key| RowKey(vec![key.clone()])).collect());
    }
    let arrays: Vec<Vec<serde_json::Value>> = serde_json::from_str(&format!("[{joined}]"))
        .map_err(|error| anyhow::anyhow!("--keys: {joined} is not a list of JSON arrays: {error}"))?;
    let text = |part: serde_json::Value| match part {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(arrays.into_iter().map(|parts| RowKey(parts.into_iter().map(text).collect())).collect())
}

async fn run(how: &ApplyArgs, config: &Config, command: Kind, task: &Task<'_>) -> anyhow::Result<Exit> {
    let (source, target) = connect::open(config).await?;
    let stop = on_signals()?;
    let reason = how.reason.clone().unwrap_or_default().trim().to_owned();
    if how.apply && reason.is_empty() {
        anyhow::bail!("say why: --reason is kept with every changed row");
    }
    let by = By { actor: shell_user(), reason, command, via: Via::Command };
    let repair = |apply, expected| Repair {
        config,
        source: &source,
        target: &target,
        by: &by,
        apply,
        expected,
        stop: &stop,
        job: None,
    };
    let quoting = config.quoting(&task.entities(config));
    let refused = |error: VerifyError| anyhow::anyhow!("{}", error.shown(quoting));
    // While somebody is asked, a verification may end: what is done is what was shown.
    let task = &task.chosen(config, &target).await.map_err(refused)?;
    let planned = repair(false, None).run(task).await.map_err(refused)?;
    if !how.apply || (!planned.changes_any() && !task.settles()) {
        return told(how, &planned);
    }
    if !how.json {
        output::print(render(&planned))?;
    }
    if planned.changes_any() {
        confirm(
            &format!("Write {} and delete {}?", several(planned.written, "row"), several(planned.deleted, "row")),
            how.yes,
        )?;
    }
    // What an event was on its way to may be changed by now.
    let waited = planned.changes.iter().filter(|change| change.action == Action::Waits).count() as u64;
    let shown = planned.written + planned.deleted + waited;
    told(how, &repair(true, Some(shown)).run(task).await.map_err(refused)?)
}

fn told(how: &ApplyArgs, repaired: &Repaired) -> anyhow::Result<Exit> {
    if how.json {
        output::json(repaired)?;
    } else {
        output::print(if repaired.applied { render(repaired) } else { render_dry(repaired) })?;
    }
    let to_do = repaired.left > 0 || repaired.verify_again || (!repaired.applied && repaired.changes_any());
    Ok(if to_do { Exit::Found } else { Exit::Done })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_words_or_arrays() {
        let of = |given: &[&str]| keys(&given.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>());
        let key = |parts: &[&str]| RowKey(parts.iter().map(|p| (*p).to_owned()).collect());
        assert_eq!(of(&["1", "2"]).unwrap(), [key(&["1"]), key(&["2"])]);
        // As clap parts them.
        assert_eq!(of(&["[\"acme\"", "7]", "[\"b", "c\"", "8]"]).unwrap(), [key(&["acme", "7"]), key(&["b,c", "8"])]);
        assert!(of(&["[1"]).is_err());
    }
}
