//! The statements that compare what a mapping yields with what its table holds.
//!
//! Guarantees: a value has one text on every server, whatever its settings, as long as [`CANONICAL`] is in force; the hash of a row
//! is 64 bits of these texts, one after the other (see `Comparison::row`), and a checksum is the exact sum of hashes: rows that differ
//! go unseen with a chance of one in 2^64. It is no protection against somebody who makes up rows in order to be unseen. Over legacy rows the mapping's rows get the types of the table's columns, as if they had been
//! written. Only columns that the mapping yields are compared.

use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::build::{Output, UserText};
use super::{MappingError, Tabular, build, read_table, text};
use crate::config::Entity;
use crate::sql::{beyond, ident, operator, query};
use crate::target::Prepared;

/// What `SET LOCAL` pins wherever values become text.
pub const CANONICAL: &str = "SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, MDY'; SET LOCAL IntervalStyle = 'postgres'; \
                             SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 1;";

/// How a text becomes a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// Postgres' own, where both servers have been seen to agree about it.
    Own,
    /// Half of MD5, of the text in UTF-8; the same on every server.
    Md5,
}

/// What is asked about the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Their number and the sum of their hashes, by bucket; and how many have another key than the row that they come from.
    Sums,
    /// Each one's key, the key that it comes from, and its hash.
    Keys,
}

/// One entity's comparison.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// As configured.
    pub entity: Entity,
    /// The compared columns, the key's first.
    pub columns: Vec<String>,
    /// The type of each of the new key's columns.
    pub key_types: Vec<String>,
    table: String,
    compared: Vec<Compared>,
    /// The mapping over `event`, and what it is made of there; `None`: it can only be evaluated by the target.
    over_legacy: Option<String>,
    /// Without a mapping, where the legacy columns have types that need no way through JSON: they are compared as they stand.
    by_column: bool,
    over_target: Prepared,
}

#[derive(Debug, Clone)]
struct Compared {
    name: String,
    /// Where its type's own operators are, if it has any.
    operators: Option<String>,
    /// Whether its collation takes words that differ for equal.
    folds: bool,
    /// What the mapping yields is read as text first.
    convert: bool,
    type_name: String,
    full_type: String,
    base_type: String,
    base_oid: u32,
    is_enum: bool,
    typmod: i32,
    may_be_null: bool,
}

const NUMERIC: u32 = 1700;
const BPCHAR: u32 = 1042;
const JSON: u32 = 114;
/// Types whose assignment rounds to their precision, as an explicit cast does: numeric, times, interval; and their arrays.
const ROUNDED: [u32; 12] = [1700, 1114, 1184, 1083, 1266, 1186, 1231, 1115, 1185, 1183, 1270, 1187];

impl Compared {
    /// What the mapping yields, as the column would hold it. `legacy`: types of the target's own are not there.
    fn yielded(&self, legacy: bool) -> String {
        let column = format!("m.{}", ident(&self.name));
        if self.is_enum {
            return format!("{column}::pg_catalog.text");
        }
        let of = match (ROUNDED.contains(&self.base_oid), legacy) {
            (true, _) => &self.full_type,
            (false, true) => &self.base_type,
            (false, false) => &self.type_name,
        };
        if self.convert { format!("{column}::pg_catalog.text::{of}") } else { format!("{column}::{of}") }
    }

    fn is_citext(&self) -> bool {
        self.base_type == "citext" || self.base_type.ends_with(".citext")
    }

    /// The one text of a value of the key, with which it is found. As a compared column it has its own.
    fn key(&self, value: &str) -> String {
        let text = self.canonical(value);
        if self.is_citext() { format!("pg_catalog.lower(({text}) COLLATE pg_catalog.\"default\")") } else { text }
    }

    /// Whether the table's column is this, as its type compares.
    fn equal(&self, value: &str) -> String {
        format!("t.{} {} {value}", ident(&self.name), operator(self.operators.as_deref(), "="))
    }

    /// The type that a bound of a range is read as: one that takes whatever key of the other side there is.
    fn bound_type(&self) -> &str {
        match self.base_type.as_str() {
            "smallint" | "integer" => "bigint",
            other => other,
        }
    }

