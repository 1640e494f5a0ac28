//! The mapping: one `SELECT … FROM event` per entity, from the old shape to the new, and the statements made of it.
//!
//! Guarantees: a [`Mapping`] that exists was prepared by the target server against its real tables, with every column's
//! conversion decided. It is evaluated for each event by itself: an aggregate or a join in it sees one event.

mod build;
pub mod compare;
mod error;
pub mod text;

use std::collections::BTreeMap;

use sqlx::postgres::{PgConnection, PgTypeInfo};
use sqlx::{Column, Executor, Row, SqlSafeStr, Statement};

use self::build::{Output, TableColumn};
pub use self::error::MappingError;
use crate::config::{Action, Entity, TableName};
use crate::sql::{ident, literal, trusted, with_operators};
use crate::target::{Events, Prepared};

/// One entity, ready to be applied.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// As configured.
    pub entity: Entity,
    /// Writes the rows that the mapping yields.
    pub upsert: Option<Prepared>,
    /// Deletes the rows whose key the mapping yields.
    pub delete: Option<Prepared>,
    /// One column, `row jsonb`: the rows that would be written, converted.
    pub preview: Option<Prepared>,
    /// One column, `row jsonb`: the keys whose rows would be deleted.
    pub preview_delete: Option<Prepared>,
    /// Own SQL, by event type.
    pub handlers: BTreeMap<String, Prepared>,
}

/// What the server knows of an entity's table.
struct Table {
    name: String,
    columns: Vec<TableColumn>,
}

/// Prepares every statement of an entity on the target. `search_path` is what [`crate::target::Target::settings_sql`]
/// says; `relay` the relay's schema, unquoted.
pub async fn compile(
    entity: &Entity,
    connection: &mut PgConnection,
    search_path: &str,
    relay: &str,
) -> Result<Mapping, MappingError> {
    connection.execute(sqlx::raw_sql(trusted(search_path))).await.map_err(|e| MappingError::database(entity, e))?;
    let mut mapping = Mapping {
        entity: entity.clone(),
        upsert: None,
        delete: None,
        preview: None,
        preview_delete: None,
        handlers: BTreeMap::new(),
    };
    let uses = |action: &Action| entity.events.values().any(|a| a == action);
    if let Some(name) = &entity.table
        && (uses(&Action::Upsert) || uses(&Action::Delete) || entity.legacy.is_some())
    {
        let table = read_table(entity, name, connection).await?;
        let statements = Tabular { entity, table: &table, relay };
        if uses(&Action::Upsert) || entity.legacy.is_some() {
            let (user, output) = statements.output(&table.columns, connection).await?;
            mapping.preview = Some(build::preview(&user, &output));
            mapping.upsert =
                Some(statements.prepared(build::upsert(&statements.context(), &user, &output), connection).await?);
        }
        if uses(&Action::Delete) {
            // Whose rows go: the key's, or, with replace_by, the owner's.
            let by = if entity.replace_by.is_empty() { &entity.key } else { &entity.replace_by };
            let required: Vec<TableColumn> = table.columns.iter().filter(|c| by.contains(&c.name)).cloned().collect();
            let (user, output) = statements.output(&required, connection).await?;
            let shown: Vec<Output> = output.iter().filter(|o| by.contains(&o.column.name)).cloned().collect();
            mapping.preview_delete = Some(build::preview(&user, &shown));
            mapping.delete =
                Some(statements.prepared(build::delete(&statements.context(), &user, &output), connection).await?);
        }
    }
    for (event_type, action) in &entity.events {
        if let Action::Sql(file) = action {
            let name = file.path.display().to_string();
            let parsed = text::parse(&file.text);
            if parsed.several {
                return Err(MappingError::several_statements(entity, &name));
            }
            let statement = build::handler(&parsed, &file.text, &name);
            prepare(entity, &statement, connection).await?;
            plan(entity, &statement, connection).await?;
            mapping.handlers.insert(event_type.clone(), statement);
        }
    }
    Ok(mapping)
}

struct Tabular<'a> {
    entity: &'a Entity,
    table: &'a Table,
    relay: &'a str,
}

