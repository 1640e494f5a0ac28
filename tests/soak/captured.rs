//! The judge of the captured table: what stands in both databases, read by SQL of its own. Judging is pure.
//!
//! What is promised: no row of the new table goes back or comes back, none is stale, a ghost or missing, but of aggregates that are noted as
//! divergent, for the legacy database has forgotten what the new one has; and whatever was changed by hand. Of one thing
//! more the documentation says that it takes a comparison: a row that the copy has seen deleted, whose deletion the legacy database forgot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::Duration;

use sqlx::{Connection, PgConnection};

use crate::dba::Urls;
use crate::servers::Lost;
use crate::shop::Deleted;

/// Name and version.
pub type Row = (String, i32);

/// A row that the new table saw going back: id, how, and the versions before and after.
pub type WentBack = (i64, String, i32, i32);

/// What a verification found under way that nothing explained.
#[derive(Debug, Clone)]
pub struct Suspicion {
    pub id: i64,
    pub what: String,
}

/// Everything that is judged.
#[derive(Debug, Clone, Default)]
pub struct Customers {
    /// What the legacy rows yield, and what the new table has.
    pub legacy: BTreeMap<i64, Row>,
    pub new: BTreeMap<i64, Row>,
    pub went_back: Vec<WentBack>,
    pub divergent: BTreeSet<i64>,
    /// Events of theirs that were not applied, with their status; none is poison, and nobody skips any.
    pub refused: Vec<(i64, String)>,
}

pub async fn divergent(legacy: &mut PgConnection) -> sqlx::Result<BTreeSet<i64>> {
    let sql = "SELECT aggregate_id::bigint FROM outbox_relay.divergent WHERE aggregate_type = 'Customer'";
    Ok(sqlx::query_scalar(sql).fetch_all(legacy).await?.into_iter().collect())
}

impl Customers {
    pub async fn gather(urls: &Urls) -> sqlx::Result<Customers> {
        let mut legacy = PgConnection::connect(&urls.legacy).await?;
        let mut new = PgConnection::connect(&urls.new).await?;
        let table = |rows: Vec<(i64, String, i32)>| rows.into_iter().map(|(id, name, v)| (id, (name, v))).collect();
        let theirs = "SELECT id, first || ' ' || last, version FROM clients";
        let refused =
            "SELECT id, status FROM outbox WHERE aggregate_type = 'Customer' AND status <> 'processed' ORDER BY id";
        Ok(Customers {
            legacy: table(sqlx::query_as(theirs).fetch_all(&mut legacy).await?),
            new: table(sqlx::query_as("SELECT id, name, version FROM customers").fetch_all(&mut new).await?),
            went_back: sqlx::query_as("SELECT * FROM went_back").fetch_all(&mut new).await?,
            divergent: divergent(&mut legacy).await?,
            refused: sqlx::query_as(refused).fetch_all(&mut legacy).await?,
        })
    }

    pub fn differing(&self) -> BTreeSet<i64> {
        let every = self.legacy.keys().chain(self.new.keys());
        every.filter(|id| self.legacy.get(id) != self.new.get(id)).copied().collect()
    }

    /// In words.
    pub fn both(&self, id: i64) -> String {
        format!("legacy has {:?}, new has {:?}", self.legacy.get(&id), self.new.get(&id))
    }

    /// Rows that went back, and may not have.
    pub fn unexplained(&self, divergent: &BTreeSet<i64>) -> Vec<String> {
        let saw =
            |(id, how, before, after): &WentBack| format!("customer {id}: {how}, from version {before} to {after}");
        self.went_back.iter().filter(|(id, ..)| !divergent.contains(id)).map(saw).collect()
    }
}

/// Ids whose deletion the legacy database may have forgotten.
pub fn deletions_lost(deleted: &Deleted, lost: &Lost) -> BTreeSet<i64> {
    /// From when it is sent until it is committed.
    const LATE: Duration = Duration::from_secs(8);
    let lost = lost.lock().unwrap_or_else(PoisonError::into_inner);
    let deleted = deleted.lock().unwrap_or_else(PoisonError::into_inner);
    let forgotten = deleted.iter().filter(|(_, at)| lost.iter().any(|(from, to)| *at + LATE >= *from && at <= to));
    forgotten.map(|(id, _)| *id).collect()
}

