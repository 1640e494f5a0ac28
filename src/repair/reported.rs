//! Which reports a repair stands on, and the rows that they found.

use super::{Repair, Repaired};
use crate::config::{Config, Entity};
use crate::target::{ReportId, Target, Which};
use crate::verify::{Difference, Kind, Suspect, VerifyError};
use crate::words::several;

/// Reports that were chosen once, for what is shown and for what is done: a verification may end between the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reports<'a> {
    /// The one that was asked for.
    pub(super) named: Option<ReportId>,
    /// The only entity that was asked for.
    pub(super) only: Option<&'a Entity>,
    of: Vec<Of<'a>>,
}

/// Where an entity's rows are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Of<'a> {
    entity: &'a Entity,
    /// `None`: no full verification of it has come to an answer.
    report: Option<ReportId>,
    /// Whether that verification read everything.
    whole: bool,
}

impl<'a> Reports<'a> {
    /// The named one, or of each entity the last full one with an answer.
    pub(super) async fn choose(
        config: &'a Config,
        target: &Target,
        named: Option<ReportId>,
        only: Option<&'a Entity>,
    ) -> Result<Reports<'a>, VerifyError> {
        let meant = |e: &&Entity| e.legacy.is_some() && only.is_none_or(|only| only.name == e.name);
        let entities: Vec<&Entity> = config.entities.iter().filter(meant).collect();
        let of = match named {
            Some(id) => of_report(target, id, entities, only).await?,
            None => of_last_reports(target, entities).await?,
        };
        Ok(Reports { named, only, of })
    }
}

/// Of each entity that a report is about, whether it read everything.
async fn of_report<'a>(
    target: &Target,
    id: ReportId,
    entities: Vec<&'a Entity>,
    only: Option<&Entity>,
) -> Result<Vec<Of<'a>>, VerifyError> {
    let kept = target.report(id).await.map_err(VerifyError::Target)?;
    let none = || VerifyError::NoEntity(format!("there is no report {}: outbox-relay verify --history", id.0));
    let kept = kept.ok_or_else(none)?;
    let whole = |entity: &Entity| match &kept.report {
        Some(report) => report.entities.iter().find(|of| of.entity == entity.name).map(|of| of.complete),
        // It is under way, or was killed.
        None => Some(false),
    };
    let of = |entity: &'a Entity| Some(Of { entity, report: Some(id), whole: whole(entity)? });
    let of: Vec<Of<'_>> = entities.into_iter().filter_map(of).collect();
    if of.is_empty() {
        let whose = only.map_or("an entity that has legacy rows", |entity| entity.name.as_str());
        let remedy = format!("outbox-relay verify --report {} says of which it is", id.0);
        return Err(VerifyError::NoEntity(format!("report {} is not of {whose}: {remedy}", id.0)));
    }
    Ok(of)
}

/// Of each entity the last full report with an answer. A later sample, or a report of another entity, does not stand before it.
async fn of_last_reports<'a>(target: &Target, entities: Vec<&'a Entity>) -> Result<Vec<Of<'a>>, VerifyError> {
    let names: Vec<String> = entities.iter().map(|entity| entity.name.clone()).collect();
    let last = target.verified_last(&names, Which::Answered).await.map_err(VerifyError::Target)?;
    if last.is_empty() {
        let none = "there is no report yet of a full verification: outbox-relay verify";
        return Err(VerifyError::NoEntity(none.to_owned()));
    }
    let of = |entity: &'a Entity| {
        let last = last.iter().find(|of| of.found.entity == entity.name);
        let report = last.map(|of| ReportId(of.report));
        Of { entity, report, whole: last.is_some_and(|of| of.found.complete) }
    };
    Ok(entities.into_iter().map(of).collect())
}

impl Repair<'_> {
    /// What these reports found: these rows, as they are now.
    pub(super) async fn reported(&self, reports: &Reports<'_>) -> Result<Repaired, VerifyError> {
        let mut repaired = Repaired { applied: self.apply, ..Repaired::default() };
        let (mut read, mut found) = (None, Vec::new());
        for &Of { entity, report, whole } in &reports.of {
            let name = &entity.name;
            let Some(id) = report else {
                repaired.verify_again = true;
                let note = "no full verification of it has come to an answer";
                repaired.notes.push(format!("{name}: {note}: outbox-relay verify {name}"));
                continue;
            };
            // Most of the time all are of one report.
            if read != report {
                found = self.target.report_differences(id).await.map_err(VerifyError::Target)?;
                read = report;
            }
            let of: Vec<&Difference> = found.iter().filter(|d| d.entity == *name).collect();
            let differences = several(of.len() as u64, "difference");
            repaired.notes.push(format!("{name}: of report {}: {differences}", id.0));
            if !whole {
                repaired.verify_again = true;
                let note = "the verification was cut off: verify again afterwards";
                repaired.notes.push(format!("{name}: {note}"));
            }
            self.rows(entity, of.into_iter().map(suspect).collect(), None, &mut repaired).await?;
        }
        Ok(repaired)
    }
}

/// Where to look for what a report found.
fn suspect(difference: &Difference) -> Suspect {
    Suspect {
        key: difference.whole_key().filter(|_| difference.kind != Kind::Refused),
        from: difference.legacy_key.clone(),
    }
}
