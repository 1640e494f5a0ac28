//! Which tables of the legacy database an entity's query reads. The server is asked, which locks every one of them to read the query; what a
//! function reads by itself is not seen.

use sqlx::Row;
use sqlx::postgres::PgPool;

use super::reading;
use crate::config::{LegacyRows, TableName};
use crate::sql::{ident, query, render};

/// The tables of a query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// The one whose columns the key is: the query's rows are its rows. `None`: the key is worked out, or comes out of a view.
    pub(super) of_key: Option<TableName>,
    /// The others.
    pub(super) besides: Vec<TableName>,
}

/// Asks; the error is the server's, of the query too.
pub(super) async fn of_query(rows: &LegacyRows, legacy: &PgPool) -> sqlx::Result<Tables> {
    let key: Vec<String> = rows.key.iter().map(|column| format!("relay_row.{}", ident(column))).collect();
    let names = [("rows", rows.relation()), ("key", key.join(", "))];
    let asked = render(include_str!("../../sql/plan/query.sql"), &names);
    let mut session = reading(legacy).await?;
    session.script(&format!("SET LOCAL search_path = {}", rows.search_path())).await?;
    let row = query(&asked, false).fetch_one(session.connection()).await?;
    let locked = query(include_str!("../../sql/plan/locked.sql"), false).fetch_all(session.connection()).await?;
    session.rollback().await;
    let origins: Vec<Option<i64>> =
        row.columns().iter().map(|column| column.relation_id().map(|oid| i64::from(oid.0))).collect();
    let origin = origins.first().copied().flatten().filter(|first| origins.iter().all(|of| *of == Some(*first)));
    let mut tables = Tables::default();
    for row in &locked {
        let table = TableName { schema: row.try_get("schema_name")?, table: row.try_get("table_name")? };
        if origin == Some(row.try_get("relation")?) {
            tables.of_key = Some(table);
        } else if !tables.besides.contains(&table) {
            tables.besides.push(table);
        }
    }
    // Its partitions are locked, too.
    tables.besides.retain(|table| tables.of_key.as_ref() != Some(table));
    Ok(tables)
}
