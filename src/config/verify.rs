//! `[entity.verify]`: what is not compared, or not exactly, and why.

use super::problem::Code;
use super::reader::Item;
use super::value::{NAME, PHRASE, Truth};
use super::{Ignored, Tolerance, VerifyRules};

const EXAMPLE: &str = "{ ignore = [{ column = \"updated_at\", reason = \"set by a trigger\" }] }";
const TOLERANCE: &str = "[{ column = \"balance\", within = \"0.01\", reason = \"rounded by the old system\" }]";

/// Reads it. `key` is what is always compared, and so is what names an owner.
pub(super) fn read(item: &mut Item<'_, '_>, key: &[String], owner: &[String]) -> Option<VerifyRules> {
    let mut inner = item.inner("verify", "entity.verify", EXAMPLE)?;
    let mut rules = VerifyRules::default();
    for (table, place) in inner.tables("ignore", EXAMPLE) {
        let mut of = inner.within("entity.verify.ignore", table, place);
        let column = of.require("column", NAME, "\"updated_at\"");
        let reason = of.require("reason", PHRASE, "\"set by a trigger\"");
        for (names, what, remedy) in [
            (key, "the key column", "a key is always compared: remove it"),
            (owner, "the column of replace_by", "whose a row is is always compared: remove it"),
        ] {
            if let Some(column) = column.as_ref().filter(|column| names.contains(column)) {
                let place = of.at("column");
                let said = format!("`entity.verify.ignore` names {what} {column}");
                of.reader.report(Code::Conflict, place, said, remedy);
                break;
            }
        }
        of.finish();
        rules.ignore.extend(column.zip(reason).map(|(column, reason)| Ignored { column, reason }));
    }
    for (table, place) in inner.tables("tolerance", TOLERANCE) {
        let mut of = inner.within("entity.verify.tolerance", table, place);
        let column = of.require("column", NAME, "\"balance\"");
        let within = of.require("within", PHRASE, "\"0.01\"");
        let reason = of.require("reason", PHRASE, "\"rounded by the old system\"");
        let micros = within.as_deref().and_then(micros);
        if within.is_some() && micros.is_none() {
            let place = of.at("within");
            let what = "`entity.verify.tolerance.within` is neither a number nor a duration";
            of.reader.report(Code::Value, place, what, "write within = \"0.01\" for a number, \"1s\" for a time");
        }
        of.finish();
        rules.tolerance.extend(column.zip(micros).zip(reason).map(|((column, micros), reason)| Tolerance {
            column,
            micros,
            reason,
        }));
    }
    rules.without_events = inner.get("without_events", Truth, "true").unwrap_or(false);
    inner.finish();
    Some(rules)
}

fn micros(text: &str) -> Option<u64> {
    if let Ok(number) = text.parse::<f64>() {
        return (0.0..1e12).contains(&number).then_some((number * 1e6).round() as u64);
    }
    humantime::parse_duration(text).ok().and_then(|duration| u64::try_from(duration.as_micros()).ok())
}
