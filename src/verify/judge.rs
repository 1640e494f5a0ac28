//! What a second look says about the rows that looked different. Pure.
//!
//! A mapping that no longer yields a row does not make it disappear, unless `replace_by` names its owner: such a row is left over, and
//! no difference, exactly as events and the first copy leave it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::report::{ColumnDifference, Difference, Kind, Waiting};
use crate::config::{Entity, Tolerance, VerifyRules};
use crate::event::Event;
use crate::source::RowKey;
use crate::target::{Found, Looked};

/// A key that looked different.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Suspect {
    /// Of the new table.
    pub(crate) key: Option<RowKey>,
    /// Of the legacy row that it comes from, or would.
    pub(crate) from: Option<RowKey>,
}

impl Suspect {
    /// The key that it is told by: its legacy row's, or else its own.
    pub(crate) fn named(&self) -> Vec<Option<String>> {
        self.from.as_ref().or(self.key.as_ref()).map_or(Vec::new(), texts)
    }
}

/// All that was seen of some suspects at one moment.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The aggregates of the legacy rows that are there.
    pub(crate) there: HashMap<RowKey, String>,
    /// What they yield, beside what stands.
    pub(crate) looked: Vec<Looked>,
    /// The legacy rows themselves, as they were read under the lock.
    pub(crate) rows: HashMap<RowKey, Event>,
    /// Legacy rows that the target refuses, with its words.
    pub(crate) refused: HashMap<RowKey, String>,
    /// What stands under the suspects' own keys.
    pub(crate) found: HashMap<RowKey, Found>,
    /// Legacy keys whose aggregate has open events: which event, and how it stands.
    pub(crate) open: HashMap<RowKey, (Option<i64>, String)>,
    /// The aggregates of legacy keys without a row, as far as known.
    pub(crate) aggregates: HashMap<RowKey, String>,
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) differences: Vec<Difference>,
    pub(crate) waiting: Vec<Waiting>,
    /// Rows that stand although their legacy row yields them no longer.
    pub(crate) left_over: u64,
    /// The suspects that are not equal.
    pub(crate) unequal: HashSet<Suspect>,
    /// Where there was no lane to lock: the versions of the rows that are too much, as they were judged.
    pub(crate) versions: Vec<String>,
}

impl Judgement {
    /// With what came of others.
    pub(crate) fn add(&mut self, of: Judgement) {
        self.differences.extend(of.differences);
        self.waiting.extend(of.waiting);
        self.left_over += of.left_over;
        self.unequal.extend(of.unequal);
        self.versions.extend(of.versions);
    }

    /// Takes the suspects out that only wait for an event on its way: to be looked at again.
    pub(crate) fn on_their_way(&mut self, suspects: &[Suspect]) -> Vec<Suspect> {
        let (pending, stuck) =
            std::mem::take(&mut self.waiting).into_iter().partition::<Vec<_>, _>(|w| w.status == "pending");
        self.waiting = stuck;
        let pending: HashSet<Vec<Option<String>>> = pending.into_iter().map(|w| w.key).collect();
        suspects
            .iter()
            .filter(|s| s.from.as_ref().is_some_and(|from| pending.contains(&texts(from))))
            .cloned()
            .collect()
    }

    /// Takes out what stands under a key that an owner no longer has and another one has by now, or nobody: that is not to be told under the
    /// lock of the first.
    pub(crate) fn take_anothers(&mut self) -> Vec<Suspect> {
        self.take_extra(|d| d.legacy_key.is_none())
    }

    /// Takes out what is too much under a legacy row that is not there: another one may yield it.
    pub(crate) fn take_homeless(&mut self, seen: &Seen) -> Vec<Suspect> {
        self.take_extra(|d| d.legacy_key.as_ref().is_none_or(|from| !seen.there.contains_key(from)))
    }

    /// The keys of what is too much.
    pub(crate) fn extra(&self) -> Vec<RowKey> {
        self.differences.iter().filter(|d| d.kind == Kind::MissingInLegacy).filter_map(Difference::whole_key).collect()
    }

