//! The same answers for people at a terminal.

use comfy_table::{Attribute, Cell, CellAlignment, Color, Table, presets};

use super::{Audits, Backlog, Cause, Events};

fn table(header: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    // Colours are for terminals, and for those who want them: https://no-color.org
    if std::env::var_os("NO_COLOR").is_some_and(|wish| !wish.is_empty()) {
        table.force_no_tty();
    }
    table.load_style(presets::NOTHING).set_header(header);
    for at in numbers {
        if let Some(column) = table.column_mut(*at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn lines(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// One row an aggregate type, and the sum.
pub fn backlog(backlog: &Backlog) -> String {
    const WORDS: [&str; 5] = ["pending", "retry", "held", "failed", "stopped"];
    let mut table = table(&["", WORDS[0], WORDS[1], WORDS[2], WORDS[3], WORDS[4]], &[1, 2, 3, 4, 5]);
    let row = |name: Cell, counts: [u64; 5]| {
        let cells = WORDS.iter().zip(counts).map(|(word, n)| match *word {
            "failed" if n > 0 => Cell::new(n).fg(Color::Red).add_attribute(Attribute::Bold),
            "stopped" | "held" | "retry" if n > 0 => Cell::new(n).fg(Color::Yellow),
            _ => Cell::new(n),
        });
        std::iter::once(name).chain(cells)
    };
    for (kind, by_status) in &backlog.by_aggregate_type {
        let counts = WORDS.map(|word| by_status.get(word).copied().unwrap_or(0));
        table.add_row(row(Cell::new(one_line(kind)), counts));
    }
    let sums = [backlog.pending, backlog.retry, backlog.held, backlog.failed, backlog.stopped];
    table.add_row(row(Cell::new("all").add_attribute(Attribute::Bold), sums));
    let oldest = match backlog.oldest_pending_seconds {
        Some(age) => format!("the oldest pending event is {} old", duration(age)),
        None => "nothing is pending".to_owned(),
    };
    format!("{}{oldest}\n", lines(&table))
}

/// One line an event.
pub fn events(events: &Events) -> String {
    if events.items.is_empty() {
        return "no events\n".to_owned();
    }
    let mut table = table(&["id", "aggregate", "event type", "status", "attempts", "created", "error"], &[0, 4]);
    for event in &events.items {
        table.add_row([
            event.id.to_string(),
            one_line(&format!("{} {}", event.aggregate.kind, event.aggregate.id)),
            one_line(&event.event_type),
            event.status.clone(),
            event.attempts.to_string(),
            time(event.created_at),
            one_line(event.last_error.as_deref().unwrap_or_default()),
        ]);
    }
    lines(&table) + &more(events.next_cursor.as_deref())
}

/// One line a cause.
pub fn failures(causes: &[Cause]) -> String {
    if causes.is_empty() {
        return "nothing fails\n".to_owned();
    }
    let mut table = table(&["cause", "entity", "failed", "retry", "since", "last", "events", "error"], &[2, 3]);
    for cause in causes {
        let samples: Vec<String> = cause.sample_ids.iter().map(ToString::to_string).collect();
        table.add_row([
            cause.cause.clone(),
            cause.entity.clone(),
            cause.failed.to_string(),
            cause.retry.to_string(),
            time(cause.first_at),
            time(cause.last_at),
            samples.join(" ") + if cause.count > samples.len() as u64 { " …" } else { "" },
            one_line(&format!("{}: {}", cause.code, cause.message)),
        ]);
    }
    lines(&table)
}

/// One line a change.
pub fn audits(audits: &Audits) -> String {
    if audits.items.is_empty() {
        return "nothing was changed yet\n".to_owned();
    }
    let mut table = table(&["at", "actor", "action", "subject", "matched", "changed", "reason"], &[4, 5]);
    for audit in &audits.items {
        table.add_row([
            time(audit.at),
            audit.actor.clone(),
            audit.action.clone(),
            audit.subject.get().to_owned(),
            audit.matched.to_string(),
            audit.changed.to_string(),
            one_line(&audit.reason),
        ]);
    }
    lines(&table) + &more(audits.next_cursor.as_deref())
}

fn more(cursor: Option<&str>) -> String {
    cursor.map(|cursor| format!("more: --cursor {cursor}\n")).unwrap_or_default()
}

fn time(at: chrono::DateTime<chrono::Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

fn duration(seconds: f64) -> String {
    let whole = std::time::Duration::try_from_secs_f64(seconds.round()).unwrap_or_default();
    humantime::format_duration(whole).to_string()
}

/// Control characters would let what an application wrote draw on the operator's terminal.
pub fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match clean.char_indices().nth(160) {
        Some((at, _)) => format!("{}…", &clean[..at]),
        None => clean,
    }
}
