//! What stands on the two databases already.

use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};

use crate::config::Config;
use crate::event::Status;
use crate::session::Session;
use crate::source::Names;
use crate::sql::{ident, query, query_scalar};

/// What stands on the source.
#[derive(Debug, Default)]
pub(super) struct SourceCatalog {
    /// The outbox, if there is one.
    pub(super) outbox: Option<Outbox>,
    pub(super) objects: Vec<String>,
    pub(super) has_installation: bool,
    pub(super) version: Option<i32>,
    /// Lanes and outbox of the installation.
    pub(super) made_for: Option<(i32, String)>,
    pub(super) knows_a_target: bool,
    pub(super) lanes: i64,
    pub(super) encoding: String,
}

/// What stands on the target.
#[derive(Debug, Default)]
pub(super) struct TargetCatalog {
    pub(super) objects: Vec<String>,
    pub(super) has_installation: bool,
    pub(super) version: Option<i32>,
    pub(super) encoding: String,
}

impl SourceCatalog {
    pub(super) fn missing_objects(&self, schema: &str) -> Vec<String> {
        missing(schema, &self.objects)
    }
}

impl TargetCatalog {
    pub(super) fn missing_objects(&self, schema: &str) -> Vec<String> {
        missing(schema, &self.objects)
    }
}

/// An outbox as it stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Outbox {
    pub(super) kind: String,
    pub(super) columns: Columns,
    /// Rows; where something is installed, only whether there are any.
    pub(super) rows: i64,
    pub(super) primary_key: Vec<String>,
    pub(super) unique_ids: bool,
    pub(super) partitions: Vec<Partition>,
    pub(super) valid_indexes: Vec<String>,
    pub(super) invalid_indexes: Vec<String>,
    pub(super) checks: Vec<String>,
    pub(super) unvalidated: Vec<String>,
    /// CHECK constraints on the status column, with the configured words that each refuses.
    pub(super) refusing: Vec<Refusing>,
    /// Words of an enum status column.
    pub(super) enum_words: Vec<String>,
}

/// A partition of an outbox; see partitions.sql.
#[derive(Debug, Clone, Default)]
pub(super) struct Partition {
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) kind: String,
    /// The outbox's indexes that it has.
    pub(super) attached: Vec<String>,
    pub(super) valid_indexes: Vec<String>,
    pub(super) invalid_indexes: Vec<String>,
}

/// A CHECK constraint on the status column.
#[derive(Debug, Clone)]
pub(super) struct Refusing {
    pub(super) name: String,
    pub(super) expression: String,
    pub(super) words: Vec<String>,
}

/// The columns of an outbox.
#[derive(Debug, Clone, Default)]
pub(crate) struct Columns(pub(crate) Vec<Column>);

impl Columns {
    /// By its name.
    pub(crate) fn get(&self, name: &str) -> Option<&Column> {
        self.0.iter().find(|column| column.name == name)
    }
}

/// A column of an outbox; see outbox_columns.sql.
#[derive(Debug, Clone, Default)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) full_type: String,
    /// Below any domain.
    pub(crate) base: String,
    pub(crate) is_enum: bool,
    pub(crate) not_null: bool,
    pub(crate) is_identity: bool,
    pub(crate) has_default: bool,
    pub(crate) output_immutable: bool,
    pub(crate) length: Option<i32>,
    pub(crate) comment: Option<String>,
}

/// An index of the relay's on the outbox.
#[derive(Debug, Clone)]
pub struct Index {
    /// In the outbox's schema.
    pub name: String,
    /// What its name ends with, on the outbox and on its partitions.
    pub(super) suffix: &'static str,
    /// `ON … WHERE …`, to be rendered.
    pub definition: &'static str,
    /// What it is for.
    pub why: &'static str,
}

/// The relay's indexes on the outbox.
pub fn relay_indexes(config: &Config) -> Vec<Index> {
    let index = |suffix: &'static str, definition, why| Index {
        name: index_name(&config.legacy.outbox.table, suffix),
        suffix,
        definition,
        why,
    };
    vec![
        index("pending", "ON {outbox} ({lane}, {id}) WHERE {status} = {pending}", "what is to be claimed, in order"),
        index(
            "due",
            "ON {outbox} ({lane}, {next_attempt_at}) WHERE {status} = {retry}",
            "retries, by when they are due",
        ),
        index(
            "blocked",
            "ON {outbox} ({lane}, {hash}, {id}) WHERE {status} IN ({retry}, {held}, {failed})",
            "what an aggregate waits behind (a hash: an aggregate_id may be long)",
        ),
        index(
            "unprocessed",
            "ON {outbox} ({status}, {id}) WHERE {status} IN ({retry}, {held}, {failed}, {skipped})",
            "lists for operators",
        ),
    ]
}

