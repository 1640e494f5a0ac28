//! The grants that each role needs, and no more.

use super::catalog::{Columns, objects_of};
use super::{InitError, SOURCE_SCHEMA, TARGET_SCHEMA};
use crate::config::{Action, Config, Entity, RowsFrom, TableName};
use crate::source::Names;
use crate::sql::{ident, literal, query_scalar};

/// Who gets grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles {
    /// The application's role on the legacy database: it writes events.
    pub app: String,
    /// The relay's role, on both sides.
    pub relay: String,
}

impl Default for Roles {
    fn default() -> Roles {
        Roles { app: "app".to_owned(), relay: "relay".to_owned() }
    }
}

/// Statements for each side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grants {
    /// To be run on the legacy database.
    pub source: Vec<String>,
    /// To be run on the new database.
    pub target: Vec<String>,
}

/// Reads the outbox's columns, if it is there, and says what each role needs.
pub async fn grants(config: &Config, source: &sqlx::PgPool, roles: &Roles) -> Result<Grants, InitError> {
    let names = Names::new(&config.legacy, config.relay.lanes);
    let (mut session, _) =
        crate::session::Session::begin(source, super::catalog::READ).await.map_err(InitError::legacy)?;
    let columns = super::catalog::columns(&names, &mut session).await.map_err(InitError::legacy)?;
    let sql = "SELECT pg_get_serial_sequence($1, $2)";
    let has_id = columns.get(&config.legacy.columns.id).is_some();
    let sequence: Option<String> = if has_id {
        query_scalar(sql, false)
            .bind(&names.outbox)
            .bind(&config.legacy.columns.id)
            .fetch_one(session.connection())
            .await
            .map_err(InitError::legacy)?
    } else {
        None
    };
    session.rollback().await;
    Ok(Grants { source: of_source(config, &names, &columns, sequence, roles), target: of_target(config, roles) })
}

/// The grants for an outbox as `init` makes it.
pub fn grants_for_empty(config: &Config, roles: &Roles) -> Grants {
    let names = Names::new(&config.legacy, config.relay.lanes);
    let outbox = &config.legacy.outbox;
    let sequence = format!("{}_{}_seq", outbox.table, config.legacy.columns.id);
    let sequence = Some(format!("{}.{}", ident(&outbox.schema), ident(&sequence)));
    Grants { source: of_source(config, &names, &Columns::default(), sequence, roles), target: of_target(config, roles) }
}

/// Columns that only the relay writes.
fn relays_own(config: &Config) -> [&String; 6] {
    let c = &config.legacy.columns;
    [&c.id, &c.status, &c.attempts, &c.next_attempt_at, &c.processed_at, &c.last_error]
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(|name| ident(name)).collect::<Vec<_>>().join(", ")
}

fn of_source(
    config: &Config,
    names: &Names,
    columns: &Columns,
    sequence: Option<String>,
    roles: &Roles,
) -> Vec<String> {
    let (app, relay) = (ident(&roles.app), ident(&roles.relay));
    let (c, outbox) = (&config.legacy.columns, &names.outbox);
    let own = relays_own(config);
    let contract =
        [&c.event_id, &c.aggregate_type, &c.aggregate_id, &c.event_type, &c.payload, &c.headers, &c.created_at];
    // An adopted table has columns that only the application knows.
    let known: Vec<&String> = columns.0.iter().map(|column| &column.name).filter(|name| !own.contains(name)).collect();
    let mut written: Vec<&String> =
        contract.into_iter().filter(|name| known.is_empty() || known.contains(name)).collect();
    written.extend(known.iter().filter(|name| !contract.contains(name)));
    let schema = ident(&config.legacy.outbox.schema);
    let mut sql = vec![
        format!("GRANT USAGE ON SCHEMA {schema} TO {app}, {relay};"),
        format!(
            "GRANT INSERT ({}), SELECT ({}) ON {outbox} TO {app};",
            list(written.into_iter()),
            list([&c.id, &c.event_id].into_iter())
        ),
        format!("GRANT SELECT, DELETE, UPDATE ({}) ON {outbox} TO {relay};", list(own.into_iter().skip(1))),
    ];
    sql.extend(sequence.map(|sequence| format!("GRANT SELECT ON SEQUENCE {sequence} TO {relay};")));
    sql.extend(own_tables(&names.relay, SOURCE_SCHEMA, &relay));
    let mut tables: Vec<&TableName> = Vec::new();
    for rows in config.entities.iter().filter_map(|entity| entity.legacy.as_ref()) {
        if let RowsFrom::Table(table) = &rows.from
            && !tables.contains(&table)
        {
            tables.push(table);
        }
    }
    for table in tables {
        let (schema, table) = (ident(&table.schema), ident(&table.table));
        sql.push(format!("GRANT USAGE ON SCHEMA {schema} TO {relay};"));
        sql.push(format!("GRANT SELECT ON {schema}.{table} TO {relay}; -- backfill, capture, verify"));
    }
    if config.backfill.heeds_the_load() {
        sql.push(format!("GRANT pg_monitor TO {relay}; -- backfill.max_sessions, backfill.max_replica_lag"));
    }
    sql
}

