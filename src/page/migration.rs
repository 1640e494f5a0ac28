//! The migration around the relay, entity by entity: whether it is captured, copied, verified; its phase in one sentence.

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::words::{ago, several, span, thousands};
use crate::migration::{Copy, EntityState, Migration};
use crate::target::Verified;
use crate::verify::{EntityReport, Outcome};

/// How far an entity has come; the least advanced one is the migration's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Nothing,
    Copying,
    Left,
    Copied,
    Differing,
    Following,
}

fn phase(entity: &EntityState) -> Phase {
    match (&entity.copy, &entity.verified) {
        (_, Some(verified)) if verified.found.outcome == Outcome::Equal => Phase::Following,
        (_, Some(verified)) if verified.found.outcome == Outcome::Differs => Phase::Differing,
        (Some(copy), _) if copy.copied.ended_at.is_some() && copy.copied.left() > 0 => Phase::Left,
        (Some(copy), _) if copy.copied.ended_at.is_some() => Phase::Copied,
        (Some(_), _) => Phase::Copying,
        (None, _) => Phase::Nothing,
    }
}

/// The whole migration in one sentence; `None`: no entity says of which legacy rows it is made.
fn sentence(entities: &[EntityState]) -> Option<String> {
    let least = entities.iter().map(phase).min()?;
    let behind = entities.iter().filter(|entity| phase(entity) == least).count();
    let which = match (behind, entities.len()) {
        (_, 1) => "The table".to_owned(),
        (n, all) if n == all => format!("All {all} tables"),
        (n, all) => format!("{n} of {all} tables"),
    };
    let (is, has) = if behind == 1 { ("is", "has") } else { ("are", "have") };
    Some(match least {
        Phase::Nothing => format!("{which} {has} no first copy yet: only what events bring is in the new database."),
        Phase::Copying => format!("{which} {is} being copied."),
        Phase::Left => {
            format!("{which} {is} copied but for rows that were left out: outbox-relay backfill --status says why.")
        }
        Phase::Copied => format!("{which} {is} copied and {has} not been verified yet."),
        Phase::Differing => format!("{which} differed from the legacy one when last verified."),
        Phase::Following => format!("{which} {is} copied, followed by events, and {has} been found equal."),
    })
}

fn copied(copy: Option<&Copy>) -> String {
    let Some(copy) = copy else { return "not begun".to_owned() };
    let rows = several(u64::try_from(copy.copied.rows).unwrap_or_default(), "row");
    let left = match copy.copied.left() {
        0 => String::new(),
        n => format!(", {} left out", thousands(u64::try_from(n).unwrap_or_default())),
    };
    let eta = copy.eta_seconds.map(|eta| format!(", about {} left", span(eta))).unwrap_or_default();
    format!("{}: {rows}{left}{eta}", copy.copied.state)
}

/// What a sample says is about its rows alone.
fn sampled(sample: &Verified, now: DateTime<Utc>) -> Markup {
    let rows: u64 = sample.mode.rsplit(' ').next().and_then(|rows| rows.parse().ok()).unwrap_or_default();
    html! {
        "a sample of " (several(rows, "row")) " "
        @match sample.found.outcome {
            Outcome::Equal => "was equal",
            Outcome::Differs => { "had " (differing(&sample.found)) }
            Outcome::CouldNot => "could not be compared",
        }
        ", " (ago(sample.finished_at, now))
    }
}

/// How many differences, and rows behind failed events, whichever there are.
fn differing(found: &EntityReport) -> String {
    let stuck = format!("{} behind failed events", several(found.stuck, "row"));
    match (found.differences(), found.stuck) {
        (differences, 0) => several(differences, "difference"),
        (0, _) => stuck,
        (differences, _) => format!("{}, {stuck}", several(differences, "difference")),
    }
}

fn verified(entity: &EntityState, now: DateTime<Utc>) -> Markup {
    let Some(verified) = &entity.verified else {
        return html! { @if entity.sampled.is_some() { "never in full" } @else { "never" } };
    };
    let found = &verified.found;
    html! {
        @match found.outcome {
            Outcome::Equal => "equal",
            Outcome::Differs => {
                @if !found.complete { "at least " }
                (differing(found))
                @if !found.complete { ", not read further" }
            }
            Outcome::CouldNot => "could not be compared",
        }
        ", " (ago(verified.finished_at, now))
    }
}