    /// Of what is too much, only these keys are.
    pub(crate) fn keep_extra(&mut self, keys: &[RowKey]) {
        let still: HashSet<&RowKey> = keys.iter().collect();
        let is_still = |d: &Difference| d.whole_key().is_some_and(|key| still.contains(&key));
        self.differences.retain(|d| d.kind != Kind::MissingInLegacy || is_still(d));
    }

    fn take_extra(&mut self, which: impl Fn(&Difference) -> bool) -> Vec<Suspect> {
        let taken = self.differences.extract_if(.., |d| d.kind == Kind::MissingInLegacy && which(d));
        taken.map(|d| Suspect { key: d.whole_key(), from: d.legacy_key }).collect()
    }
}

/// How an entity's values are compared.
#[derive(Debug, Clone)]
pub(crate) struct Rule<'a> {
    pub(crate) columns: &'a [String],
    pub(crate) rules: &'a VerifyRules,
    /// The columns of the new key.
    pub(crate) key: &'a [String],
    /// Those that name a row's owner; if there are any, rows that an owner no longer yields are to be deleted.
    pub(crate) owner: &'a [String],
}

impl<'a> Rule<'a> {
    /// As an entity has it.
    pub(crate) fn of(entity: &'a Entity, columns: &'a [String]) -> Rule<'a> {
        Rule { columns, rules: &entity.verify, key: &entity.key, owner: &entity.replace_by }
    }

    /// Whose a row is that has these values in the compared columns; `None` where that is NULL, or not compared.
    pub(crate) fn owner(&self, values: &[Option<String>]) -> Option<Vec<String>> {
        let value = |of: &String| values.get(self.columns.iter().position(|column| column == of)?)?.clone();
        self.owner.iter().map(value).collect()
    }

    /// Whether this is no row, but how a mapping names an owner that has none.
    fn names_only_the_owner(&self, key: &[Option<String>]) -> bool {
        let mut rest = self.key.iter().zip(key).filter(|(column, _)| !self.owner.contains(column)).peekable();
        !self.owner.is_empty() && rest.peek().is_some() && rest.all(|(_, part)| part.is_none())
    }

    /// Whether what stands there is, by what this legacy row yields, another owner's.
    fn is_anothers(&self, found: &Found, from: &RowKey, looked: &[Looked]) -> bool {
        let yielded = looked.iter().filter(|looked| looked.from == *from);
        let owners: Vec<_> = yielded.filter_map(|looked| self.owner(&looked.expected)).collect();
        let owner: Option<Vec<String>> = found.values.iter().cloned().collect();
        !owners.is_empty() && owner.is_some_and(|owner| !owners.contains(&owner))
    }

    /// The columns whose texts differ beyond what is tolerated.
    fn differing(&self, expected: &[Option<String>], found: &[Option<String>]) -> Vec<ColumnDifference> {
        let pairs = self.columns.iter().zip(expected.iter().zip(found));
        pairs
            .filter(|(column, (expected, found))| {
                expected != found && !self.tolerated(column, expected.as_deref(), found.as_deref())
            })
            .map(|(column, (expected, found))| ColumnDifference {
                column: column.clone(),
                legacy: expected.clone(),
                new: found.clone(),
            })
            .collect()
    }

    fn tolerated(&self, column: &str, expected: Option<&str>, found: Option<&str>) -> bool {
        let tolerance = self.rules.tolerance.iter().find(|t| t.column == column);
        tolerance
            .zip(expected.zip(found))
            .is_some_and(|(tolerance, (expected, found))| within(tolerance, expected, found))
    }
}

/// Whether two texts lie as near to each other as is tolerated: numbers by their difference, times by seconds.
fn within(tolerance: &Tolerance, expected: &str, found: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok().or_else(|| seconds(text));
    match (number(expected), number(found)) {
        (Some(a), Some(b)) => (a - b).abs() <= tolerance.within() * (1.0 + 1e-9),
        _ => false,
    }
}

/// A timestamp as Postgres writes it under the pinned settings.
fn seconds(text: &str) -> Option<f64> {
    let full = text.strip_suffix("+00").unwrap_or(text);
    let time = chrono::NaiveDateTime::parse_from_str(full, "%Y-%m-%d %H:%M:%S%.f").ok()?;
    Some(time.and_utc().timestamp_micros() as f64 / 1e6)
}