/// On the relay's own tables, one by one: its schema may hold others.
fn own_tables(schema: &str, file: &str, role: &str) -> Vec<String> {
    let objects = objects_of(file);
    let of = |kind: &str| {
        let named = objects.iter().filter(|(k, _)| *k == kind).map(|(_, name)| format!("{schema}.{}", ident(name)));
        named.collect::<Vec<_>>().join(", ")
    };
    let mut sql = vec![format!("GRANT USAGE ON SCHEMA {schema} TO {role};")];
    sql.push(format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {role};", of("TABLE")));
    for (kind, name) in &objects {
        match *kind {
            "SEQUENCE" => sql.push(format!("GRANT USAGE, SELECT ON SEQUENCE {schema}.{} TO {role};", ident(name))),
            "FUNCTION" => sql.push(format!("GRANT EXECUTE ON FUNCTION {schema}.{} TO {role};", ident(name))),
            _ => {}
        }
    }
    sql
}

fn of_target(config: &Config, roles: &Roles) -> Vec<String> {
    let relay = ident(&roles.relay);
    let mut sql = own_tables(&ident(&config.new.schema), TARGET_SCHEMA, &relay);
    let mut schemas: Vec<&str> =
        config.entities.iter().filter_map(|e| e.table.as_ref()).map(|t| t.schema.as_str()).collect();
    schemas.push(&config.new.search_path);
    schemas.sort_unstable();
    schemas.dedup();
    for schema in schemas {
        sql.push(format!("GRANT USAGE ON SCHEMA {} TO {relay};", ident(schema)));
    }
    for entity in &config.entities {
        sql.extend(of_entity(entity, &relay));
    }
    sql
}

/// The privileges that an entity's statements need on its table.
pub(crate) fn privileges(entity: &Entity) -> Vec<&'static str> {
    let uses = |wanted: &Action| entity.events.values().any(|action| action == wanted);
    let upsert = uses(&Action::Upsert) || entity.legacy.is_some();
    let mut privileges = vec![];
    if upsert || uses(&Action::Delete) {
        privileges.push("SELECT");
    }
    if upsert {
        privileges.extend(["INSERT", "UPDATE"]);
    }
    if uses(&Action::Delete) || (upsert && !entity.replace_by.is_empty()) {
        privileges.push("DELETE");
    }
    privileges
}

fn of_entity(entity: &Entity, relay: &str) -> Vec<String> {
    let mut sql = Vec::new();
    if let Some(table) = &entity.table {
        let privileges = privileges(entity);
        if !privileges.is_empty() {
            sql.push(format!(
                "GRANT {} ON {}.{} TO {relay}; -- entity {}",
                privileges.join(", "),
                ident(&table.schema),
                ident(&table.table),
                entity.name.replace('\n', " ")
            ));
        }
        if entity.legacy.is_some() {
            sql.extend(of_migration(table, !privileges.contains(&"DELETE"), relay));
        }
    }
    for action in entity.events.values() {
        if let Action::Sql(file) = action {
            sql.push(format!(
                "-- entity {}: and whatever {} needs",
                entity.name.replace('\n', " "),
                file.path.display()
            ));
        }
    }
    sql
}

/// What a first copy and repairs need besides. Which sequences there are only the new database knows.
fn of_migration(table: &TableName, may_not_delete: bool, relay: &str) -> Vec<String> {
    let table = format!("{}.{}", ident(&table.schema), ident(&table.table));
    let each = include_str!("../../sql/target/sequences.sql").lines().filter(|line| !line.starts_with("--"));
    let each = each.collect::<Vec<_>>().join(" ").replace("$1", &literal(&table));
    let mut sql = vec![format!(
        "DO $do$ DECLARE of record; BEGIN FOR of IN {each} LOOP \
         EXECUTE format('GRANT SELECT, UPDATE ON SEQUENCE %s TO {}', of.sequence); END LOOP; END $do$; -- backfill, at its end",
        relay.replace('\'', "''").replace('%', "%%")
    )];
    if may_not_delete {
        sql.push(format!("GRANT DELETE ON {table} TO {relay}; -- repair, of what the legacy database does not have"));
    }
    sql
}

/// The relay's own tables on the source.
pub(crate) fn tables_of_source() -> Vec<String> {
    tables_of(SOURCE_SCHEMA)
}

/// The relay's own tables on the target.
pub(crate) fn tables_of_target() -> Vec<String> {
    tables_of(TARGET_SCHEMA)
}

fn tables_of(file: &str) -> Vec<String> {
    objects_of(file).into_iter().filter(|(kind, _)| *kind == "TABLE").map(|(_, name)| name).collect()
}