    /// The one text of a value.
    fn canonical(&self, value: &str) -> String {
        match self.base_oid {
            // 1.5 and 1.50 are one number; a scale that the column has is the same on both sides.
            NUMERIC if self.typmod < 0 => format!("pg_catalog.trim_scale({value})::pg_catalog.text"),
            BPCHAR => format!("({value})::pg_catalog.bpchar::pg_catalog.text"),
            JSON => format!("({value})::pg_catalog.jsonb::pg_catalog.text"),
            _ => format!("({value})::pg_catalog.text"),
        }
    }
}

/// What NULL is hashed as: a word that no row holds.
const NULL_WORD: &str = "'NULL 5f0c6a52-8d1b-4c0a-9a55-3e0b7f1f6c1e'";

/// Types of which a value is the same whether it goes through JSON or not, by what may be read as what without a change.
const PLAIN: [&[u32]; 13] = [
    &[20, 21, 23],
    &[25, 1043],
    &[16],
    &[17],
    &[700],
    &[701],
    &[1082],
    &[1114],
    &[1184],
    &[1700],
    &[2950],
    &[3802],
    &[1186],
];

impl Hash {
    fn of(self, text: &str) -> String {
        self.after(text, "0")
    }

    /// Of a text that comes after others, whose hash is `seed`.
    fn after(self, text: &str, seed: &str) -> String {
        match self {
            Hash::Own => format!("pg_catalog.hashtextextended(({text}) COLLATE pg_catalog.\"C\", {seed})"),
            Hash::Md5 => format!(
                "('x' || pg_catalog.left(pg_catalog.md5(pg_catalog.convert_to({text}, 'UTF8')), 16))::bit(64)::bigint"
            ),
        }
    }
}

/// The target's answer to whether two servers hash alike: texts of several lengths.
pub const PROBE: &str = "SELECT pg_catalog.concat_ws(' ', pg_catalog.getdatabaseencoding(), (SELECT pg_catalog.string_agg(pg_catalog.hashtextextended(\
     (pg_catalog.repeat('é-probe ', n) || n) COLLATE pg_catalog.\"C\", n::bigint * 4294967297)::text, ',' ORDER BY n) FROM pg_catalog.generate_series(0, 12) AS n))";

/// Prepares an entity's comparison on the target. `ignored`: columns left out.
pub async fn comparison(
    entity: &Entity,
    connection: &mut PgConnection,
    relay: &str,
    ignored: &[String],
) -> Result<Option<Comparison>, MappingError> {
    let Some(name) = &entity.table else { return Ok(None) };
    let table = read_table(entity, name, connection).await?;
    let statements = Tabular { entity, table: &table, relay };
    let (user, output) = statements.output(&table.columns, connection).await?;
    let described = described(entity, connection).await?;
    let mut compared = Vec::new();
    let mut over_legacy = true;
    let keys = output.iter().filter(|o| entity.key.contains(&o.column.name));
    let others = output.iter().filter(|o| !entity.key.contains(&o.column.name) && !ignored.contains(&o.column.name));
    let in_order: Vec<&Output> =
        entity.key.iter().filter_map(|k| keys.clone().find(|o| o.column.name == *k)).chain(others).collect();
    for of in in_order {
        let Some((facts, is_builtin)) = described.iter().find(|(facts, _)| facts.name == of.column.name) else {
            continue;
        };
        over_legacy &= *is_builtin || facts.is_enum;
        compared.push(Compared {
            convert: of.convert || facts.is_enum,
            type_name: of.column.type_name.clone(),
            operators: of.column.operators.clone(),
            folds: of.column.folding.is_some(),
            ..facts.clone()
        });
    }
    let legacy_text = match &entity.mapping {
        Some(file) => UserText::new(&text::parse(&file.text), &file.text, None).within("", ""),
        None => {
            let columns: Vec<(String, String)> = compared
                .iter()
                .map(|c| (c.name.clone(), if c.is_enum { "text".to_owned() } else { c.full_type.clone() }))
                .collect();
            build::same_names_unchecked(&columns).within("", "")
        }
    };
    Ok(Some(Comparison {
        entity: entity.clone(),
        columns: compared.iter().map(|c| c.name.clone()).collect(),
        key_types: compared.iter().take(entity.key.len()).map(|c| c.base_type.clone()).collect(),
        table: table.name.clone(),
        compared,
        over_legacy: over_legacy.then_some(legacy_text.sql),
        by_column: false,
        over_target: user.within("", ""),
    }))
}

