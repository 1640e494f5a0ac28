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
            one_line(&audit.actor),
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

/// JSON with a line for each part. Moves white space and nothing else: a number keeps all of its digits, and neither depth nor
/// keys that come twice are in the way.
pub fn json(text: &str) -> String {
    const STEP: &str = "  ";
    /// Deeper than this, only lines are broken: the indentation of 10,000 levels would take 100 MB.
    const DEEPEST: usize = 40;
    let mut out = String::with_capacity(text.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    let mut tokens = text.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n(STEP, depth.min(DEEPEST)));
    };
    while let Some(c) = tokens.next() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            c if c.is_ascii_whitespace() => {}
            '{' | '[' => {
                out.push(c);
                while tokens.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(close) = tokens.next_if(|next| matches!(next, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            other => {
                in_string = other == '"';
                out.push(other);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn json_is_laid_out_and_otherwise_left_alone() {
        let text = r#"{"a":1e400,"a":[1.10, {} ,[ ]],"b":"{\\\"x\", [1]}"}"#;
        let lines =
            "{\n  \"a\": 1e400,\n  \"a\": [\n    1.10,\n    {},\n    []\n  ],\n  \"b\": \"{\\\\\\\"x\\\", [1]}\"\n}";
        assert_eq!(json(text), lines);
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert_eq!(json(&deep).matches('[').count(), 10_000);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(".{0,6}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn laid_out_json_is_the_same_json(value in value(), text in "\\PC{0,40}") {
            let laid_out = json(&value.to_string());
            prop_assert_eq!(serde_json::from_str::<Value>(&laid_out).unwrap(), value.clone());
            prop_assert_eq!(laid_out, serde_json::to_string_pretty(&value).unwrap());
            let _ = json(&text);
        }
    }
}