/// What these suspects are, by what was seen.
pub(crate) fn judge(suspects: &[Suspect], seen: &Seen, rule: &Rule<'_>) -> Judgement {
    let mut judgement = Judgement::default();
    let mut yielded: HashSet<Vec<Option<String>>> = HashSet::new();
    // By legacy row first: what it yields says which of the table's rows are right.
    let mut by_row: BTreeMap<&RowKey, Vec<&Suspect>> = BTreeMap::new();
    for suspect in suspects {
        if let Some(from) = &suspect.from {
            by_row.entry(from).or_default().push(suspect);
        }
    }
    for looked in &seen.looked {
        yielded.insert(looked.key.clone());
    }
    for (from, of) in &by_row {
        let aggregate_id = seen.there.get(*from).or_else(|| seen.aggregates.get(*from)).cloned();
        let mut differences = Vec::new();
        if let Some(message) = seen.refused.get(*from) {
            differences.push(Difference {
                message: Some(message.clone()),
                ..Difference::new(Kind::Refused, texts(from), Some((*from).clone()), aggregate_id.clone())
            });
        }
        for looked in seen.looked.iter().filter(|l| l.from == **from && !rule.names_only_the_owner(&l.key)) {
            differences.extend(row(looked, rule, aggregate_id.clone()));
        }
        let mut left_over = 0;
        if !seen.refused.contains_key(*from) {
            for key in of.iter().filter_map(|suspect| suspect.key.as_ref()).filter(|key| !yielded.contains(&texts(key)))
            {
                let Some(found) = seen.found.get(key) else { continue };
                let is_there = seen.there.contains_key(*from);
                if is_there && rule.owner.is_empty() {
                    left_over += 1;
                } else if is_there && rule.is_anothers(found, from, &seen.looked) {
                    differences.push(extra(key, None, None));
                } else {
                    differences.push(extra(key, Some((*from).clone()), aggregate_id.clone()));
                }
            }
        }
        if differences.is_empty() {
            judgement.left_over += left_over;
            continue;
        }
        judgement.unequal.extend(of.iter().map(|suspect| (*suspect).clone()));
        match seen.open.get(*from) {
            Some((event, status)) => judgement.waiting.push(Waiting {
                entity: String::new(),
                key: texts(from),
                aggregate_id,
                event: *event,
                status: status.clone(),
            }),
            None => judgement.differences.extend(differences),
        }
    }
    for suspect in suspects.iter().filter(|s| s.from.is_none()) {
        let Some(key) = &suspect.key else { continue };
        if seen.found.contains_key(key) && !yielded.contains(&texts(key)) {
            judgement.unequal.insert(suspect.clone());
            judgement.differences.push(extra(key, None, None));
        }
    }
    judgement
}

fn texts(key: &RowKey) -> Vec<Option<String>> {
    key.0.iter().cloned().map(Some).collect()
}

fn row(looked: &Looked, rule: &Rule<'_>, aggregate_id: Option<String>) -> Option<Difference> {
    let of = |kind| Difference::new(kind, looked.key.clone(), Some(looked.from.clone()), aggregate_id);
    match &looked.found {
        None => Some(of(Kind::MissingInNew)),
        Some(found) => {
            let columns = rule.differing(&looked.expected, found);
            (!columns.is_empty()).then(|| Difference { columns, ..of(Kind::Differs) })
        }
    }
}

fn extra(key: &RowKey, from: Option<RowKey>, aggregate_id: Option<String>) -> Difference {
    Difference::new(Kind::MissingInLegacy, texts(key), from, aggregate_id)
}

/// A key, where it comes from if it comes from any, and its row's hash.
pub(crate) type Hashed = (RowKey, Option<RowKey>, i64);