/// What was found, each in words.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub went_back: Vec<String>,
    /// Stale, ghosts, missing.
    pub differing: Vec<String>,
    /// What a verification found that was not so, or did not find.
    pub misjudged: Vec<String>,
    /// Captured events that were not applied.
    pub refused: Vec<String>,
}

/// `by_hand`: ids whose rows somebody changed in the new table. `forgotten`: those whose deletion the legacy database may have forgotten.
pub fn judge(
    customers: &Customers,
    by_hand: &BTreeSet<i64>,
    forgotten: &BTreeSet<i64>,
    suspicions: &[Suspicion],
) -> Verdict {
    let Customers { divergent, new, refused, .. } = customers;
    let excused = |id: &i64| divergent.contains(id) || by_hand.contains(id);
    let is_missing_after_all = |id: &i64| forgotten.contains(id) && !new.contains_key(id);
    let differing = customers.differing().into_iter().filter(|id| !excused(id) && !is_missing_after_all(id));
    Verdict {
        went_back: customers.unexplained(divergent),
        differing: differing.map(|id| format!("customer {id}: {}", customers.both(id))).collect(),
        misjudged: suspicions.iter().filter(|of| !excused(&of.id)).map(|of| of.what.clone()).collect(),
        refused: refused.iter().map(|(id, status)| format!("event {id} is {status}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows 1 to 3, equal; 1 went back, for it is divergent.
    fn fine() -> Customers {
        let rows = || (1..=3).map(|id| (id, ("n".to_owned(), 2))).collect();
        Customers {
            legacy: rows(),
            new: rows(),
            went_back: vec![(1, "an older state".into(), 3, 2)],
            divergent: [1].into(),
            refused: Vec::new(),
        }
    }

    /// Row 3 was changed by hand, the deletion of row 2 may be forgotten.
    fn found(change: impl FnOnce(&mut Customers, &mut Vec<Suspicion>)) -> [usize; 4] {
        let (mut customers, mut suspicions) = (fine(), Vec::new());
        change(&mut customers, &mut suspicions);
        let verdict = judge(&customers, &[3].into(), &[2].into(), &suspicions);
        [&verdict.went_back, &verdict.differing, &verdict.misjudged, &verdict.refused].map(Vec::len)
    }

    #[test]
    fn the_judge_of_the_captured_table_excuses_what_is_explained_and_nothing_else() {
        assert_eq!(found(|_, _| {}), [0; 4]);
        assert_eq!(found(|c, _| c.went_back.push((2, "came back".into(), 2, 2))), [1, 0, 0, 0]);
        // Stale, a ghost, missing.
        assert_eq!(found(|c, _| c.new.get_mut(&2).unwrap().1 = 1), [0, 1, 0, 0]);
        assert_eq!(found(|c, _| drop(c.legacy.remove(&2))), [0, 1, 0, 0]);
        let only_legacy =
            |id| move |c: &mut Customers, _: &mut Vec<Suspicion>| drop(c.legacy.insert(id, ("n".into(), 1)));
        assert_eq!(found(only_legacy(4)), [0, 1, 0, 0]);
        assert_eq!(found(|c, _| c.refused.push((7, "failed".into()))), [0, 0, 0, 1]);
        let suspicion =
            |id| move |_: &mut Customers, s: &mut Vec<Suspicion>| s.push(Suspicion { id, what: "found".into() });
        assert_eq!(found(suspicion(2)), [0, 0, 1, 0]);
        // Divergent; changed by hand; its deletion forgotten.
        for id in [1, 3, 2] {
            assert_eq!(found(|c, _| drop(c.new.remove(&id))), [0; 4]);
        }
        for id in [1, 3] {
            assert_eq!(found(suspicion(id)), [0; 4]);
        }
    }

    #[test]
    fn a_deletion_is_lost_if_the_time_in_which_it_may_have_been_committed_is() {
        let start = std::time::Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let deleted = Deleted::default();
        deleted.lock().unwrap().extend([(1, at(10)), (2, at(25)), (3, at(35)), (4, at(41))]);
        let lost = Lost::default();
        lost.lock().unwrap().push((at(30), at(40)));
        assert_eq!(deletions_lost(&deleted, &lost), [2, 3].into());
    }
}
