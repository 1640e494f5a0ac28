//! A plan as a script for a DBA: every step with what it is for and what it locks.

use std::fmt::Write as _;

use super::grants::Grants;
use super::run::LOCK_TIMEOUT;
use super::{Plan, Step};

/// Two scripts for psql, one after the other: what `init` would run, then the grants.
pub fn script(plan: &Plan, grants: &Grants) -> String {
    let mut out = String::new();
    for note in &plan.notes {
        let _ = writeln!(out, "-- {}", note.replace('\n', "\n-- "));
    }
    for (side, steps, grants) in [("legacy", &plan.source, &grants.source), ("new", &plan.target, &grants.target)] {
        let _ = writeln!(out, "\n-- ==== On the {side} database ====");
        if steps.is_empty() {
            let _ = writeln!(out, "\n-- Nothing is missing here.");
        }
        for (at, step) in steps.iter().enumerate() {
            print_step(&mut out, at + 1, step);
        }
        let _ = writeln!(
            out,
            "\n-- Grants: the relay needs no DDL at run time, and the application no more than to write events."
        );
        for grant in grants {
            let _ = writeln!(out, "{grant}");
        }
    }
    let _ = writeln!(
        out,
        "\n-- Then: outbox-relay init, as the relay's role. It finds nothing left to make, and introduces the two databases."
    );
    out
}

fn print_step(out: &mut String, number: usize, step: &Step) {
    let _ = writeln!(out, "\n-- {number}. {}\n--    Locks: {}.", step.why.replace('\n', " "), step.locks);
    let sql = step.sql.trim();
    if step.alone {
        let _ = writeln!(out, "--    Outside a transaction.\n{sql}");
    } else {
        let _ = writeln!(
            out,
            "BEGIN;\nSET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; -- rather than queue the application behind it: run it again\n{sql}\nCOMMIT;"
        );
    }
}