impl Tabular<'_> {
    fn context(&self) -> build::Context<'_> {
        build::Context {
            table: &self.table.name,
            columns: &self.table.columns,
            relay: self.relay,
            key: &self.entity.key,
            owner: &self.entity.replace_by,
            string_payloads: self.entity.string_payloads,
        }
    }

    /// The mapping's text, and what it yields, column by column, with the conversion that each needs. `required` are the
    /// columns that a payload must have where there is no mapping.
    async fn output(
        &self,
        required: &[TableColumn],
        connection: &mut PgConnection,
    ) -> Result<(build::UserText, Vec<Output>), MappingError> {
        let entity = self.entity;
        let Some(file) = &entity.mapping else {
            let user = build::same_names(required, self.relay);
            let output = required.iter().map(|c| Output { column: c.clone(), convert: false }).collect();
            return Ok((user, output));
        };
        let name = file.path.display().to_string();
        let parsed = text::parse(&file.text);
        if parsed.several {
            return Err(MappingError::several_statements(entity, &name));
        }
        let user = build::UserText::new(&parsed, &file.text, Some(name.clone()));
        let described = prepare(entity, &build::describe(&user), connection).await?;
        let mut output = Vec::with_capacity(described.len());
        for (column, oid) in described {
            let Some(target) = self.table.columns.iter().find(|c| c.name == column) else {
                return Err(MappingError::no_such_target_column(
                    entity,
                    &name,
                    &column,
                    &self.table.name,
                    &self.table.columns,
                ));
            };
            output.push(Output { column: target.clone(), convert: TEXT_LIKE.contains(&oid) && target.oid != oid });
        }
        for key in entity.key.iter().chain(&entity.replace_by) {
            if !output.iter().any(|o| o.column.name == *key) {
                return Err(MappingError::key_not_yielded(entity, &name, key));
            }
        }
        Ok((user, output))
    }

    async fn prepared(&self, statement: Prepared, connection: &mut PgConnection) -> Result<Prepared, MappingError> {
        prepare(self.entity, &statement, connection).await?;
        plan(self.entity, &statement, connection).await?;
        Ok(statement)
    }
}

/// text, varchar, bpchar, name, unknown: what is converted as input would be.
const TEXT_LIKE: [u32; 5] = [25, 1043, 1042, 19, 705];

/// Has the server parse it; the names and types of the columns that it yields.
async fn prepare(
    entity: &Entity,
    statement: &Prepared,
    connection: &mut PgConnection,
) -> Result<Vec<(String, u32)>, MappingError> {
    let prepared = connection
        .prepare(trusted(&statement.sql).into_sql_str())
        .await
        .map_err(|error| MappingError::refused(entity, statement, error))?;
    // It has a name, which a pooler would hand to whoever comes next: first out of the connection's own list, then off the server.
    sqlx::Connection::clear_cached_statements(connection)
        .await
        .map_err(|error| MappingError::database(entity, error))?;
    let forget = connection.execute(sqlx::raw_sql(trusted("DEALLOCATE ALL"))).await;
    forget.map_err(|error| MappingError::database(entity, error))?;
    let oid = |info: &PgTypeInfo| info.oid().map_or(0, |oid| oid.0);
    Ok(prepared.columns().iter().map(|c| (c.name().to_owned(), oid(c.type_info()))).collect())
}

/// Has the server plan it, too: only that finds a key without a unique constraint, and a missing grant. Nothing is run.
async fn plan(entity: &Entity, statement: &Prepared, connection: &mut PgConnection) -> Result<(), MappingError> {
    const EXPLAIN: &str = "EXPLAIN ";
    let explained = Prepared {
        sql: format!("{EXPLAIN}{}", statement.sql),
        user_text_at: statement.user_text_at + EXPLAIN.len(),
        ..statement.clone()
    };
    let planned = explained.texts(connection, &Events::default()).await;
    planned.map(drop).map_err(|error| MappingError::refused(entity, &explained, error))
}

async fn read_table(entity: &Entity, name: &TableName, connection: &mut PgConnection) -> Result<Table, MappingError> {
    let quoted = format!("{}.{}", ident(&name.schema), ident(&name.table));
    let sql = with_operators(include_str!("../../sql/target/table_columns.sql"));
    let rows = crate::sql::query(&sql, false)
        .bind(&name.schema)
        .bind(&name.table)
        .fetch_all(&mut *connection)
        .await
        .map_err(|error| MappingError::database(entity, error))?;
    if rows.is_empty() {
        return Err(MappingError::no_table(entity, &quoted));
    }
    let mut columns = Vec::with_capacity(rows.len());
    for row in &rows {
        let read = || -> sqlx::Result<TableColumn> {
            Ok(TableColumn {
                name: row.try_get("name")?,
                oid: row.try_get::<i64, _>("type_oid")? as u32,
                type_name: row.try_get("type_name")?,
                full_type: row.try_get("full_type")?,
                always_identity: row.try_get("always_identity")?,
                operators: row.try_get("operators")?,
                folding: row.try_get("folding")?,
            })
        };
        columns.push(read().map_err(|error| MappingError::database(entity, error))?);
    }
    for key in entity.key.iter().chain(&entity.replace_by) {
        if !columns.iter().any(|c| c.name == *key) {
            return Err(MappingError::no_key_column(entity, key, &quoted, &columns));
        }
    }
    Ok(Table { name: quoted, columns })
}

/// `ARRAY['a', 'b']`
fn text_array<'a>(items: impl Iterator<Item = &'a str>) -> String {
    format!("ARRAY[{}]::pg_catalog.text[]", items.map(literal).collect::<Vec<_>>().join(", "))
}
