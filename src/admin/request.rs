//! What a request says, taken apart strictly: a word that nobody knows is an error, for it may have been meant to narrow a call.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;
use crate::event::{EventId, Status};
use crate::migration::{Apply, Rows, Work};
use crate::operator::{Bulk, Filter};
use crate::repair::{Since, Wanted};
use crate::source::RowKey;
use crate::target::ReportId;

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind =
            request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let detail = "a JSON body is needed, with Content-Type: application/json";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", detail));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { "too_large" } else { "malformed" };
            Problem::new(rejection.status(), code, rejection.body_text())
        })?;
        json(&bytes).map(Body)
    }
}

/// Refuses what no text of Postgres can hold: a NUL is none of the database's errors, but the caller's.
fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let malformed = |error: serde_json::Error| Problem::malformed(format!("the body: {error}"));
    // An array would be taken for an object's values in their order.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::malformed("the body: a JSON object is needed, not an array"));
    }
    // Only an escape can put one there: JSON has no bare control characters.
    if body.windows(6).any(|escape| escape == b"\\u0000")
        && holds_nul(&serde_json::from_slice(body).map_err(malformed)?)
    {
        return Err(Problem::malformed(NUL));
    }
    serde_json::from_slice(body).map_err(malformed)
}

const NUL: &str = "a text holds \\u0000, which no text in Postgres can";

fn holds_nul(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains('\0'),
        serde_json::Value::Array(items) => items.iter().any(holds_nul),
        serde_json::Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || holds_nul(value)),
        _ => false,
    }
}

/// Why one event is skipped.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Skip {
    /// Kept in the audit table.
    #[schema(required, value_type = String, pattern = r"\S")]
    pub(super) reason: Option<String>,
}

/// Why and how one event is replayed.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Replay {
    /// Kept in the audit table.
    #[schema(required, value_type = String, pattern = r"\S")]
    pub(super) reason: Option<String>,
    /// Also an event that was processed, or that a newer one of its aggregate has overtaken.
    pub(super) force: bool,
}

/// What is to be done with many events, and with which.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Many {
    /// Which: all that is named must hold. Without a status: events in retry and failed.
    #[schema(value_type = Option<Filter>)]
    filter: Option<serde_json::Map<String, serde_json::Value>>,
    /// How many the caller believes they are: nothing is done if they are not as many.
    expected: Option<u64>,
    /// An empty filter is meant.
    all: bool,
    /// Only count.
    dry_run: bool,
    /// Replay also where a newer event of the aggregate was applied.
    force: bool,
    /// Kept in the audit table. Needed unless this is a dry run.
    pub(super) reason: Option<String>,
}

impl Many {
    pub(super) fn bulk(&self) -> Result<Bulk, Problem> {
        let filter = serde_json::Value::Object(self.filter.clone().unwrap_or_default());
        let filter: Filter = serde_json::from_value(filter)
            .map_err(|error| Problem::unprocessable("filter.unknown", format!("the filter: {error}")))?;
        let Many { expected, all, dry_run, force, .. } = *self;
        Ok(Bulk { filter, expected, all, dry_run, force })
    }
}

/// What is to be paused or resumed.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = Flow)]
pub(super) struct Kind {
    /// One aggregate type; without it, everything.
    #[schema(min_length = 1)]
    pub(super) aggregate_type: Option<String>,
    /// Everything, said aloud; not together with an aggregate type.
    pub(super) all: bool,
    /// Kept in the audit table.
    #[schema(required, value_type = String, pattern = r"\S")]
    pub(super) reason: Option<String>,
}

/// Why something is done.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Because {
    /// Kept in the audit table.
    #[schema(required, value_type = String, pattern = r"\S")]
    pub(super) reason: Option<String>,
}

/// How an entity is copied.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StartCopy {
    /// Kept in the audit table.
    #[schema(required, value_type = String, pattern = r"\S")]
    pub(super) reason: Option<String>,
    /// Forget what was copied, and begin with the first row; rows are overwritten, none is deleted.
    restart: bool,
    /// At most so many rows a second; 0: as fast as it goes. Without it, as `backfill.rows_per_second` says.
    #[schema(minimum = 0, maximum = 10_000_000)]
    rows_per_second: Option<u32>,
}

