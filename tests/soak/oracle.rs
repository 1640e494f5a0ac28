//! The judge: reads both databases when all is calm, and says what was lost, doubled, disordered or differs. Judging is pure.
//!
//! The truth is `written`, which the monolith's own transactions wrote: what is in there was committed on the history that the legacy
//! database has now. `applied` is what took effect, in the order in which it did.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use sqlx::postgres::PgRow;
use sqlx::{Connection, FromRow, PgConnection, Row};
use uuid::Uuid;

use crate::captured;
use crate::dba::Urls;

/// An event that the legacy database has committed; what the outbox says of it, if it is still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub event_id: Uuid,
    pub id: i64,
    pub kind: String,
    pub aggregate: String,
    pub poison: bool,
    pub status: Option<String>,
    pub last_error: Option<String>,
    pub attempts: i64,
}

/// An effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub event_id: Uuid,
    pub kind: String,
    pub aggregate: String,
    pub event_type: String,
    pub version: i32,
}

/// An effect of an event that the legacy database forgot, as the relay noted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergent {
    pub event_id: Uuid,
    pub kind: String,
    pub aggregate: String,
}

/// Each field from the column of its name. sqlx's own derive would have all of sqlx compiled a second time, for the compiler.
macro_rules! from_row {
    ($($name:ident { $($field:ident),* })*) => {$(
        impl FromRow<'_, PgRow> for $name {
            fn from_row(row: &PgRow) -> sqlx::Result<$name> {
                Ok($name { $($field: row.try_get(stringify!($field))?),* })
            }
        }
    )*};
}
from_row! {
    Written { event_id, id, kind, aggregate, poison, status, last_error, attempts }
    Applied { event_id, kind, aggregate, event_type, version }
    Divergent { event_id, kind, aggregate }
}

/// A row of the mapped table, or what it should be.
pub type User = (i32, String);

/// Everything that is judged.
#[derive(Debug, Default)]
pub struct Evidence {
    /// By id.
    pub written: Vec<Written>,
    /// In the order of their taking effect.
    pub applied: Vec<Applied>,
    pub divergent: Vec<Divergent>,
    /// What the legacy database has, and what the new one has: by id.
    pub legacy: HashMap<String, User>,
    pub new: HashMap<String, User>,
}

/// Events that attempts were counted for: refused by themselves, as [`Written::attempts`]. But for a missing grant: in the moment in which
/// it comes back nobody can tell it from a row's own policy.
const WRITTEN: &str = "
    SELECT w.event_id, w.id, w.kind, w.aggregate, w.poison, o.status, o.last_error,
           (SELECT count(*) FROM outbox_relay.attempt a WHERE a.id = o.id AND a.disposition IN ('event', 'waiting') AND a.code <> '42501') AS attempts
    FROM written w LEFT JOIN outbox o ON o.event_id = w.event_id ORDER BY w.id";

impl Evidence {
    pub async fn gather(urls: &Urls) -> sqlx::Result<Evidence> {
        let mut legacy = PgConnection::connect(&urls.legacy).await?;
        let mut new = PgConnection::connect(&urls.new).await?;
        let divergent = "SELECT event_id, aggregate_type AS kind, aggregate_id AS aggregate FROM outbox_relay.divergent WHERE aggregate_type <> 'Customer'";
        let applied = "SELECT event_id, kind, aggregate, event_type, version FROM applied ORDER BY n";
        let theirs = "SELECT id::text, version, name FROM things WHERE kind = 'User' AND present";
        let table = |rows: Vec<(String, i32, String)>| rows.into_iter().map(|(id, v, name)| (id, (v, name))).collect();
        Ok(Evidence {
            written: sqlx::query_as(WRITTEN).fetch_all(&mut legacy).await?,
            applied: sqlx::query_as(applied).fetch_all(&mut new).await?,
            divergent: sqlx::query_as(divergent).fetch_all(&mut legacy).await?,
            legacy: table(sqlx::query_as(theirs).fetch_all(&mut legacy).await?),
            new: table(sqlx::query_as("SELECT id::text, version, name FROM users").fetch_all(&mut new).await?),
        })
    }
}

/// Events that a failover let be overtaken are failed, and say so among the failures, too.
pub async fn overtaken_are_named(urls: &Urls) -> anyhow::Result<()> {
    let mut legacy = PgConnection::connect(&urls.legacy).await?;
    let sql = "SELECT id FROM outbox o WHERE status = 'failed' AND last_error LIKE 'overtaken%'
               AND NOT EXISTS (SELECT FROM outbox_relay.failure f WHERE f.id = o.id AND f.code = 'overtaken')";
    let unnamed: Vec<i64> = sqlx::query_scalar(sql).fetch_all(&mut legacy).await?;
    anyhow::ensure!(unnamed.is_empty(), "overtaken events that failures do not name: {unnamed:?}");
    Ok(())
}