async fn described(entity: &Entity, connection: &mut PgConnection) -> Result<Vec<(Compared, bool)>, MappingError> {
    let Some(name) = &entity.table else { return Ok(Vec::new()) };
    let sql = include_str!("../../sql/target/compared_columns.sql");
    let rows = query(sql, false).bind(&name.schema).bind(&name.table).fetch_all(connection).await;
    let read = |row: &sqlx::postgres::PgRow| -> sqlx::Result<(Compared, bool)> {
        let base_oid = u32::try_from(row.try_get::<i64, _>("base_oid")?).unwrap_or(0);
        let of = Compared {
            name: row.try_get("name")?,
            operators: None,
            folds: false,
            convert: false,
            type_name: String::new(),
            full_type: row.try_get("full_type")?,
            base_type: row.try_get("base_type")?,
            base_oid,
            is_enum: row.try_get("is_enum")?,
            typmod: row.try_get("typmod")?,
            may_be_null: row.try_get("may_be_null")?,
        };
        Ok((of, row.try_get("is_builtin")?))
    };
    rows.and_then(|rows| rows.iter().map(read).collect()).map_err(|error| MappingError::database(entity, error))
}

impl Comparison {
    /// Whether the mapping may be evaluated over the legacy rows where they stand: asked of that server with
    /// [`Comparison::trial`].
    pub fn only_by_target(&mut self) {
        self.over_legacy = None;
    }

    /// What the legacy table's columns are: name and type's oid. Where they need no way through JSON, they take none.
    pub fn take_columns(&mut self, columns: &[(String, u32)]) {
        let plain = |c: &Compared| {
            let of = columns.iter().find(|(name, _)| *name == c.name).map(|(_, oid)| *oid);
            of.is_some_and(|of| PLAIN.iter().any(|alike| alike.contains(&of) && alike.contains(&c.base_oid)))
        };
        self.by_column = self.entity.mapping.is_none() && self.over_legacy.is_some() && self.compared.iter().all(plain);
    }

    /// The columns of the legacy table that are compared as they stand, `relay_row.…`; `None`: the mapping is evaluated over JSON.
    pub fn plain_columns(&self) -> Option<String> {
        let columns = self.compared.iter().map(|c| format!("relay_row.{}", ident(&c.name))).collect::<Vec<_>>();
        self.by_column.then(|| columns.join(", "))
    }

    /// A statement that the legacy server can plan only if it understands the mapping without any table or function of its own.
    pub fn trial(&self) -> Option<String> {
        let batch = "SELECT 0::bigint AS id, NULL::uuid AS event_id, ''::text AS aggregate_type, ''::text AS aggregate_id, ''::text AS event_type, \
             pg_catalog.to_jsonb(g) AS payload, NULL::jsonb AS headers, pg_catalog.now() AS created_at, ARRAY['']::text[] AS relay_key \
             FROM pg_catalog.generate_series(1, 0) AS g, (SELECT $1::bigint, $2::text[], $3::text[], $4::bigint[]) AS p";
        let statement = self.mapped_over(batch, Hash::Md5, Ask::Keys, self.over_legacy.as_ref()?, true);
        Some(format!("EXPLAIN (FORMAT JSON) {statement}"))
    }

    /// Over the legacy rows that `batch` selects: the mapping's events or, with [`Comparison::plain_columns`], those. `$1` buckets (of one:
    /// all rows), `$4` the buckets that are asked for (`NULL`: all).
    pub fn over_legacy(&self, batch: &str, hash: Hash, ask: Ask, buckets: bool) -> Option<String> {
        let inner = self.over_legacy.as_ref()?;
        if !self.by_column {
            return Some(self.mapped_over(batch, hash, ask, inner, buckets));
        }
        // A key that goes by the same names is handed through.
        let mapped = format!(
            "SELECT m.relay_key AS from_key, {0} AS row_key, {1} AS moved, {2} AS hash FROM batch AS m",
            self.key(|c| c.yielded(true)),
            if self.same_key() { "false".to_owned() } else { moved("m", &self.key(|c| c.yielded(true))) },
            self.row(hash, |c| c.yielded(true)),
        );
        Some(format!("WITH batch AS (\n{batch}\n), mapped AS ({mapped}) {}", asked(ask, hash, buckets)))
    }

