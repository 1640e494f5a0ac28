//! For a terminal.

use std::fmt::Write as _;

use super::{ForeignKey, Orphans, Plan};

/// The plan as text: what moves, in which order, which constraints it breaks, and the statements.
pub fn render(plan: &Plan, orphans: Option<&[Orphans]>) -> String {
    let mut out = String::new();
    moves(&mut out, plan);
    order(&mut out, plan);
    crossing(&mut out, plan);
    moving(&mut out, plan);
    if !plan.unfilled.is_empty() {
        heading(&mut out, "Constraints of the new database whose other table no entity fills");
        for key in &plan.unfilled {
            let _ = writeln!(out, "  {}", told(key));
        }
        let _ = writeln!(
            out,
            "  Fill those tables by other means first, or events and the first copy wait there for a parent (23503)."
        );
    }
    match orphans {
        Some(found) => orphaned(&mut out, found),
        None => {
            let _ = writeln!(out, "\nRows that refer to nothing, on either side: outbox-relay plan --orphans");
        }
    }
    out
}

fn heading(out: &mut String, text: &str) {
    let _ = writeln!(out, "\n{text}:");
}

fn told(key: &ForeignKey) -> String {
    format!(
        "{}: {} ({}) -> {} ({}){}",
        key.name,
        key.child,
        key.columns.join(", "),
        key.parent,
        key.parent_columns.join(", "),
        if key.validated { "" } else { ", NOT VALID" }
    )
}

fn moves(out: &mut String, plan: &Plan) {
    let _ = writeln!(out, "What moves:");
    for of in &plan.moves {
        let from = match (&of.legacy, of.guessed) {
            (Some(table), false) => table.to_string(),
            (Some(table), true) => format!("{table} (a guess: the legacy table of the same name)"),
            (None, _) => "no legacy table that is known".to_owned(),
        };
        let _ = writeln!(out, "  {}: {from} -> {}", of.entity, of.new);
        let Some(file) = &of.query else { continue };
        if let Some(why) = &of.unread {
            let _ =
                writeln!(out, "    which tables {file} reads is not known, and so none of their constraints: {why}");
        } else if !of.reads.is_empty() {
            let reads: Vec<String> = of.reads.iter().map(ToString::to_string).collect();
            let _ =
                writeln!(out, "    {file} reads besides: {}. Whether they move along, only you know", reads.join(", "));
        }
    }
    if plan.moves.is_empty() {
        let _ = writeln!(out, "  nothing: no entity has a table");
    }
}

fn order(out: &mut String, plan: &Plan) {
    heading(out, "Order in which to fill the new tables");
    for (n, step) in plan.order.iter().enumerate() {
        let _ = writeln!(out, "  {}. {}", n + 1, step.entities.join(", "));
        if !step.cycle.is_empty() {
            let _ = writeln!(
                out,
                "     they refer to each other, by {}. On the new database, before the first copy:",
                step.cycle.join(", ")
            );
            statements(out, &step.before);
            let _ = writeln!(out, "     and once they are filled:");
            statements(out, &step.after);
        }
    }
}

fn crossing(out: &mut String, plan: &Plan) {
    heading(out, "Legacy constraints that would cross the two databases");
    for crossing in &plan.crossing {
        let _ = writeln!(out, "  {}\n    {}", told(&crossing.constraint), crossing.why);
        let _ = writeln!(
            out,
            "    On the legacy database, before the service takes over (a moment's ACCESS EXCLUSIVE on both tables: set lock_timeout):"
        );
        statements(out, &crossing.drop);
        let _ = writeln!(out, "    To have it back there:");
        statements(out, &crossing.restore);
    }
    if plan.crossing.is_empty() {
        let _ = writeln!(out, "  none");
    }
}

fn moving(out: &mut String, plan: &Plan) {
    heading(out, "Legacy constraints whose both tables move");
    for moving in &plan.moving {
        let _ = writeln!(out, "  {}", told(&moving.constraint));
        match (&moving.kept_by, moving.create.is_empty()) {
            (Some(name), _) => {
                let _ = writeln!(out, "    kept in the new database by {name}");
            }
            (None, false) => {
                let _ = writeln!(
                    out,
                    "    not in the new database. There, once both tables are filled (VALIDATE lets others write):"
                );
                statements(out, &moving.create);
            }
            (None, true) => {
                let _ = writeln!(
                    out,
                    "    not in the new database, whose columns are called otherwise: add it there, if it is meant to hold"
                );
            }
        }
    }
    if plan.moving.is_empty() {
        let _ = writeln!(out, "  none");
    }
}

fn statements(out: &mut String, sql: &[String]) {
    for statement in sql {
        let _ = writeln!(out, "      {statement}");
    }
}

fn orphaned(out: &mut String, found: &[Orphans]) {
    heading(out, "Rows that refer to nothing");
    for of in found {
        let result = match (&of.skipped, of.count) {
            (Some(why), 0) => format!("not looked at: {why}"),
            (Some(why), n) => format!("{n} rows, and then not looked at further: {why}"),
            (None, 0) => "none".to_owned(),
            (None, n) => format!("{n} rows"),
        };
        let _ = writeln!(out, "  {}: {} -> {}: {result}", of.constraint, of.child, of.parent);
        for sample in &of.samples {
            let _ = writeln!(out, "    row {} refers to {}", sample.key.join(", "), sample.refers_to.join(", "));
        }
    }
    if found.is_empty() {
        let _ = writeln!(out, "  no reference concerns a table that moves");
    }
}