/// What was found. Each finding in words; the counts beside them are no findings.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub written: usize,
    pub applied: usize,
    pub skipped: usize,
    pub overtaken: usize,
    pub divergent: usize,
    /// Of those, what the new database forgot as well.
    pub forgotten_by_both: usize,
    pub lost: Vec<String>,
    pub doubled: Vec<String>,
    pub disordered: Vec<String>,
    /// Rows of the mapped table that are not as legacy has them, where nothing explains it.
    pub differing: Vec<String>,
    /// Rows of the mapped table that are not what the last event that took effect made them.
    pub torn: Vec<String>,
    /// Effects without an event that nobody noted, or noted without need; events that took effect although they were skipped.
    pub unaccounted: Vec<String>,
    /// Events that were refused or failed without being to blame.
    pub blamed: Vec<String>,
    /// Of the captured table.
    pub captured: captured::Verdict,
    /// Aggregates that need one more event: order is not promised for them, or their newest event was passed over.
    pub to_resync: BTreeSet<(String, String)>,
}

fn is_overtaken(event: &Written) -> bool {
    event.last_error.as_deref().is_some_and(|error| error.starts_with("overtaken"))
}

/// `sent`: every event that the monolith ever tried to write.
pub fn judge(evidence: &Evidence, sent: &HashSet<Uuid>) -> Verdict {
    let Evidence { written, applied, divergent, legacy, new } = evidence;
    let mut verdict =
        Verdict { written: written.len(), applied: applied.len(), divergent: divergent.len(), ..Verdict::default() };
    let ids: HashMap<Uuid, &Written> = written.iter().map(|event| (event.event_id, event)).collect();
    let noted: HashSet<Uuid> = divergent.iter().map(|event| event.event_id).collect();

    let mut took_effect = HashSet::new();
    let mut last: HashMap<(&str, &str), (i64, &Applied)> = HashMap::new();
    for effect in applied {
        let Applied { event_id, kind, aggregate, .. } = effect;
        if !took_effect.insert(*event_id) {
            verdict.doubled.push(format!("{event_id} of {kind} {aggregate} took effect twice"));
        }
        let id = match ids.get(event_id) {
            Some(event) => event.id,
            None if noted.contains(event_id) => i64::MIN,
            None => {
                verdict.unaccounted.push(format!("{event_id} of {kind} {aggregate}: not in the outbox, and not noted"));
                i64::MIN
            }
        };
        let before = last.get(&(kind.as_str(), aggregate.as_str())).map_or(i64::MIN, |(before, _)| *before);
        last.insert((kind, aggregate), (before.max(id), effect));
        if before > id && id > i64::MIN {
            verdict.disordered.push(format!("{kind} {aggregate}: {before}, then {id}"));
        }
    }
    for event in divergent {
        let Divergent { event_id, kind, aggregate } = event;
        if ids.contains_key(event_id) || !sent.contains(event_id) {
            verdict.unaccounted.push(format!("{event_id} of {kind} {aggregate}: noted as divergent, and is not"));
        }
        verdict.forgotten_by_both += usize::from(!took_effect.contains(event_id));
    }

    let mut newest: HashMap<(&str, &str), bool> = HashMap::new();
    for event in written {
        let Written { event_id, id, kind, aggregate, poison, status, last_error, attempts } = event;
        let say = |what: &str| format!("{id} ({event_id}) of {kind} {aggregate}: {what}; {status:?}, {last_error:?}");
        let has = took_effect.contains(event_id);
        // What is not there any more was deleted by retention, which takes processed events only.
        let is_processed = status.as_deref().is_none_or(|status| status == "processed");
        newest.insert((kind, aggregate), is_processed);
        if is_processed && !has {
            verdict.lost.push(say("did not take effect"));
        }
        if !is_processed {
            match status.as_deref() {
                Some("skipped" | "failed") if has => verdict.unaccounted.push(say("took effect")),
                Some("skipped" | "failed") => {}
                _ => verdict.lost.push(say("still waits")),
            }
            verdict.skipped += 1;
            verdict.overtaken += usize::from(is_overtaken(event));
        }
        let is_failed = status.as_deref() == Some("failed") && !is_overtaken(event);
        if !poison && (*attempts > 0 || is_failed) {
            verdict.blamed.push(say("is not to blame"));
        }
    }

    verdict.to_resync = divergent.iter().map(|event| (event.kind.clone(), event.aggregate.clone())).collect();
    let passed_over = newest.into_iter().filter(|(_, is_processed)| !is_processed);
    verdict.to_resync.extend(passed_over.map(|((kind, aggregate), _)| (kind.to_owned(), aggregate.to_owned())));
    let every: BTreeSet<&String> = legacy.keys().chain(new.keys()).collect();
    for id in every {
        if legacy.get(id) != new.get(id) && !verdict.to_resync.contains(&("User".to_owned(), id.clone())) {
            verdict.differing.push(format!("user {id}: legacy has {:?}, new has {:?}", legacy.get(id), new.get(id)));
        }
    }
    for ((kind, aggregate), (_, effect)) in last {
        let row = new.get(aggregate).map(|(version, _)| *version);
        let made = (effect.event_type != "Deleted").then_some(effect.version);
        if kind == "User" && row != made {
            verdict.torn.push(format!("user {aggregate}: version {row:?}, its last event made it {made:?}"));
        }
    }
    verdict
}

