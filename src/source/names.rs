//! What the outbox's table, columns and states are called here, as SQL.

use crate::config::Legacy;
use crate::event::{Identity, Status};
use crate::sql::{ident, literal, render};

/// Renders the files of `sql/source` for one outbox.
#[derive(Debug, Clone)]
pub struct Names {
    pairs: Vec<(&'static str, String)>,
    /// `"schema"."table"`
    pub outbox: String,
    /// The relay's schema, quoted.
    pub relay: String,
    legacy: Legacy,
    lanes: u16,
}

/// No event is older, or newer, to the relay. An application may write 'infinity', or a year that is none here.
const FIRST: &str = "'0001-01-01Z'::timestamptz";
const LAST: &str = "'9999-12-31Z'::timestamptz";

fn written_at(created_at: &str) -> String {
    format!("least(greatest(coalesce({created_at}::timestamptz, now()), {FIRST}), {LAST})")
}

/// Another time, as it can be told; NULL stays.
fn shown(time: &str) -> String {
    format!("CASE WHEN {time} IS NOT NULL THEN least(greatest({time}::timestamptz, {FIRST}), {LAST}) END")
}

impl Names {
    /// For an outbox with this many lanes.
    pub fn new(legacy: &Legacy, lanes: u16) -> Names {
        let outbox = format!("{}.{}", ident(&legacy.outbox.schema), ident(&legacy.outbox.table));
        let relay = ident(&legacy.schema);
        let c = &legacy.columns;
        let s = &legacy.status;
        let (kind, id) = (ident(&c.aggregate_type), ident(&c.aggregate_id));
        let pairs = vec![
            ("outbox", outbox.clone()),
            ("outbox_oid", format!("{}::regclass::oid", literal(&outbox))),
            ("relay", relay.clone()),
            ("tokens", format!("{}::regclass", literal(&format!("{relay}.token")))),
            ("id", ident(&c.id)),
            ("event_id", ident(&c.event_id)),
            ("aggregate_type", kind.clone()),
            ("aggregate_id", id.clone()),
            ("event_type", ident(&c.event_type)),
            ("payload", ident(&c.payload)),
            ("headers", ident(&c.headers)),
            ("created_at", ident(&c.created_at)),
            ("status", ident(&c.status)),
            ("attempts", ident(&c.attempts)),
            ("next_attempt_at", ident(&c.next_attempt_at)),
            ("processed_at", ident(&c.processed_at)),
            ("last_error", ident(&c.last_error)),
            ("pending", literal(&s.pending)),
            ("retry", literal(&s.retry)),
            ("held", literal(&s.held)),
            ("processed", literal(&s.processed)),
            ("failed", literal(&s.failed)),
            ("skipped", literal(&s.skipped)),
            ("lane", lane_of(&kind, &id, lanes)),
            ("hash", hash_of(&kind, &id)),
            ("hash_of_key", hash_of("k.aggregate_type", "k.aggregate_id")),
            ("lane_of_key", lane_of("k.aggregate_type", "k.aggregate_id", lanes)),
            ("identity", Identity::SQL.to_owned()),
            ("written_at", written_at(&ident(&c.created_at))),
            ("written_at_of_o", written_at(&format!("o.{}", ident(&c.created_at)))),
            ("shown_next_attempt_at", shown(&format!("o.{}", ident(&c.next_attempt_at)))),
            ("shown_processed_at", shown(&format!("o.{}", ident(&c.processed_at)))),
            // Overwritten by `partitioned`.
            ("within", "($2::timestamptz IS NULL OR $3::timestamptz IS NULL OR true)".to_owned()),
            ("lowest", format!("({})::bigint", literal(&i64::MIN.to_string()))),
        ];
        Names { pairs, outbox, relay, legacy: legacy.clone(), lanes }
    }

    /// For an outbox that is partitioned by `created_at`: what settles events by their ids tells also when they were created, so that
    /// it looks into the partitions concerned, and not for each id into all of them.
    pub fn partitioned(mut self) -> Names {
        let created_at = ident(&self.legacy.columns.created_at);
        let within = format!(
            "{created_at} BETWEEN CASE WHEN $2::timestamptz <= {FIRST} THEN '-infinity' ELSE $2::timestamptz END \
             AND CASE WHEN $3::timestamptz >= {LAST} THEN 'infinity' ELSE $3::timestamptz END"
        );
        self.pairs.iter_mut().filter(|(name, _)| *name == "within").for_each(|(_, sql)| sql.clone_from(&within));
        self
    }

    /// The file's text for this outbox.
    pub fn render(&self, file: &str) -> String {
        render(file, &self.pairs)
    }

    /// Likewise, with names of the file's own, which come first. At once, for what an operator wrote may hold a name in braces (`'{id}'`).
    pub fn render_with(&self, file: &str, own: &[(&'static str, String)]) -> String {
        render(file, &[own, &self.pairs].concat())
    }

    /// How many lanes the expressions were made for.
    pub fn lanes(&self) -> u16 {
        self.lanes
    }

    /// The outbox's own word for a status.
    pub fn word(&self, status: Status) -> &str {
        let words = &self.legacy.status;
        match status {
            Status::Pending => &words.pending,
            Status::Retry => &words.retry,
            Status::Held => &words.held,
            Status::Processed => &words.processed,
            Status::Failed => &words.failed,
            Status::Skipped => &words.skipped,
        }
    }

    /// The status that a word of the outbox stands for; `None` for a word that nobody claims.
    pub fn status(&self, word: &str) -> Option<Status> {
        Status::ALL.into_iter().find(|status| self.word(*status) == word)
    }
}

/// 64 bits of an aggregate. An expression rather than a function of ours: the application's inserts evaluate it for the
/// indexes, and need no grant for that.
fn hash_of(aggregate_type: &str, aggregate_id: &str) -> String {
    format!("(hashtextextended(({aggregate_type})::text || ':' || ({aggregate_id})::text, 0))")
}

/// From 0 to `lanes - 1`.
fn lane_of(aggregate_type: &str, aggregate_id: &str, lanes: u16) -> String {
    format!("((({} & 9223372036854775807) % {lanes})::int)", hash_of(aggregate_type, aggregate_id))
}
