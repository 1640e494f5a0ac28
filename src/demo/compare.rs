//! Whether both databases agree: every row of the legacy tables goes through the mapping, and is compared with every row of the
//! new ones. Only meaningful when nothing is written any more.

use std::fmt;

use anyhow::Context;
use futures_util::TryStreamExt as _;
use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};

use crate::config::{Action, Entity};
use crate::event::{Aggregate, Event};
use crate::mapping;
use crate::relay::Shared;
use crate::sql::{ident, literal, render, trusted};
use crate::target::{Events, Prepared};

/// Rows that go through the mapping at once.
const CHUNK: usize = 1000;
/// Differences that are kept to be shown.
const SHOWN: usize = 5;

/// What came of the comparison of one entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// Its name.
    pub entity: String,
    /// Rows that legacy has.
    pub rows: usize,
    /// How many rows differ.
    pub different: usize,
    /// The first few of them.
    pub examples: Vec<Difference>,
}

/// One row that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The entity's table.
    pub table: String,
    /// Its key.
    pub key: String,
    /// What the mapping makes of the legacy row, as JSON; `None`: there is no legacy row.
    pub expected: Option<String>,
    /// What the new database has, as JSON.
    pub found: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.key)?;
        match (&self.expected, &self.found) {
            (Some(expected), Some(found)) => write!(f, "\n  legacy, mapped {expected}\n  new            {found}"),
            (Some(_), None) => write!(f, " is missing in the new database"),
            (None, _) => write!(f, " is in the new database, but not in legacy"),
        }
    }
}

/// Compares all rows of an entity. `legacy` is the table that its rows come from.
pub(super) async fn compare(shared: &Shared, entity: &Entity, legacy: &str) -> anyhow::Result<Compared> {
    // Never committed: the temporary table goes with it.
    let mut transaction = shared.target.pool.begin().await?;
    let search_path = shared.target.settings_sql();
    let mapping = mapping::compile(entity, &mut transaction, &search_path, &shared.target.schema).await?;
    let (Some(preview), Some(table)) = (mapping.preview, &entity.table) else {
        anyhow::bail!("entity {} has no mapping to compare by", entity.name)
    };
    let event_type = entity.events.iter().find(|(_, action)| **action == Action::Upsert);
    let event_type = event_type.map(|(name, _)| name.clone()).unwrap_or_default();
    transaction.execute("CREATE TEMPORARY TABLE expected (row text) ON COMMIT DROP").await?;
    let keep = Prepared { sql: format!("INSERT INTO pg_temp.expected {}", preview.sql), ..preview };

    let sql = format!("SELECT id::text AS id, to_jsonb(t)::text AS payload FROM {} t", ident(legacy));
    let mut rows = sqlx::query(trusted(&sql)).fetch(&shared.source.pool);
    let mut chunk = Vec::with_capacity(CHUNK);
    let mut count = 0;
    while let Some(row) = rows.try_next().await? {
        let id: String = row.try_get("id")?;
        let aggregate = Aggregate { kind: entity.aggregate_type.clone(), id };
        chunk.push(Event::made_up(aggregate, &event_type, row.try_get("payload")?));
        count += 1;
        if chunk.len() == CHUNK {
            through_the_mapping(&keep, &mut chunk, &mut transaction).await?;
        }
    }
    through_the_mapping(&keep, &mut chunk, &mut transaction).await?;

    let qualified = format!("{}.{}", ident(&table.schema), ident(&table.table));
    let key = literal(entity.key.first().context("an entity without key")?);
    let sql = render(include_str!("../../sql/demo/compare.sql"), &[("table", qualified), ("key", key)]);
    let mut compared = Compared { entity: entity.name.clone(), rows: count, different: 0, examples: Vec::new() };
    for row in sqlx::query(trusted(&sql)).fetch_all(&mut *transaction).await? {
        compared.different += 1;
        if compared.examples.len() < SHOWN {
            compared.examples.push(Difference {
                table: table.table.clone(),
                key: row.try_get("key")?,
                expected: row.try_get("expected")?,
                found: row.try_get("found")?,
            });
        }
    }
    transaction.rollback().await?;
    Ok(compared)
}

async fn through_the_mapping(
    keep: &Prepared,
    chunk: &mut Vec<Event>,
    connection: &mut PgConnection,
) -> anyhow::Result<()> {
    let events: Events<'_> = chunk.iter().collect();
    keep.execute(connection, &events, true).await.context("a row of legacy does not go through the mapping")?;
    chunk.clear();
    Ok(())
}