/// Postgres cuts a name after 63 bytes, and four names that are cut to the same would be one index.
pub(super) fn index_name(table: &str, suffix: &str) -> String {
    let mut end = table.len().min(40);
    while !table.is_char_boundary(end) {
        end -= 1;
    }
    let hash = if end < table.len() {
        let sum = table.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
        format!("_{:04x}", sum & 0xffff)
    } else {
        String::new()
    };
    format!("{}{hash}_relay_{suffix}", &table[..end])
}

/// Kind and name of everything that a schema file makes in the relay's schema.
pub(super) fn objects_of(schema: &str) -> Vec<(&'static str, String)> {
    let kinds = [
        ("TABLE", "CREATE TABLE IF NOT EXISTS {relay}."),
        ("SEQUENCE", "CREATE SEQUENCE IF NOT EXISTS {relay}."),
        ("FUNCTION", "CREATE OR REPLACE FUNCTION {relay}."),
    ];
    let of_line = |line: &str| {
        kinds.iter().find_map(|(kind, start)| {
            let name = line.strip_prefix(start)?.split([' ', '(', ';']).next()?;
            Some((*kind, name.to_owned()))
        })
    };
    schema.lines().filter_map(of_line).collect()
}

/// Of an older version's tables, the columns that came later: `table.column`.
fn columns_of(schema: &str) -> Vec<String> {
    let of_line = |line: &str| {
        let (table, column) = line.strip_prefix("ALTER TABLE {relay}.")?.split_once(" ADD COLUMN IF NOT EXISTS ")?;
        Some(format!("{table}.{}", column.split(' ').next()?))
    };
    schema.lines().filter_map(of_line).collect()
}

fn missing(schema: &str, there: &[String]) -> Vec<String> {
    let objects = objects_of(schema).into_iter().map(|(_, name)| name);
    objects.chain(columns_of(schema)).filter(|name| !there.contains(name)).collect()
}

pub(super) const READ: &str = "SET TRANSACTION READ ONLY;";

async fn objects(session: &mut Session, schema: &str) -> sqlx::Result<Vec<String>> {
    let sql = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1 AND c.relkind IN ('r', 'S') \
               UNION ALL SELECT p.proname::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = $1 \
               UNION ALL SELECT c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
               JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped";
    query_scalar(sql, false).bind(schema).fetch_all(session.connection()).await
}

pub(super) async fn source(config: &Config, names: &Names, pool: &PgPool) -> sqlx::Result<SourceCatalog> {
    crate::connect::reach(pool).await?;
    let (mut session, _) = Session::begin(pool, READ).await?;
    let mut catalog =
        SourceCatalog { objects: objects(&mut session, &config.legacy.schema).await?, ..Default::default() };
    let has = |catalog: &SourceCatalog, name: &str| catalog.objects.iter().any(|object| object == name);
    if has(&catalog, "installation") {
        let sql =
            names.render("SELECT version, lanes, outbox, target_id IS NOT NULL AS known FROM {relay}.installation");
        if let Some(row) = query(&sql, false).fetch_optional(session.connection()).await? {
            catalog.has_installation = true;
            catalog.version = Some(row.try_get("version")?);
            catalog.made_for = Some((row.try_get("lanes")?, row.try_get("outbox")?));
            catalog.knows_a_target = row.try_get("known")?;
        }
    }
    if has(&catalog, "lane") {
        let sql = names.render("SELECT count(*) FROM {relay}.lane");
        catalog.lanes = query_scalar(&sql, false).fetch_one(session.connection()).await?;
    }
    catalog.outbox = outbox(config, names, &mut session, !catalog.has_installation).await?;
    catalog.encoding = query_scalar(ENCODING, false).fetch_one(session.connection()).await?;
    session.rollback().await;
    Ok(catalog)
}

pub(super) async fn target(config: &Config, pool: &PgPool) -> sqlx::Result<TargetCatalog> {
    crate::connect::reach(pool).await?;
    let (mut session, _) = Session::begin(pool, READ).await?;
    let mut catalog = TargetCatalog { objects: objects(&mut session, &config.new.schema).await?, ..Default::default() };
    if catalog.objects.iter().any(|object| object == "installation") {
        let sql = format!("SELECT version FROM {}.installation", ident(&config.new.schema));
        catalog.version = query_scalar(&sql, false).fetch_optional(session.connection()).await?;
        catalog.has_installation = catalog.version.is_some();
    }
    catalog.encoding = query_scalar(ENCODING, false).fetch_one(session.connection()).await?;
    session.rollback().await;
    Ok(catalog)
}

const ENCODING: &str = "SELECT pg_catalog.current_setting('server_encoding')";

/// The outbox's columns; none where it is not there.
pub(crate) async fn columns(names: &Names, session: &mut Session) -> sqlx::Result<Columns> {
    let sql = include_str!("../../sql/source/outbox_columns.sql");
    let rows = query(sql, false).bind(&names.outbox).fetch_all(session.connection()).await?;
    rows.iter().map(column).collect::<sqlx::Result<_>>().map(Columns)
}