    /// Whether the key is handed through under its own name, whatever stands in it.
    pub fn keeps_key(&self) -> bool {
        self.by_column && self.same_key()
    }

    fn same_key(&self) -> bool {
        let rounds = |c: &Compared| ROUNDED.contains(&c.base_oid) && c.typmod >= 0;
        let as_it_is = !self.compared.iter().take(self.entity.key.len()).any(|c| rounds(c) || c.folds);
        as_it_is && self.entity.legacy.as_ref().is_some_and(|legacy| legacy.key == self.entity.key)
    }

    fn mapped_over(&self, batch: &str, hash: Hash, ask: Ask, inner: &str, buckets: bool) -> String {
        let key = self.key(|c| c.yielded(true));
        let mapped = format!(
            "SELECT b.relay_key AS from_key, {key} AS row_key, {} AS moved, {} AS hash FROM batch b CROSS JOIN LATERAL {inner} AS m",
            moved("b", &key),
            self.row(hash, |c| c.yielded(true)),
        );
        format!("WITH batch AS (\n{batch}\n), mapped AS ({mapped}) {}", asked(ask, hash, buckets))
    }

    /// Over shipped rows (see [`SHIPPED`]); parameters otherwise as [`Comparison::over_legacy`].
    pub fn shipped(&self, hash: Hash, ask: Ask, buckets: bool) -> String {
        let key = self.key(|c| c.yielded(false));
        let mapped = format!(
            "SELECT b.relay_key AS from_key, {key} AS row_key, {} AS moved, {} AS hash FROM batch b CROSS JOIN LATERAL {} AS m",
            moved("b", &key),
            self.row(hash, |c| c.yielded(false)),
            self.over_target.sql,
        );
        let asked = asked(ask, hash, buckets).replace("$1", "$10").replace("$4", "$11");
        format!("WITH batch AS {SHIPPED}, mapped AS ({mapped}) {asked}")
    }

    /// Over the table's own rows, within a range of its key. `$2` after, `$3` until, each if given; else NULL.
    pub fn table(&self, hash: Hash, ask: Ask, after: bool, until: bool, buckets: bool) -> String {
        let key = self.key(|c| format!("t.{}", ident(&c.name)));
        let mapped = format!(
            "SELECT {key} AS from_key, {key} AS row_key, false AS moved, {} AS hash FROM {} AS t WHERE {}",
            self.row(hash, |c| format!("t.{}", ident(&c.name))),
            self.table,
            self.range(after, until),
        );
        format!("WITH mapped AS ({mapped}) {}", asked(ask, hash, buckets))
    }

    /// Where a chunk of the table ends: the key after `$1` others in the range.
    pub fn bound(&self, after: bool, until: bool) -> String {
        let order = self.entity.key.iter().map(|k| format!("t.{}", ident(k))).collect::<Vec<_>>().join(", ");
        format!(
            "SELECT {} AS key FROM {} AS t WHERE {} ORDER BY {order} OFFSET $1 LIMIT 1",
            self.key(|c| format!("t.{}", ident(&c.name))),
            self.table,
            self.range(after, until),
        )
    }