impl Verdict {
    fn findings(&self) -> [(&'static str, &Vec<String>); 11] {
        [
            ("lost", &self.lost),
            ("doubled", &self.doubled),
            ("disordered", &self.disordered),
            ("differing rows", &self.differing),
            ("torn rows", &self.torn),
            ("unaccounted for", &self.unaccounted),
            ("blamed for nothing", &self.blamed),
            ("captured rows that went back, or came back", &self.captured.went_back),
            ("captured rows that are stale, ghosts or missing", &self.captured.differing),
            ("false alarms, and what a verification did not see", &self.captured.misjudged),
            ("captured events that were not applied", &self.captured.refused),
        ]
    }

    pub fn is_clean(&self) -> bool {
        self.findings().iter().all(|(_, found)| found.is_empty())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { written, applied, skipped, overtaken, divergent, forgotten_by_both, .. } = self;
        writeln!(f, "{written:>8}  events that legacy has committed, and not forgotten")?;
        writeln!(f, "{applied:>8}  effects in the new database")?;
        writeln!(f, "{skipped:>8}  events passed over by operators, {overtaken} of them overtaken after a failover")?;
        writeln!(
            f,
            "{divergent:>8}  divergent: effects that legacy forgot ({forgotten_by_both} forgotten by the new database too)"
        )?;
        for (what, found) in self.findings() {
            writeln!(f, "{:>8}  {what}", found.len())?;
            for finding in found.iter().take(10) {
                writeln!(f, "          {finding}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(n: u128, aggregate: &str) -> Written {
        Written {
            event_id: Uuid::from_u128(n),
            id: n as i64,
            kind: "User".into(),
            aggregate: aggregate.into(),
            poison: false,
            status: Some("processed".into()),
            last_error: None,
            attempts: 0,
        }
    }

    fn applied(n: u128, aggregate: &str) -> Applied {
        let event_type = "Updated".into();
        Applied {
            event_id: Uuid::from_u128(n),
            kind: "User".into(),
            aggregate: aggregate.into(),
            event_type,
            version: n as i32,
        }
    }

    /// Events 1 and 2 of a, 3 of b, all in effect.
    fn fine() -> Evidence {
        let rows = || HashMap::from([("a".to_owned(), (2, "n".to_owned())), ("b".to_owned(), (3, "n".to_owned()))]);
        Evidence {
            written: vec![written(1, "a"), written(2, "a"), written(3, "b")],
            applied: vec![applied(1, "a"), applied(3, "b"), applied(2, "a")],
            divergent: Vec::new(),
            legacy: rows(),
            new: rows(),
        }
    }

    fn found(change: impl FnOnce(&mut Evidence)) -> Vec<&'static str> {
        let mut evidence = fine();
        change(&mut evidence);
        let sent = (1..10).map(Uuid::from_u128).collect();
        let verdict = judge(&evidence, &sent);
        verdict.findings().into_iter().filter(|(_, found)| !found.is_empty()).map(|(what, _)| what).collect()
    }

    #[test]
    fn the_judge_sees_every_kind_of_wrong() {
        let noted = |n| Divergent { event_id: Uuid::from_u128(n), kind: "User".into(), aggregate: "a".into() };
        assert_eq!(found(|_| {}), [""; 0]);
        assert_eq!(found(|e| e.applied.truncate(2)), ["lost", "torn rows"]);
        assert_eq!(found(|e| e.written[2].status = Some("held".into())), ["lost", "unaccounted for"][..1]);
        assert_eq!(found(|e| e.applied.push(applied(2, "a"))), ["doubled"]);
        assert_eq!(found(|e| e.applied.swap(0, 2)), ["disordered", "torn rows"]);
        assert_eq!(found(|e| e.new.get_mut("b").unwrap().1 = "other".into()), ["differing rows"]);
        assert_eq!(found(|e| e.new.get_mut("b").unwrap().0 = 1), ["differing rows", "torn rows"]);
        assert_eq!(found(|e| drop(e.new.remove("b"))), ["differing rows", "torn rows"]);
        // An effect whose event legacy forgot: only if it was noted.
        assert_eq!(found(|e| drop(e.written.remove(0))), ["unaccounted for"]);
        let forgotten = |e: &mut Evidence| {
            e.written.remove(0);
            e.divergent.push(noted(1));
        };
        assert_eq!(found(forgotten), [""; 0]);
        assert_eq!(found(|e| e.divergent.push(noted(2))), ["unaccounted for"]);
        assert_eq!(found(|e| e.divergent.push(noted(77))), ["unaccounted for"]);
        assert_eq!(found(|e| e.written[0].status = Some("skipped".into())), ["unaccounted for"]);
        assert_eq!(found(|e| e.written[0].attempts = 1), ["blamed for nothing"]);
        // An event that was passed over explains a row; what retention took is as good as processed.
        let skipped = |e: &mut Evidence| {
            e.written[2].status = Some("skipped".into());
            e.applied.remove(1);
            e.new.remove("b");
        };
        assert_eq!(found(skipped), [""; 0]);
        assert_eq!(found(|e| e.written[0].status = None), [""; 0]);
    }
}