/// The panel; nothing where there is no migration to tell of.
pub(super) fn panel(migration: Option<&Migration>, now: DateTime<Utc>) -> Markup {
    let Some(migration) = migration else { return Markup::default() };
    let Some(sentence) = sentence(&migration.entities) else { return Markup::default() };
    html! {
        section class="card" data-live="migration" aria-labelledby="migration" {
            div class="head" { h2 id="migration" { "Migration" } }
            p { (sentence) }
            div class="scroll" tabindex="0" role="region" aria-labelledby="migration" {
                table {
                    thead { tr {
                        th scope="col" { "Table" }
                        th scope="col" { "Capture" }
                        th scope="col" { "First copy" }
                        th scope="col" { "Last verified" }
                    } }
                    tbody {
                        @for entity in &migration.entities {
                            tr {
                                th scope="row" class="text" { (entity.entity) }
                                td { (entity.capture.state) }
                                td { (copied(entity.copy.as_ref())) }
                                td {
                                    (verified(entity, now))
                                    @if let Some(sample) = &entity.sampled { br; (sampled(sample, now)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use serde_json::json;

    use super::*;
    use crate::migration::Capture;
    use crate::target::Copied;

    fn entity(copied: Option<bool>, outcome: Option<Outcome>) -> EntityState {
        let copy = copied.map(|ended| Copy {
            copied: Copied {
                entity: "users".into(),
                state: if ended { "done" } else { "running" }.into(),
                rows: 1200,
                estimate: Some(5000),
                rate: None,
                refused: 0,
                pending: 0,
                waiting: 0,
                began_at: DateTime::UNIX_EPOCH,
                touched_at: DateTime::UNIX_EPOCH,
                ended_at: ended.then_some(DateTime::UNIX_EPOCH),
                sequences: vec![],
            },
            remaining: None,
            eta_seconds: Some(90.0),
            waits_for: None,
        });
        let verified = outcome.map(|outcome| {
            let found = json!({
                "entity": "users", "outcome": outcome, "message": null, "legacy_rows": 1, "new_rows": 1, "looked_again": 0,
                "looked_under_lock": 0, "missing_in_new": 1, "missing_in_legacy": 0, "differing": 1, "refused": 0, "waiting": 0,
                "left_over": 0, "method": "ranges", "mapped_by_legacy": true, "ignored": [], "seconds": 0.1,
            });
            let found = serde_json::from_value(found).unwrap();
            Verified { report: 1, mode: "full".into(), finished_at: DateTime::UNIX_EPOCH, found }
        });
        EntityState {
            entity: "users".into(),
            aggregate_type: "User".into(),
            table: None,
            legacy_table: None,
            capture: Capture { state: "absent", message: None },
            copy,
            verified,
            sampled: None,
            repaired: None,
        }
    }

    #[test]
    fn the_phase_is_the_least_advanced_tables_and_one_sentence() {
        let nothing = || entity(None, None);
        let copying = || entity(Some(false), None);
        let copied = || entity(Some(true), None);
        let differs = || entity(Some(true), Some(Outcome::Differs));
        let equal = || entity(Some(true), Some(Outcome::Equal));
        let left = || {
            let mut left = copied();
            left.copy.as_mut().unwrap().copied.refused = 2;
            left
        };
        for (entities, expected) in [
            (vec![], None),
            (vec![nothing()], Some("The table has no first copy yet")),
            (vec![copying()], Some("The table is being copied.")),
            (vec![copied(), copying()], Some("1 of 2 tables is being copied.")),
            (vec![copied(), left()], Some("1 of 2 tables is copied but for rows that were left out")),
            (vec![copied(), copied()], Some("All 2 tables are copied and have not been verified yet.")),
            (vec![equal(), differs()], Some("1 of 2 tables differed")),
            (vec![equal()], Some("The table is copied, followed by events, and has been found equal.")),
        ] {
            let said = sentence(&entities);
            match expected {
                None => assert_eq!(said, None),
                Some(expected) => assert!(said.as_deref().is_some_and(|it| it.starts_with(expected)), "{said:?}"),
            }
        }
        assert_eq!(super::copied(copying().copy.as_ref()), "running: 1,200 rows, about 1 min 30 s left");
        assert!(verified(&differs(), Utc::now()).into_string().starts_with("2 differences, "));
    }
}