impl StartCopy {
    pub(super) fn work(&self, entity: String) -> Result<Work, Problem> {
        copy_of(vec![entity], self.restart, self.rows_per_second)
    }
}

/// Which entities are copied, and how.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StartCopies {
    /// Kept in the audit table.
    #[schema(required, value_type = String, pattern = r"\S")]
    pub(super) reason: Option<String>,
    /// Which; without any, all that say of which legacy rows they are made.
    entities: Vec<String>,
    /// Forget what was copied of them, and begin with the first row; rows are overwritten, none is deleted.
    restart: bool,
    /// At most so many rows a second; 0: as fast as it goes. Without it, as `backfill.rows_per_second` says.
    #[schema(minimum = 0, maximum = 10_000_000)]
    rows_per_second: Option<u32>,
}

impl StartCopies {
    pub(super) fn work(&self) -> Result<Work, Problem> {
        copy_of(self.entities.clone(), self.restart, self.rows_per_second)
    }
}

fn copy_of(entities: Vec<String>, restart: bool, rate: Option<u32>) -> Result<Work, Problem> {
    within("rows_per_second", rate, 0..=10_000_000)?;
    Ok(Work::Backfill { entities, restart, rate })
}

/// What is compared, and how.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StartVerify {
    /// Kept with the job.
    pub(super) reason: Option<String>,
    /// Which entities; without any, all that say of which legacy rows they are made.
    entities: Vec<String>,
    /// Only so many rows of each side, chosen at random.
    #[schema(minimum = 1, maximum = 1_000_000)]
    sample: Option<u32>,
    /// At most so many rows a second on each side. Without it, as `verify.rate` says.
    #[schema(minimum = 100, maximum = 10_000_000)]
    rate: Option<u32>,
    /// The tables' writes emit no events: look twice, a second apart, instead of under a lock.
    without_events: bool,
}

impl StartVerify {
    pub(super) fn work(&self) -> Result<Work, Problem> {
        within("sample", self.sample, 1..=1_000_000)?;
        within("rate", self.rate, 100..=10_000_000)?;
        let StartVerify { sample, rate, without_events, .. } = *self;
        Ok(Work::Verify { entities: self.entities.clone(), sample, rate, without_events })
    }
}

fn within(word: &str, said: Option<u32>, range: RangeInclusive<u32>) -> Result<(), Problem> {
    match said {
        Some(number) if !range.contains(&number) => {
            Err(Problem::malformed(format!("{word}: a number from {} to {}", range.start(), range.end())))
        }
        _ => Ok(()),
    }
}

/// What a verification found is made right.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RepairRows {
    /// Kept in the audit table, and with every changed row. Needed unless this is a dry run.
    pub(super) reason: Option<String>,
    /// Only rows of this entity.
    entity: Option<String>,
    /// What this report found; without it, of each entity the last full one that was finished.
    #[schema(minimum = 1)]
    report: Option<i64>,
    /// True, if not said: only tell what would be done.
    dry_run: Option<bool>,
    /// How many rows the caller believes would be changed: nothing is done if they are not as many.
    #[schema(minimum = 0)]
    expected: Option<i64>,
}

impl RepairRows {
    /// Whether anything is to be changed.
    pub(super) fn applies(&self) -> bool {
        self.dry_run == Some(false)
    }

    pub(super) fn work(&self) -> Result<Work, Problem> {
        let rows = Rows::Reported { report: self.report.map(ReportId), entity: self.entity.clone() };
        Ok(Work::Rows { rows, how: Apply { apply: self.applies(), expected: count(self.expected)? } })
    }
}

/// Rows of an entity that are written anew: by their keys, by the time of their events, or because they are divergent.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ResyncRows {
    /// Kept in the audit table, and with every changed row. Needed unless this is a dry run.
    pub(super) reason: Option<String>,
    /// Whose rows.
    #[schema(required, value_type = String)]
    entity: Option<String>,
    /// These legacy keys: the parts of each, as text.
    keys: Vec<Vec<String>>,
    /// The rows of all aggregates that had an event from this time on.
    since: Option<DateTime<Utc>>,
    /// … up to this one.
    until: Option<DateTime<Utc>>,
    /// The rows of all divergent aggregates.
    divergent: bool,
    /// True, if not said: only tell what would be done.
    dry_run: Option<bool>,
    /// How many rows the caller believes would be changed: nothing is done if they are not as many.
    #[schema(minimum = 0)]
    expected: Option<i64>,
}