/// The keys whose hashes are not the same on both sides, or that are on one only, or twice.
pub(crate) fn differing(legacy: Vec<Hashed>, new: Vec<Hashed>, identical: bool) -> Vec<Suspect> {
    let mut on_new: HashMap<RowKey, i64> = new.into_iter().map(|(key, _, hash)| (key, hash)).collect();
    let mut suspects = Vec::new();
    for (key, from, hash) in legacy {
        if on_new.remove(&key) != Some(hash) {
            suspects.push(Suspect { key: Some(key), from });
        }
    }
    let alone = on_new.into_keys().map(|key| Suspect { from: identical.then(|| key.clone()), key: Some(key) });
    suspects.extend(alone);
    suspects.sort();
    suspects
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> RowKey {
        RowKey(vec![text.to_owned()])
    }

    fn suspect(text: &str) -> Suspect {
        Suspect { key: Some(key(text)), from: Some(key(text)) }
    }

    fn looked(text: &str, expected: &str, found: Option<&str>) -> Looked {
        let row = |value: &str| vec![Some(text.to_owned()), Some(value.to_owned())];
        Looked { from: key(text), key: vec![Some(text.to_owned())], expected: row(expected), found: found.map(row) }
    }

    fn found(text: &str) -> (RowKey, Found) {
        (key(text), Found { values: vec![Some(text.to_owned())], version: "1".into() })
    }

    fn judged(suspects: &[&str], seen: Seen, rules: &VerifyRules, replaces: bool) -> (Vec<(Kind, String)>, usize, u64) {
        let columns = ["id".to_owned(), "name".to_owned()];
        let suspects: Vec<Suspect> = suspects.iter().map(|s| suspect(s)).collect();
        let owner = if replaces { &columns[..1] } else { &[] };
        let judgement = judge(&suspects, &seen, &Rule { columns: &columns, rules, key: &columns[..1], owner });
        let differences = judgement.differences.iter().map(|d| (d.kind, d.key[0].clone().unwrap())).collect();
        (differences, judgement.waiting.len(), judgement.left_over)
    }

    fn there(keys: &[&str]) -> HashMap<RowKey, String> {
        keys.iter().map(|k| (key(k), (*k).to_owned())).collect()
    }

    #[test]
    fn every_kind_of_difference_is_told_and_nothing_else() {
        let rules = VerifyRules::default();
        let one = |looked: Option<Looked>, there_: &[&str], found_: &[&str]| Seen {
            looked: looked.into_iter().collect(),
            there: there(there_),
            found: found_.iter().map(|f| found(f)).collect(),
            ..Seen::default()
        };
        for (seen, expected) in [
            (one(Some(looked("1", "a", Some("a"))), &["1"], &["1"]), None),
            (one(Some(looked("1", "a", Some("b"))), &["1"], &["1"]), Some(Kind::Differs)),
            (one(Some(looked("1", "a", None)), &["1"], &[]), Some(Kind::MissingInNew)),
            (one(None, &[], &["1"]), Some(Kind::MissingInLegacy)),
            (one(None, &[], &[]), None),
            // The row is there, and yields nothing.
            (one(None, &["1"], &[]), None),
        ] {
            let (differences, waiting, left_over) = judged(&["1"], seen, &rules, false);
            assert_eq!(differences.first().map(|d| d.0), expected);
            assert_eq!((waiting, left_over), (0, 0));
        }
    }

    #[test]
    fn what_is_no_longer_yielded_stays_unless_its_owner_is_named() {
        let seen = || Seen { there: there(&["1"]), found: [found("1")].into(), ..Seen::default() };
        let rules = VerifyRules::default();
        assert_eq!(judged(&["1"], seen(), &rules, false), (vec![], 0, 1));
        assert_eq!(judged(&["1"], seen(), &rules, true).0, [(Kind::MissingInLegacy, "1".into())]);
    }

    #[test]
    fn a_key_that_is_another_owners_by_now_is_not_too_much() {
        let columns = ["line".to_owned(), "owner".to_owned()];
        let values = |line: &str, owner: &str| vec![Some(line.to_owned()), Some(owner.to_owned())];
        let rules = VerifyRules::default();
        let rule = Rule { columns: &columns, rules: &rules, key: &columns[..1], owner: &columns[1..] };
        // Owner a's legacy row yielded line 7, and yields line 8 by now.
        let suspects = [Suspect { key: Some(key("7")), from: Some(key("a")) }];
        let seen = |now_of: &str| Seen {
            there: there(&["a"]),
            looked: vec![Looked {
                from: key("a"),
                key: vec![Some("8".to_owned())],
                expected: values("8", "a"),
                found: Some(values("8", "a")),
            }],
            found: [(key("7"), Found { values: vec![Some(now_of.to_owned())], version: "1".into() })].into(),
            ..Seen::default()
        };
        let mut of_b = judge(&suspects, &seen("b"), &rule);
        assert_eq!(of_b.take_anothers(), [Suspect { key: Some(key("7")), from: None }]);
        assert_eq!((of_b.differences, of_b.unequal.len()), (vec![], 1));
        let mut of_a = judge(&suspects, &seen("a"), &rule);
        assert_eq!(of_a.take_anothers(), []);
        assert_eq!(of_a.differences.iter().map(|d| d.kind).collect::<Vec<_>>(), [Kind::MissingInLegacy]);
        // Whose it is cannot be told: the column is not compared.
        let rule = Rule { columns: &columns[..1], ..rule };
        let mut of_b = judge(&suspects, &seen("b"), &rule);
        assert_eq!((of_b.take_anothers(), of_b.differences.len()), (vec![], 1));
    }

    #[test]
    fn an_owner_without_rows_lacks_none() {
        let columns = ["owner".to_owned(), "line".to_owned()];
        let rules = VerifyRules::default();
        let rule = Rule { columns: &columns, rules: &rules, key: &columns, owner: &columns[..1] };
        let yields = |line: Option<&str>| {
            let row = vec![Some("a".to_owned()), line.map(str::to_owned)];
            let looked = vec![Looked { from: key("a"), key: row.clone(), expected: row, found: None }];
            Seen { there: there(&["a"]), looked, ..Seen::default() }
        };
        let suspects = [Suspect { key: None, from: Some(key("a")) }];
        assert_eq!(judge(&suspects, &yields(None), &rule), Judgement::default());
        assert_eq!(judge(&suspects, &yields(Some("1")), &rule).differences.len(), 1);
    }

    #[test]
    fn an_open_event_makes_a_difference_wait() {
        let mut seen = Seen { there: there(&["1"]), looked: vec![looked("1", "a", Some("b"))], ..Seen::default() };
        seen.open.insert(key("1"), (Some(7), "failed".into()));
        assert_eq!(judged(&["1"], seen, &VerifyRules::default(), false), (vec![], 1, 0));
        let mut gone = Seen { found: [found("1")].into(), ..Seen::default() };
        gone.open.insert(key("1"), (None, "pending".into()));
        assert_eq!(judged(&["1"], gone, &VerifyRules::default(), false), (vec![], 1, 0));
    }

    #[test]
    fn a_tolerance_takes_numbers_and_times_and_never_a_missing_value() {
        let t = |within: f64| Tolerance { column: "x".into(), micros: (within * 1e6) as u64, reason: String::new() };
        for (tolerance, a, b, expected) in [
            (0.01, "1.50", "1.51", true),
            (0.01, "1.50", "1.52", false),
            (1.0, "2026-01-01 00:00:00.5+00", "2026-01-01 00:00:01+00", true),
            (0.1, "2026-01-01 00:00:00.5+00", "2026-01-01 00:00:01+00", false),
            (9.0, "a", "b", false),
        ] {
            assert_eq!(within(&t(tolerance), a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn hashes_are_compared_by_key_on_both_sides() {
        let h = |text: &str, hash| (key(text), Some(key(text)), hash);
        let suspects = differing(
            vec![h("1", 1), h("2", 2), h("3", 3), h("3", 3)],
            vec![h("1", 1), h("2", 9), h("3", 3), h("4", 4)],
            true,
        );
        let keys: Vec<String> = suspects.into_iter().map(|s| s.key.unwrap().0[0].clone()).collect();
        assert_eq!(keys, ["2", "3", "4"], "a key that is yielded twice is looked at");
    }
}