    /// What shipped rows become, with what stands in the table under the same key: `from_key`, `row_key`, `expected`, `found`.
    pub fn look(&self) -> String {
        let keys = self.compared.iter().take(self.entity.key.len());
        // An enum is compared as its word, but found as what it is.
        let of = |c: &Compared| {
            let value = c.yielded(false);
            if c.is_enum { format!("({value})::{}", c.type_name) } else { value }
        };
        let typed: String = keys.clone().enumerate().map(|(n, c)| format!(", {} AS relay_k{}", of(c), n + 1)).collect();
        let same: Vec<String> = keys.enumerate().map(|(n, c)| c.equal(&format!("m.relay_k{}", n + 1))).collect();
        format!(
            "WITH batch AS {SHIPPED}, mapped AS (SELECT b.relay_key AS from_key, {} AS row_key, {} AS expected{typed} \
             FROM batch b CROSS JOIN LATERAL {} AS m) \
             SELECT m.from_key, m.row_key, m.expected, (SELECT {} FROM {} AS t WHERE {} LIMIT 1) AS found FROM mapped m",
            self.key(|c| c.yielded(false)),
            self.texts(|c| c.canonical(&c.yielded(false))),
            self.over_target.sql,
            self.texts(|c| c.canonical(&format!("t.{}", ident(&c.name)))),
            self.table,
            same.join(" AND "),
        )
    }

    /// The rows of the table that have these keys: `row_key`, `found` (with `replace_by`, their owner's texts), `version`. `$1` and on: the
    /// keys, an array a column.
    pub fn found(&self) -> String {
        format!(
            "SELECT {} AS row_key, {} AS found, t.xmin::pg_catalog.text AS version FROM {} JOIN {} AS t ON {}",
            self.key(|c| format!("t.{}", ident(&c.name))),
            self.owner_texts(),
            self.given(),
            self.table,
            self.is_given(),
        )
    }

    /// Deletes the rows of the table that have these keys; each as it was. Parameters as [`Comparison::found`], and after them the
    /// versions that may be deleted, an array: whoever waits for another's change of the row looks again.
    pub fn delete(&self) -> String {
        format!(
            "DELETE FROM {} AS t USING {} WHERE {} AND t.xmin::pg_catalog.text = ANY (${versions}::text[]) \
             RETURNING {} AS row_key, pg_catalog.to_jsonb(t)::pg_catalog.text AS before",
            self.table,
            self.given(),
            self.is_given(),
            self.key(|c| format!("t.{}", ident(&c.name))),
            versions = self.entity.key.len() + 1,
        )
    }

    /// The whole rows of the table that have these keys, as JSON. Parameters as [`Comparison::found`].
    pub fn whole(&self) -> String {
        format!(
            "SELECT {} AS row_key, pg_catalog.to_jsonb(t)::pg_catalog.text AS row FROM {} JOIN {} AS t ON {}",
            self.key(|c| format!("t.{}", ident(&c.name))),
            self.given(),
            self.table,
            self.is_given(),
        )
    }

    /// Some keys of the table at random; `$1` how many, `$2` which percentage of its pages to read.
    pub fn sample(&self) -> String {
        format!(
            "SELECT {} AS key FROM {} AS t TABLESAMPLE SYSTEM ($2::float4) WHERE {} ORDER BY pg_catalog.random() LIMIT $1",
            self.key(|c| format!("t.{}", ident(&c.name))),
            self.table,
            self.is_whole(),
        )
    }

    /// Any keys of the table; `$1` how many.
    pub fn some(&self) -> String {
        format!(
            "SELECT {} AS key FROM {} AS t WHERE {} LIMIT $1",
            self.key(|c| format!("t.{}", ident(&c.name))),
            self.table,
            self.is_whole(),
        )
    }

    /// With `replace_by`, the rows of the table that have these owners, but for those with NULL in their key: `row_key`, `found` (their
    /// owner's texts), `version`. `$1` and on: the owners, an array a column. At most so many.
    pub fn owned(&self, at_most: usize) -> String {
        let same: Vec<String> = self.is_owners().chain(self.whole_key()).collect();
        format!(
            "SELECT {} AS row_key, {} AS found, t.xmin::pg_catalog.text AS version \
             FROM {} JOIN {} AS t ON {} LIMIT {at_most}",
            self.key(|c| format!("t.{}", ident(&c.name))),
            self.owner_texts(),
            given(self.entity.replace_by.len()),
            self.table,
            same.join(" AND "),
        )
    }

