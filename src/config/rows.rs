//! `entity.legacy` and `[entity.capture]`: which rows of the legacy database an entity is made of.

use toml::de::DeValue;

use super::problem::Code;
use super::reader::Item;
use super::value::{NAME, PHRASE, TABLE, Word};
use super::{Capture, DeletePayload, LegacyRows, RowsFrom};
use crate::sql::ident;

/// Reads both. `aggregate_type` gives the captured event types their default names.
pub(super) fn read(item: &mut Item<'_, '_>, aggregate_type: Option<&str>) -> Option<LegacyRows> {
    let capture = capture(item, aggregate_type.unwrap_or_default());
    let Some(mut rows) = item.inner("legacy", "entity.legacy", "{ table = \"public.users\", key = [\"id\"] }") else {
        if item.raw("legacy").is_none() && item.raw("capture").is_some() {
            let place = item.at("capture");
            let what = "`entity.capture` is set, but not from which table";
            item.reader.report(
                Code::Missing,
                place,
                what,
                "write legacy = { table = \"public.users\", key = [\"id\"] }",
            );
        }
        return None;
    };
    let table = rows.get("table", TABLE, "\"public.users\"").map(RowsFrom::Table);
    let query = super::entities::sql_file(&mut rows, "query").map(RowsFrom::Query);
    let key = rows.each("key", NAME, "[\"id\"]");
    let aggregate_id = rows.get("aggregate_id", PHRASE, "\"tenant || '-' || id\"");
    let written = |rows: &mut Item<'_, '_>, key| rows.raw(key).is_some();
    match (written(&mut rows, "table"), written(&mut rows, "query")) {
        (false, false) => rows.missing("table", " (or a query)", "\"public.users\""),
        (true, true) => {
            let place = rows.at("query");
            let what = "`entity.legacy` has both a table and a query";
            rows.reader.report(Code::Conflict, place, what, "remove one of them");
        }
        _ => {}
    }
    let place = rows.at("key");
    match &key[..] {
        [] if !written(&mut rows, "key") => rows.missing("key", "", "[\"id\"]"),
        [] => rows.reader.report(
            Code::Value,
            place,
            "`entity.legacy.key` names no column",
            "name the columns of the legacy table's key: key = [\"id\"]",
        ),
        [_, _, ..] if !written(&mut rows, "aggregate_id") => {
            rows.missing("aggregate_id", ", which a key of several columns needs", "\"tenant || '-' || id\"");
        }
        _ => {}
    }
    let aggregate_id = aggregate_id.or_else(|| key.first().map(|column| format!("{}::text", ident(column))));
    rows.finish();
    Some(LegacyRows { from: table.or(query)?, key, aggregate_id: aggregate_id?, capture })
}

fn capture(item: &mut Item<'_, '_>, aggregate_type: &str) -> Capture {
    let mut capture = Capture::of(aggregate_type);
    let written = item.raw("capture").map(|(value, _)| matches!(value, DeValue::Table(_)));
    if written.is_none() {
        return capture;
    }
    let Some(mut names) = item.inner("capture", "entity.capture", "{ insert = \"UserCreated\" }") else {
        return capture;
    };
    for (key, name) in
        [("insert", &mut capture.insert), ("update", &mut capture.update), ("delete", &mut capture.delete)]
    {
        if let Some(written) = names.get(key, PHRASE, "\"UserCreated\"") {
            *name = written;
        }
    }
    const WHICH: Word<DeletePayload> = Word(&[("key", DeletePayload::Key), ("row", DeletePayload::Row)]);
    if let Some(which) = names.get("delete_payload", WHICH, "\"key\"") {
        capture.delete_payload = which;
    }
    names.finish();
    capture
}

impl Capture {
    /// The default names: `UserCreated`, `UserUpdated`, `UserDeleted`.
    pub fn of(aggregate_type: &str) -> Capture {
        let name = |what: &str| format!("{aggregate_type}{what}");
        Capture {
            insert: name("Created"),
            update: name("Updated"),
            delete: name("Deleted"),
            delete_payload: DeletePayload::Key,
        }
    }
}