impl ResyncRows {
    /// Whether anything is to be changed.
    pub(super) fn applies(&self) -> bool {
        self.dry_run == Some(false)
    }

    pub(super) fn work(&self) -> Result<Work, Problem> {
        let entity = self.entity.clone().ok_or_else(|| Problem::unprocessable("resync.rows", "entity: whose rows?"))?;
        let wanted = match (self.keys.is_empty(), self.since, self.until, self.divergent) {
            (false, None, None, false) => Wanted::Keys(self.keys.iter().cloned().map(RowKey).collect()),
            (true, Some(since), until, false) => Wanted::Since(Since { since, until }),
            (true, None, None, true) => Wanted::Divergent,
            _ => {
                let detail = "which rows? either keys, or since (with until), or \"divergent\": true";
                return Err(Problem::unprocessable("resync.rows", detail));
            }
        };
        let rows = Rows::Resync { entity, wanted };
        Ok(Work::Rows { rows, how: Apply { apply: self.applies(), expected: count(self.expected)? } })
    }
}

fn count(expected: Option<i64>) -> Result<Option<u64>, Problem> {
    let counted = expected.map(u64::try_from).transpose();
    counted.map_err(|_| Problem::malformed("expected: a number of rows, from 0 on"))
}

/// Which part of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "documents what `page` takes apart by hand, to refuse unknown words and repeated ones")]
pub(super) struct Paging {
    /// At most so many items; 100 if not said.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Where to go on: an answer's `next_cursor`.
    #[param(pattern = "^-?[0-9]{1,18}$")]
    cursor: Option<String>,
}

/// A list's query.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) filter: Filter,
    pub(super) limit: u32,
    pub(super) cursor: Option<i64>,
}

const LIMIT: u32 = 100;
const LIMIT_MAX: u32 = 1000;

/// The words of a query, each said once.
pub(super) fn words(pairs: Vec<(String, String)>) -> Result<BTreeMap<String, String>, Problem> {
    let mut words: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in pairs {
        if value.contains('\0') {
            return Err(Problem::malformed(format!("{key}: {NUL}")));
        }
        if let Some(twice) = words.insert(key.clone(), value) {
            return Err(Problem::malformed(format!("{key} is given twice, once as {twice:?}")));
        }
    }
    Ok(words)
}

/// Takes a list's query apart.
pub(super) fn page(pairs: Vec<(String, String)>, with_filter: bool) -> Result<Page, Problem> {
    let words = words(pairs)?;
    let mut page = Page { limit: LIMIT, ..Page::default() };
    for (key, value) in words {
        let filter = &mut page.filter;
        match key.as_str() {
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                page.limit =
                    limit.ok_or_else(|| Problem::malformed(format!("limit: a number from 1 to {LIMIT_MAX}")))?;
            }
            "cursor" => {
                let cursor =
                    value.parse().map_err(|_| Problem::malformed("cursor: as an answer's next_cursor gave it"))?;
                page.cursor = Some(cursor);
            }
            "status" if with_filter => filter.status = Some(status(&value)?),
            "aggregate_type" if with_filter => filter.aggregate_type = Some(value),
            "aggregate_id" if with_filter => filter.aggregate_id = Some(value),
            "event_type" if with_filter => filter.event_type = Some(value),
            "cause" if with_filter => filter.cause = Some(value),
            "ids" if with_filter => filter.ids = Some(ids(&value)?),
            "created_after" if with_filter => filter.created_after = Some(time(&key, &value)?),
            "created_before" if with_filter => filter.created_before = Some(time(&key, &value)?),
            _ => return Err(Problem::unprocessable("filter.unknown", format!("there is no filter {key:?} here"))),
        }
    }
    Ok(page)
}

fn status(word: &str) -> Result<Status, Problem> {
    let known = Status::ALL.map(Status::as_str).join(", ");
    word.parse().map_err(|()| Problem::unprocessable("filter.unknown", format!("there is no status {word:?}: {known}")))
}

fn ids(list: &str) -> Result<Vec<EventId>, Problem> {
    let said = list.split(',').filter(|_| !list.is_empty());
    let ids = said.map(|id| id.trim().parse().map(EventId)).collect::<Result<_, _>>();
    ids.map_err(|_| Problem::malformed("ids: numbers with commas between them"))
}