    /// A row, if these owners have one with NULL in its key; `None`: none can be. Parameters as [`Comparison::owned`].
    pub fn owned_nameless(&self) -> Option<String> {
        let same: Vec<String> = self.is_owners().collect();
        let (table, given) = (&self.table, given(same.len()));
        let nameless = self.is_nameless()?;
        Some(format!("SELECT FROM {given} JOIN {table} AS t ON {} AND ({nameless}) LIMIT 1", same.join(" AND ")))
    }

    fn is_owners(&self) -> impl Iterator<Item = String> {
        self.owner().enumerate().map(|(n, c)| c.equal(&format!("g.k{}::{}", n + 1, c.type_name)))
    }

    fn owner_texts(&self) -> String {
        let texts: Vec<String> = self.owner().map(|c| c.canonical(&format!("t.{}", ident(&c.name)))).collect();
        format!("ARRAY[{}]::pg_catalog.text[]", texts.join(", "))
    }

    /// The columns that name a row's owner.
    fn owner(&self) -> impl Iterator<Item = &Compared> {
        self.entity.replace_by.iter().filter_map(|column| self.compared.iter().find(|c| c.name == *column))
    }

    /// The table, quoted.
    pub fn table_name(&self) -> &str {
        &self.table
    }

    fn range(&self, after: bool, until: bool) -> String {
        let key: Vec<String> = self.entity.key.iter().map(|k| format!("t.{}", ident(k))).collect();
        let of_type = |c: &Compared| c.operators.clone().unwrap_or_else(|| "pg_catalog".to_owned());
        let schemas: Vec<String> = self.compared.iter().take(key.len()).map(of_type).collect();
        let bound = |given: bool, n: usize, comparison: &str| {
            if !given {
                return format!("${n}::text[] IS NULL");
            }
            let keys = self.compared.iter().take(self.entity.key.len()).enumerate();
            let values: Vec<String> =
                keys.map(|(at, c)| format!("(${n}::text[])[{}]::{}", at + 1, c.bound_type())).collect();
            beyond(&key, comparison, &values, &schemas)
        };
        // Else a row with NULL in its key would be in a range or not by what else stands there.
        [bound(after, 2, ">"), bound(until, 3, "<=")]
            .into_iter()
            .chain(self.whole_key())
            .collect::<Vec<_>>()
            .join(" AND ")
    }

    /// That no part of a row's key is NULL.
    fn whole_key(&self) -> impl Iterator<Item = String> {
        self.nullable_keys().map(|column| format!("t.{column} IS NOT NULL"))
    }

    /// The same as one condition.
    fn is_whole(&self) -> String {
        std::iter::once("true".to_owned()).chain(self.whole_key()).collect::<Vec<_>>().join(" AND ")
    }

    fn nullable_keys(&self) -> impl Iterator<Item = String> {
        let keys = self.compared.iter().take(self.entity.key.len());
        keys.filter(|c| c.may_be_null).map(|c| ident(&c.name))
    }

    /// Counts the table's rows that have NULL in their key; `None`: none can.
    pub fn without_key(&self) -> Option<String> {
        Some(format!("SELECT pg_catalog.count(*) FROM {} AS t WHERE {}", self.table, self.is_nameless()?))
    }

    /// That a part of a row's key is NULL; `None`: none can be.
    fn is_nameless(&self) -> Option<String> {
        let any: Vec<String> = self.nullable_keys().map(|column| format!("t.{column} IS NULL")).collect();
        (!any.is_empty()).then(|| any.join(" OR "))
    }

    fn given(&self) -> String {
        given(self.entity.key.len())
    }

    fn is_given(&self) -> String {
        let keys = self.compared.iter().take(self.entity.key.len()).enumerate();
        keys.map(|(n, c)| c.equal(&format!("g.k{}::{}", n + 1, c.type_name))).collect::<Vec<_>>().join(" AND ")
    }

    /// The key's texts: they can be read back as its types, and keys that are equal have the same, but for those of [`Comparison::folds_keys`].
    /// `NULL`s stay.
    fn key(&self, value: impl Fn(&Compared) -> String) -> String {
        let keys = self.compared.iter().take(self.entity.key.len());
        format!("ARRAY[{}]::pg_catalog.text[]", keys.map(|c| c.key(&value(c))).collect::<Vec<_>>().join(", "))
    }

