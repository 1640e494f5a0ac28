//! A plan as a script for a DBA: every step with what it is for and what it locks.

use std::fmt::Write as _;

use sqlx::postgres::PgPool;

use super::grants::{Grants, Roles, grants, grants_for_empty};
use super::run::LOCK_TIMEOUT;
use super::{Choices, InitError, Plan, Step, plan, plan_for_empty};
use crate::config::Config;

/// What `init --print` prints: what `init` would run on these databases, or on an empty pair where they do not answer (it says
/// which). A refusal is an error here, too: it is what `init` would say.
pub async fn print(
    config: &Config,
    source: &PgPool,
    target: &PgPool,
    choices: Choices,
    roles: &Roles,
) -> Result<String, InitError> {
    let asked = async { Ok((plan(config, source, target, choices).await?, grants(config, source, roles).await?)) };
    match asked.await {
        Ok((plan, grants)) => Ok(script(&plan, &grants)),
        // The database refused a statement, rather than being away: that is not an empty one.
        Err(InitError::Database { side, error, doing }) if error.as_database_error().is_some_and(|e| !is_away(e)) => {
            Err(InitError::Database { side, error, doing })
        }
        Err(InitError::Database { side, error, .. }) => {
            let mut plan = plan_for_empty(config);
            plan.notes.push(format!("{side}: {error}"));
            Ok(script(&plan, &grants_for_empty(config, roles)))
        }
        Err(refused) => Err(refused),
    }
}

/// Wrong password, no such role or database, starting up: nothing is known of what stands there.
fn is_away(error: &dyn sqlx::error::DatabaseError) -> bool {
    error.code().is_some_and(|code| ["28", "3D", "57", "08", "53"].iter().any(|class| code.starts_with(class)))
}

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

/// The steps on the source alone.
pub(crate) fn steps_script(plan: &Plan) -> String {
    let mut out = "-- ==== On the legacy database ====\n".to_owned();
    for (at, step) in plan.source.iter().enumerate() {
        print_step(&mut out, at + 1, step);
    }
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
