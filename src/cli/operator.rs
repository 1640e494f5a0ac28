//! `status`, `events`, `failures`, `replay`, `skip`, `pause`, `resume`: what the admin API does, from a shell.

use serde::Serialize;
use serde_json::json;

use super::args::{
    ChangeArgs, EventsCommand, EventsListArgs, FilterArgs, PauseArgs, ReplayArgs, ResumeArgs, StatusArgs,
};
use super::confirm::confirm;
use super::{Exit, output, shell_user};
use crate::config::{Config, Role};
use crate::connect;
use crate::event::EventId;
use crate::operator::{
    Backlog, Bulk, By, Event, EventRef, Filter, Operator, Pause, Paused, Result as OperatorResult, Verb, What, render,
};
use crate::run::on_signals;

/// Operators need the source only, and what `init` made there. Who has the database's password may see what it holds.
async fn operator(config: &Config) -> anyhow::Result<Operator> {
    let operator = Operator::new(config)?.seen_by(Role::Admin);
    connect::installation(operator.pool(), config).await?;
    Ok(operator)
}

/// `status`
pub(super) async fn status(args: &StatusArgs, config: Config) -> anyhow::Result<Exit> {
    let operator = operator(&config).await?;
    let Some(every) = args.watch else {
        let status = Status::of(&operator).await?;
        if args.json {
            output::json(&status)?;
        } else {
            output::print(status.render())?;
        }
        return Ok(Exit::Done);
    };
    let stop = on_signals()?;
    loop {
        let seen = tokio::select! {
            () = stop.cancelled() => return Ok(Exit::Done),
            seen = Status::of(&operator) => seen,
        };
        match seen {
            Ok(status) if args.json => output::json_line(&status)?,
            Ok(status) => output::refresh(status.render())?,
            // Whoever watches wants to see it come back.
            Err(error) if args.json => output::json_line(&json!({"error": error.to_string()}))?,
            Err(error) => output::refresh(format_args!("{error}\n"))?,
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(Exit::Done),
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// What the legacy database tells of the relay, whoever runs it.
#[derive(Serialize)]
struct Status {
    backlog: Backlog,
    paused: Vec<Paused>,
    divergent: u64,
}

impl Status {
    async fn of(operator: &Operator) -> OperatorResult<Status> {
        let backlog = operator.count_backlog().await?;
        let (paused, divergent) = operator.paused_and_divergent().await?;
        Ok(Status { backlog, paused, divergent })
    }

    fn render(&self) -> String {
        let mut text = render::backlog(&self.backlog);
        for pause in &self.paused {
            let what = pause.aggregate_type.as_deref().unwrap_or("everything");
            let said = format!("paused: {what}, by {} since {}: {}", pause.actor, pause.at.to_rfc3339(), pause.reason);
            text += &(render::one_line(&said) + "\n");
        }
        if self.divergent > 0 {
            let n = self.divergent;
            text += &format!(
                "{n} events are in the new database that the outbox does not have: their aggregates need a resync\n"
            );
        }
        text
    }
}

/// `events list`, `events show`
pub(super) async fn events(command: &EventsCommand, config: Config) -> anyhow::Result<Exit> {
    let operator = operator(&config).await?;
    match command {
        EventsCommand::List(args) => list(args, &operator).await,
        EventsCommand::Show(args) => {
            let event = operator.event(&args.id.parse::<EventRef>().map_err(anyhow::Error::msg)?).await?;
            if args.json {
                output::json(&event)?;
            } else {
                output::print(show(&event))?;
            }
            Ok(Exit::Done)
        }
    }
}

async fn list(args: &EventsListArgs, operator: &Operator) -> anyhow::Result<Exit> {
    let cursor = args.cursor.as_deref().map(str::parse).transpose();
    let cursor = cursor.map_err(|_| anyhow::anyhow!("--cursor is not one that an earlier answer gave"))?.map(EventId);
    let found = operator.events(&filter(&args.filter, &[]), args.limit, cursor).await?;
    if args.json {
        output::json(&found)?;
    } else {
        output::print(render::events(&found))?;
    }
    Ok(if found.items.is_empty() { Exit::Found } else { Exit::Done })
}

fn show(event: &Event) -> String {
    let listed = &event.event;
    let mut text = format!(
        "event {} ({})\n  {} of {} {}, written {}\n  {} after {} failed attempts, lane {}\n",
        listed.id,
        listed.event_id,
        render::one_line(&listed.event_type),
        render::one_line(&listed.aggregate.kind),
        render::one_line(&listed.aggregate.id),
        listed.created_at.to_rfc3339(),
        listed.status,
        listed.attempts,
        event.lane,
    );
    if let Some(error) = &listed.last_error {
        text.push_str(&format!("  {error}\n"));
    }
    if let Some(detail) = event.failure.as_ref().and_then(|failure| failure.detail.as_ref()) {
        text.push_str(&format!("  {detail}\n"));
    }
    if let Some(behind) = event.held_behind {
        text.push_str(&format!("  held behind event {behind}\n"));
    }
    if event.holds_back > 0 {
        text.push_str(&format!("  holds back {} later events of its aggregate\n", event.holds_back));
    }
    for attempt in &event.history {
        text.push_str(&format!("  {}  {}: {}\n", attempt.at.to_rfc3339(), attempt.code, attempt.message));
    }
    text.push_str(&render::json(event.payload.get()));
    text.push('\n');
    // Control characters would let a payload draw on the operator's terminal.
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

/// `failures`
pub(super) async fn failures(json_wanted: bool, config: Config) -> anyhow::Result<Exit> {
    let causes = operator(&config).await?.failures().await?;
    if json_wanted {
        output::json(&json!({"items": causes}))?;
    } else {
        output::print(render::failures(&causes))?;
    }
    Ok(if causes.is_empty() { Exit::Found } else { Exit::Done })
}

/// `replay`
pub(super) async fn replay(args: &ReplayArgs, config: Config) -> anyhow::Result<Exit> {
    change(Verb::Replay, &args.change, args.force, config).await
}

/// `skip`
pub(super) async fn skip(args: &ChangeArgs, config: Config) -> anyhow::Result<Exit> {
    change(Verb::Skip, args, false, config).await
}

async fn change(verb: Verb, args: &ChangeArgs, force: bool, config: Config) -> anyhow::Result<Exit> {
    let operator = operator(&config).await?;
    // A dry run changes nothing, and so needs no reason.
    let by = By::new(shell_user(), args.reason.as_deref().unwrap_or("dry run"))?;
    if let ([id], false, None) = (&args.ids[..], args.dry_run, args.expected) {
        let event = EventRef::Id(EventId(*id));
        let changed = match verb {
            Verb::Replay => operator.replay(&event, force, &by).await?,
            Verb::Skip => operator.skip(&event, &by).await?,
        };
        if args.json {
            output::json(&changed)?;
        } else if changed.changed {
            output::print(format_args!("event {id} is {} now\n", changed.event.event.status))?;
        } else {
            output::print(format_args!("event {id} is {} already\n", changed.event.event.status))?;
        }
        return Ok(if changed.changed { Exit::Done } else { Exit::Found });
    }
    let mut bulk =
        Bulk { filter: filter(&args.filter, &args.ids), expected: args.expected, all: args.all, dry_run: true, force };
    let stop = on_signals()?;
    let mut result = operator.bulk(verb, &bulk, &by, &stop).await?;
    if !args.dry_run && result.matched > 0 {
        confirm(&format!("{} {} events?", capital(verb.as_str()), result.matched), args.yes)?;
        bulk.dry_run = false;
        // What was asked about is what is done.
        bulk.expected = args.expected.or((!args.yes).then_some(result.matched));
        result = operator.bulk(verb, &bulk, &by, &stop).await?;
    }
    if args.json {
        output::json(&result)?;
    } else if args.dry_run {
        output::print(format_args!("{} events match; nothing was changed\n", result.matched))?;
    } else {
        let refused = match result.refused {
            0 => String::new(),
            n => format!(
                ", {n} were not, because a newer event of their aggregate was applied (--id N --force overrides)"
            ),
        };
        output::print(format_args!("{} events match, {} were changed{refused}\n", result.matched, result.changed))?;
    }
    Ok(if result.matched == 0 { Exit::Found } else { Exit::Done })
}

/// `pause`
pub(super) async fn pause(args: &PauseArgs, config: Config) -> anyhow::Result<Exit> {
    let operator = operator(&config).await?;
    let by = By::new(shell_user(), &args.reason)?;
    if let Some(kind) = &args.aggregate_type
        && !args.json
        && !config.entities.iter().any(|entity| entity.aggregate_type == *kind)
    {
        output::print(format_args!("no entity takes the aggregate type {kind}: is that its name?\n"))?;
    }
    let pause = operator.pause(&what(args.aggregate_type.as_deref()), &by, None).await?;
    if !args.json && !pause.in_flight.is_empty() {
        output::print(format_args!("paused, but a batch is still in flight in {} lanes\n", pause.in_flight.len()))?;
    }
    paused(&pause, args.json)
}

/// `resume`
pub(super) async fn resume(args: &ResumeArgs, config: Config) -> anyhow::Result<Exit> {
    let operator = operator(&config).await?;
    let by = By::new(shell_user(), &args.reason)?;
    paused(&operator.resume(&what(args.aggregate_type.as_deref()), &by).await?, args.json)
}

fn paused(pause: &Pause, json_wanted: bool) -> anyhow::Result<Exit> {
    if json_wanted {
        output::json(pause)?;
        return Ok(Exit::Done);
    }
    if !pause.changed {
        output::print("it was so already\n")?;
    }
    let names: Vec<&str> = pause.paused.iter().map(|p| p.aggregate_type.as_deref().unwrap_or("everything")).collect();
    if names.is_empty() {
        output::print("nothing is paused\n")?;
    } else {
        output::print(format_args!("paused: {}\n", names.join(", ")))?;
    }
    Ok(Exit::Done)
}

fn what(aggregate_type: Option<&str>) -> What {
    aggregate_type.map_or(What::All, |kind| What::AggregateType(kind.to_owned()))
}

fn filter(args: &FilterArgs, ids: &[i64]) -> Filter {
    Filter {
        status: args.status,
        aggregate_type: args.aggregate_type.clone(),
        aggregate_id: args.aggregate_id.clone(),
        event_type: args.event_type.clone(),
        cause: args.cause.clone(),
        ids: (!ids.is_empty()).then(|| ids.iter().copied().map(EventId).collect()),
        created_after: None,
        created_before: None,
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