    /// Whether keys that are written differently may be equal, by a collation or as citext is: whose row it is cannot be told from such a key.
    pub fn folds_keys(&self) -> bool {
        self.compared.iter().take(self.entity.key.len()).any(|c| c.folds || c.is_citext())
    }

    fn texts(&self, value: impl Fn(&Compared) -> String) -> String {
        format!("ARRAY[{}]::pg_catalog.text[]", self.compared.iter().map(value).collect::<Vec<_>>().join(", "))
    }

    /// The hash of a row: each column's text is hashed with the hash of those before it as its seed, so that a value counts by where it
    /// stands, and its length with it. A NULL is the word that no row holds. By MD5, which has no seed, it is the hash of one text.
    fn row(&self, hash: Hash, value: impl Fn(&Compared) -> String) -> String {
        if hash == Hash::Md5 {
            let texts: Vec<String> = self.compared.iter().map(|c| c.canonical(&value(c))).collect();
            return hash.of(&format!("ROW({})::pg_catalog.text", texts.join(", ")));
        }
        self.compared.iter().fold("0".to_owned(), |before, c| {
            let text = format!("coalesce({}, {NULL_WORD})", c.canonical(&value(c)));
            hash.after(&text, &before)
        })
    }
}

/// Parameters `$1` and on, an array a column, as the relation `g (k1, …)`.
fn given(columns: usize) -> String {
    let arrays: Vec<String> = (1..=columns).map(|n| format!("pg_catalog.unnest(${n}::text[])")).collect();
    let names: Vec<String> = (1..=columns).map(|n| format!("k{n}")).collect();
    format!("ROWS FROM ({}) AS g ({})", arrays.join(", "), names.join(", "))
}

/// Whether the mapping gives a row another key than that of the legacy row that it comes from.
fn moved(from: &str, key: &str) -> String {
    format!("{from}.relay_key IS DISTINCT FROM {key}")
}

fn asked(ask: Ask, hash: Hash, buckets: bool) -> String {
    let bucket = match buckets {
        true => format!("({} & 9223372036854775807) % $1::bigint", hash.of("row_key::pg_catalog.text")),
        false => "0::bigint".to_owned(),
    };
    // Of one bucket all rows are asked for; the parameters stand there all the same.
    let wanted = match buckets {
        true => format!("$4::bigint[] IS NULL OR {bucket} = ANY ($4::bigint[])"),
        false => "$1::bigint = 1 AND $4::bigint[] IS NULL".to_owned(),
    };
    match ask {
        Ask::Sums => format!(
            "SELECT {bucket} AS bucket, pg_catalog.count(*) AS rows, pg_catalog.sum(hash)::pg_catalog.text AS total, \
             pg_catalog.count(*) FILTER (WHERE moved) AS moved FROM mapped WHERE ({wanted}){}",
            if buckets { " GROUP BY 1" } else { "" }
        ),
        Ask::Keys => format!("SELECT row_key, from_key, hash FROM mapped WHERE ({wanted})"),
    }
}

/// Legacy rows that were shipped to the target, as the relation that the mapping is evaluated over: the parameters of
/// [`crate::target::EVENTS`], and `$9` the key that each comes from, as the text of an array.
pub const SHIPPED: &str = "MATERIALIZED (SELECT e.id, e.event_id, e.aggregate_type, e.aggregate_id, e.event_type, \
     e.payload::pg_catalog.jsonb AS payload, e.headers::pg_catalog.jsonb AS headers, e.created_at, e.relay_key::pg_catalog.text[] AS relay_key \
     FROM ROWS FROM (pg_catalog.unnest($1::bigint[]), pg_catalog.unnest($2::uuid[]), pg_catalog.unnest($3::text[]), \
     pg_catalog.unnest($4::text[]), pg_catalog.unnest($5::text[]), pg_catalog.unnest($6::text[]), \
     pg_catalog.unnest($7::text[]), pg_catalog.unnest($8::timestamptz[]), pg_catalog.unnest($9::text[])) \
     AS e (id, event_id, aggregate_type, aggregate_id, event_type, payload, headers, created_at, relay_key))";