fn time(key: &str, value: &str) -> Result<DateTime<Utc>, Problem> {
    value.parse().map_err(|_| Problem::malformed(format!("{key}: a time such as 2026-01-31T12:00:00Z")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(query: &[(&str, &str)]) -> Result<Page, Problem> {
        page(query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(), true)
    }

    #[test]
    fn a_query_is_understood_whole_or_refused() {
        let page = of(&[("status", "failed"), ("limit", "7"), ("cursor", "41")]).unwrap_or_default();
        assert_eq!((page.filter.status, page.limit, page.cursor), (Some(Status::Failed), 7, Some(41)));
        for wrong in [
            ("limit", "0"),
            ("limit", "1001"),
            ("limit", "x"),
            ("cursor", "x"),
            ("status", "FAILED"),
            ("stauts", "failed"),
        ] {
            assert!(of(&[wrong]).is_err(), "{wrong:?}");
        }
        assert!(of(&[("limit", "1"), ("limit", "2")]).is_err());
    }

    /// Text of any kind that Postgres takes.
    fn text() -> impl Strategy<Value = Option<String>> {
        proptest::option::of("[^\0]{0,20}")
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let status = proptest::option::of(proptest::sample::select(&Status::ALL[..]));
        let ids = proptest::option::of(proptest::collection::vec(any::<i64>().prop_map(EventId), 0..5));
        let time = || {
            proptest::option::of(
                (0i64..4_000_000_000).prop_map(|at| DateTime::from_timestamp(at, 0).unwrap_or_default()),
            )
        };
        (status, text(), text(), text(), text(), ids, time(), time()).prop_map(
            |(status, aggregate_type, aggregate_id, event_type, cause, ids, created_after, created_before)| Filter {
                status,
                aggregate_type,
                aggregate_id,
                event_type,
                cause,
                ids,
                created_after,
                created_before,
            },
        )
    }

    /// As a client would write it.
    fn query(filter: &Filter) -> Vec<(String, String)> {
        let said = serde_json::to_value(filter).unwrap_or_default();
        let pairs = said.as_object().into_iter().flatten().map(|(key, value)| {
            let value = match value {
                serde_json::Value::Array(ids) => ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
                other => other.as_str().unwrap_or_default().to_owned(),
            };
            (key.clone(), value)
        });
        pairs.collect()
    }

    proptest! {
        #[test]
        fn a_filter_means_the_same_in_a_query_and_in_a_body(
            filter in filter(), limit in 1..=LIMIT_MAX, cursor in any::<i64>(), all in any::<bool>()
        ) {
            let mut pairs = query(&filter);
            pairs.extend([("limit".to_owned(), limit.to_string()), ("cursor".to_owned(), cursor.to_string())]);
            prop_assert_eq!(page(pairs, true).unwrap(), Page { filter: filter.clone(), limit, cursor: Some(cursor) });
            let body = serde_json::json!({"filter": filter, "all": all, "reason": "x"}).to_string();
            let bulk = json::<Many>(body.as_bytes()).unwrap().bulk().unwrap();
            prop_assert_eq!(bulk, Bulk { filter, all, ..Bulk::default() });
        }

        #[test]
        fn no_query_is_half_understood(pairs in proptest::collection::vec(("(limit|cursor|status|ids|created_after|aggregate_id|[a-z]{1,8})", ".{0,12}"), 0..5)) {
            if let Ok(understood) = page(pairs.clone(), true) {
                // Every pair has left its mark.
                let said = query(&understood.filter).len();
                let paging = pairs.iter().filter(|(key, _)| key == "limit" || key == "cursor").count();
                prop_assert_eq!(said + paging, pairs.len());
            }
        }

        #[test]
        fn no_body_makes_it_panic_and_no_nul_gets_through(
            body in "([{}\\[\\],:\"0-9a-z]|\"filter\":|\"reason\":|\"aggregate_id\":|\\\\u0000|null|true){0,25}", bytes in any::<Vec<u8>>()
        ) {
            let _ = json::<Many>(&bytes);
            let _ = json::<Kind>(body.as_bytes());
            if let Ok(many) = json::<Many>(body.as_bytes()) {
                let said = format!("{many:?}");
                prop_assert!(!said.contains("\\0"));
                let _ = many.bulk();
            }
        }
    }
}