fn column(row: &PgRow) -> sqlx::Result<Column> {
    Ok(Column {
        name: row.try_get("name")?,
        full_type: row.try_get("full_type")?,
        base: row.try_get("base")?,
        is_enum: row.try_get("is_enum")?,
        not_null: row.try_get("not_null")?,
        is_identity: row.try_get("is_identity")?,
        has_default: row.try_get("has_default")?,
        output_immutable: row.try_get("output_immutable")?,
        length: row.try_get("length")?,
        comment: row.try_get("comment")?,
    })
}

async fn outbox(config: &Config, names: &Names, session: &mut Session, count: bool) -> sqlx::Result<Option<Outbox>> {
    let c = &config.legacy.columns;
    let facts = include_str!("../../sql/source/outbox_facts.sql");
    let facts = query(facts, false).bind(&names.outbox).bind(&c.id).bind(&c.status);
    let Some(row) = facts.fetch_optional(session.connection()).await? else { return Ok(None) };
    let mut outbox = Outbox {
        kind: row.try_get("kind")?,
        primary_key: row.try_get("primary_key")?,
        unique_ids: row.try_get("unique_ids")?,
        valid_indexes: row.try_get("valid_indexes")?,
        invalid_indexes: row.try_get("invalid_indexes")?,
        checks: row.try_get("checks")?,
        unvalidated: row.try_get("unvalidated")?,
        columns: columns(names, session).await?,
        ..Outbox::default()
    };
    let sql = include_str!("../../sql/source/partitions.sql");
    let partitions = query(sql, false).bind(&names.outbox).fetch_all(session.connection()).await?;
    outbox.partitions = partitions.iter().map(partition).collect::<sqlx::Result<_>>()?;
    let some = if count { "" } else { "LIMIT 1" };
    let sql = names.render(&format!("SELECT count(*) FROM (SELECT FROM {{outbox}} {some}) AS r"));
    outbox.rows = query_scalar(&sql, false).fetch_one(session.connection()).await?;
    if let Some(status) = outbox.columns.get(&c.status).cloned() {
        if status.is_enum {
            let sql =
                "SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = $1::regtype ORDER BY e.enumsortorder";
            outbox.enum_words = query_scalar(sql, false).bind(&status.base).fetch_all(session.connection()).await?;
        } else {
            outbox.refusing = refusing(names, &status, session).await?;
        }
    }
    Ok(Some(outbox))
}

fn partition(row: &PgRow) -> sqlx::Result<Partition> {
    Ok(Partition {
        schema: row.try_get("schema")?,
        name: row.try_get("name")?,
        kind: row.try_get("kind")?,
        attached: row.try_get("attached")?,
        valid_indexes: row.try_get("valid_indexes")?,
        invalid_indexes: row.try_get("invalid_indexes")?,
    })
}

/// Tries the configured words on the status column's CHECK constraints.
async fn refusing(names: &Names, status: &Column, session: &mut Session) -> sqlx::Result<Vec<Refusing>> {
    let sql = include_str!("../../sql/source/status_checks.sql");
    let checks: Vec<(String, String)> = sqlx::query_as(sql)
        .persistent(false)
        .bind(&names.outbox)
        .bind(&status.name)
        .fetch_all(session.connection())
        .await?;
    let words = Status::ALL.map(|status| names.word(status).to_owned());
    let mut refusing = Vec::new();
    for (name, expression) in checks {
        let sql = format!(
            "SELECT s.relay_word FROM (SELECT w::{} AS {}, w AS relay_word FROM unnest($1::text[]) AS w) AS s WHERE ({expression}) IS FALSE",
            status.base,
            ident(&status.name)
        );
        let words: Vec<String> = query_scalar(&sql, false).bind(&words[..]).fetch_all(session.connection()).await?;
        if !words.is_empty() {
            refusing.push(Refusing { name, expression, words });
        }
    }
    Ok(refusing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relays_objects_are_known_from_its_schema_files() {
        let source = objects_of(super::super::SOURCE_SCHEMA);
        assert!(source.contains(&("TABLE", "batch_log".into())) && source.contains(&("SEQUENCE", "token".into())));
        assert!(objects_of(super::super::TARGET_SCHEMA).contains(&("FUNCTION", "refuse".into())));
        assert!(columns_of(super::super::TARGET_SCHEMA).contains(&"backfill.sequences".to_owned()));
    }

    #[test]
    fn a_long_table_name_gives_four_index_names() {
        let name = index_name(&"é".repeat(31), "unprocessed");
        assert!(name.len() <= 63, "{name}");
        assert_ne!(index_name(&"a".repeat(63), "due"), index_name(&format!("{}b", "a".repeat(62)), "due"));
        assert_eq!(index_name("outbox", "due"), "outbox_relay_due");
    }
}
