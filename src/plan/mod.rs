//! `plan`: what the split does to foreign keys, read from both catalogs.
//!
//! Guarantees: it changes nothing; every statement that it prints runs as it is. It knows constraints that are declared; a
//! reference that only the application knows is not seen. Which tables move is what the entities say; of the tables that a query
//! joins, only its key's is known to move, and what would become of the others' constraints is told for the case that they do.

pub mod order;
mod orphans;
mod render;
mod tables;

use std::time::Duration;

use serde::{Serialize, Serializer};
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};
use utoipa::ToSchema;

pub use self::orphans::{Orphans, Sample, orphans};
pub use self::render::render;
use crate::config::{Entity, RowsFrom, TableName};
use crate::disposition::{is_transient, told};
use crate::init::Side;
use crate::session::{Limits, Session, sqlstate};
use crate::sql::{ident, query, with_operators};

/// A database was away, or said no.
#[derive(Debug, thiserror::Error)]
#[error("{side}: {}", told(.error))]
pub struct PlanError {
    /// Which.
    pub side: Side,
    /// What it said.
    pub error: sqlx::Error,
}

/// What the split does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Plan {
    /// The entities that have a table, with the legacy table of each.
    pub moves: Vec<Move>,
    /// The order in which to fill the new tables: each step after those that it refers to.
    pub order: Vec<Step>,
    /// Constraints of the legacy database that would have one end in each.
    pub crossing: Vec<Crossing>,
    /// Constraints of the legacy database whose both ends move.
    pub moving: Vec<Moving>,
    /// Constraints of the new database that an entity's rows depend on, and whose other table no entity fills.
    pub unfilled: Vec<ForeignKey>,
    /// References that can be looked through for orphans.
    #[serde(skip)]
    pub(crate) references: Vec<Reference>,
}

/// An entity's table, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Move {
    /// The entity's name.
    pub entity: String,
    /// The legacy table, or the one whose key a query has; `None`: none is known.
    #[serde(serialize_with = "some_name")]
    #[schema(value_type = Option<String>)]
    pub legacy: Option<TableName>,
    /// Whether the legacy table is a guess: one of the same name.
    pub guessed: bool,
    /// The file of the query that the entity is made of.
    pub query: Option<String>,
    /// The other tables that this query reads. Whether they move along, only their owner knows.
    #[serde(serialize_with = "names")]
    #[schema(value_type = Vec<String>)]
    pub reads: Vec<TableName>,
    /// Why it is not known which tables the query reads.
    pub unread: Option<String>,
    /// The new table.
    #[serde(serialize_with = "name")]
    #[schema(value_type = String)]
    pub new: TableName,
}

/// A foreign key as a catalog has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ForeignKey {
    /// Its name.
    pub name: String,
    /// The table that refers.
    #[serde(serialize_with = "name")]
    #[schema(value_type = String)]
    pub child: TableName,
    /// The columns that refer.
    pub columns: Vec<String>,
    /// The table that is referred to.
    #[serde(serialize_with = "name")]
    #[schema(value_type = String)]
    pub parent: TableName,
    /// The columns that are referred to.
    pub parent_columns: Vec<String>,
    /// What happens to a row whose parent is deleted, if it is not refused: `CASCADE`, `SET NULL`, `SET DEFAULT`.
    pub on_delete: Option<String>,
    /// Whether it may be checked as late as the commit.
    pub deferrable: bool,
    /// Whether rows that were there before it are known to obey it.
    pub validated: bool,
    /// Whether the table that refers is partitioned, and so cannot have it `NOT VALID` at first.
    pub partitioned: bool,
    /// `FOREIGN KEY (…) REFERENCES …`, with schemas.
    pub definition: String,
}

/// A step of the order: one entity, or several whose tables refer to each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Step {
    /// The entities.
    pub entities: Vec<String>,
    /// The constraints of the new database that make it a cycle; empty for one entity.
    pub cycle: Vec<String>,
    /// On the new database, before the first copy of a cycle.
    pub before: Vec<String>,
    /// On the new database, once its tables are filled.
    pub after: Vec<String>,
}

/// A constraint whose ends part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Crossing {
    /// The constraint, on the legacy database.
    pub constraint: ForeignKey,
    /// Which end moves.
    pub moves: End,
    /// Entities whose query reads an end of it: it depends on whether that end moves along. Empty: it crosses.
    pub read_by: Vec<String>,
    /// What the split takes away.
    pub why: String,
    /// On the legacy database, before the new one is written to by the service.
    pub drop: Vec<String>,
    /// On the legacy database, should it become the only one again.
    pub restore: Vec<String>,
}

/// An end of a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// The table that refers.
    Child,
    /// The table that is referred to.
    Parent,
}

/// A constraint whose ends move both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Moving {
    /// The constraint, on the legacy database.
    pub constraint: ForeignKey,
    /// The constraint between the new tables that does the same.
    pub kept_by: Option<String>,
    /// On the new database, where nothing does it yet; empty where the new columns are called otherwise.
    pub create: Vec<String>,
}

/// Something that refers to something: where each end is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) what: String,
    pub(crate) child: (Side, TableName, Vec<String>),
    pub(crate) parent: (Side, TableName, Vec<String>),
}

/// A table's columns and the types of those, by name; its primary key; and whether it is partitioned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Columns {
    types: Vec<(String, Type)>,
    primary_key: Vec<String>,
    partitioned: bool,
}

/// A type, as SQL has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Type {
    name: String,
    /// The schema of its own operators.
    operators: String,
}

impl Columns {
    fn has(&self, columns: &[String]) -> bool {
        self.first_missing(columns).is_none()
    }

    fn first_missing<'a>(&self, columns: &'a [String]) -> Option<&'a String> {
        columns.iter().find(|column| self.type_of(column).is_none())
    }

    fn type_of(&self, column: &str) -> Option<&Type> {
        self.types.iter().find(|(name, _)| name == column).map(|(_, of)| of)
    }
}

const LIMITS: Limits = Limits { deadline: Duration::from_secs(30), lock: Duration::from_secs(1) };

/// A read-only transaction in which nothing is found but by its full name.
async fn reading(pool: &PgPool) -> sqlx::Result<Session> {
    let script = format!("SET TRANSACTION READ ONLY; {} SET LOCAL search_path = pg_catalog;", LIMITS.sql());
    Session::begin(pool, &script).await.map(|(session, _)| session)
}

/// Reads both catalogs, and works out what the split does.
pub async fn plan(entities: &[Entity], legacy: &PgPool, new: &PgPool) -> Result<Plan, PlanError> {
    let on_legacy = foreign_keys(legacy).await.map_err(|error| PlanError { side: Side::Legacy, error })?;
    let on_new = foreign_keys(new).await.map_err(|error| PlanError { side: Side::New, error })?;
    let mut moves = Vec::new();
    let mut columns_of_new = Vec::new();
    for entity in entities {
        let Some(table) = &entity.table else { continue };
        let has = columns(new, table).await.map_err(|error| PlanError { side: Side::New, error })?;
        columns_of_new.push((table.clone(), has));
        moves.push(origin(entity, table, legacy).await.map_err(|error| PlanError { side: Side::Legacy, error })?);
    }
    Ok(work_out(moves, &on_legacy, &on_new, &columns_of_new))
}

/// The legacy tables of an entity.
async fn origin(entity: &Entity, table: &TableName, legacy: &PgPool) -> sqlx::Result<Move> {
    let mut of = Move {
        entity: entity.name.clone(),
        legacy: None,
        guessed: false,
        query: None,
        reads: Vec::new(),
        unread: None,
        new: table.clone(),
    };
    match entity.legacy.as_ref().map(|rows| (rows, &rows.from)) {
        Some((_, RowsFrom::Table(from))) => of.legacy = Some(from.clone()),
        Some((rows, RowsFrom::Query(file))) => {
            of.query = Some(file.path.display().to_string());
            match tables::of_query(rows, legacy).await {
                Ok(tables) => (of.legacy, of.reads) = (tables.of_key, tables.besides),
                Err(error) if sqlstate(&error).is_some() && !is_transient(&error) => of.unread = Some(told(&error)),
                Err(error) => return Err(error),
            }
        }
        None => {
            of.guessed = !columns(legacy, table).await?.types.is_empty();
            of.legacy = of.guessed.then(|| table.clone());
        }
    }
    Ok(of)
}

/// What becomes of a legacy table.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// An entity is made of it.
    Moves,
    /// The queries of these entities read it besides: it moves along, or not.
    Read(Vec<String>),
    /// Nothing.
    Stays,
}

fn fate(moves: &[Move], table: &TableName) -> Fate {
    if moves.iter().any(|of| of.legacy.as_ref() == Some(table)) {
        return Fate::Moves;
    }
    let read_by: Vec<String> = moves.iter().filter(|of| of.reads.contains(table)).map(|of| of.entity.clone()).collect();
    if read_by.is_empty() { Fate::Stays } else { Fate::Read(read_by) }
}

async fn foreign_keys(pool: &PgPool) -> sqlx::Result<Vec<ForeignKey>> {
    let mut session = reading(pool).await?;
    let rows = query(include_str!("../../sql/plan/foreign_keys.sql"), false).fetch_all(session.connection()).await?;
    session.rollback().await;
    rows.iter().map(foreign_key).collect()
}

fn foreign_key(row: &PgRow) -> sqlx::Result<ForeignKey> {
    let table =
        |schema, table| Ok::<_, sqlx::Error>(TableName { schema: row.try_get(schema)?, table: row.try_get(table)? });
    let definition: String = row.try_get("definition")?;
    Ok(ForeignKey {
        name: row.try_get("name")?,
        child: table("child_schema", "child_table")?,
        columns: row.try_get("columns")?,
        parent: table("parent_schema", "parent_table")?,
        parent_columns: row.try_get("parent_columns")?,
        on_delete: row.try_get("on_delete")?,
        deferrable: row.try_get("deferrable")?,
        validated: row.try_get("validated")?,
        partitioned: row.try_get("partitioned")?,
        definition: definition.trim_end_matches(" NOT VALID").to_owned(),
    })
}

pub(crate) async fn columns(pool: &PgPool, table: &TableName) -> sqlx::Result<Columns> {
    let mut session = reading(pool).await?;
    let sql = with_operators(include_str!("../../sql/plan/columns.sql"));
    let rows = query(&sql, false).bind(&table.schema).bind(&table.table).fetch_all(session.connection()).await?;
    session.rollback().await;
    let mut columns = Columns::default();
    let mut key: Vec<(i32, String)> = Vec::new();
    for row in &rows {
        let name: String = row.try_get("name")?;
        if let Some(place) = row.try_get("place")? {
            key.push((place, name.clone()));
        }
        columns.types.push((name, Type { name: row.try_get("type_name")?, operators: row.try_get("operators")? }));
        columns.partitioned = row.try_get("partitioned")?;
    }
    key.sort();
    columns.primary_key = key.into_iter().map(|(_, name)| name).collect();
    Ok(columns)
}

/// From both catalogs to the plan; asks nobody.
fn work_out(
    moves: Vec<Move>,
    on_legacy: &[ForeignKey],
    on_new: &[ForeignKey],
    columns: &[(TableName, Columns)],
) -> Plan {
    let by_legacy = |table: &TableName| moves.iter().filter(|m| m.legacy.as_ref() == Some(table)).collect::<Vec<_>>();
    let mut plan = Plan {
        moves: Vec::new(),
        order: Vec::new(),
        crossing: Vec::new(),
        moving: Vec::new(),
        unfilled: Vec::new(),
        references: Vec::new(),
    };
    for key in on_legacy {
        let fates = (fate(&moves, &key.child), fate(&moves, &key.parent));
        if fates == (Fate::Stays, Fate::Stays) {
            continue;
        }
        plan.references.push(key.within(Side::Legacy));
        let (children, parents) = (by_legacy(&key.child), by_legacy(&key.parent));
        if fates == (Fate::Moves, Fate::Moves) {
            let pairs = children.iter().flat_map(|child| parents.iter().map(move |parent| (&child.new, &parent.new)));
            plan.moving.push(moving(key, pairs.collect(), on_new, columns, &mut plan.references));
            continue;
        }
        // A table that refers to itself stays together, wherever it goes.
        if key.child == key.parent {
            continue;
        }
        plan.crossing.push(crossing(key, fates));
        for (end, of, columns) in children
            .iter()
            .map(|m| (End::Child, m, &key.columns))
            .chain(parents.iter().map(|m| (End::Parent, m, &key.parent_columns)))
        {
            // Where its columns are called otherwise there, whoever looks for orphans says that it cannot.
            let mut reference = key.within(Side::Legacy);
            let moved = (Side::New, of.new.clone(), columns.clone());
            match end {
                End::Child => reference.child = moved,
                End::Parent => reference.parent = moved,
            }
            plan.references.push(reference);
        }
    }
    let filled = |table: &TableName| moves.iter().any(|m| m.new == *table);
    for key in on_new.iter().filter(|key| filled(&key.child)) {
        plan.references.push(key.within(Side::New));
        if !filled(&key.parent) {
            plan.unfilled.push(key.clone());
        }
    }
    plan.order = steps(&moves, on_new);
    plan.moves = moves;
    plan
}

impl ForeignKey {
    /// Both ends in one database.
    fn within(&self, side: Side) -> Reference {
        Reference {
            what: self.name.clone(),
            child: (side, self.child.clone(), self.columns.clone()),
            parent: (side, self.parent.clone(), self.parent_columns.clone()),
        }
    }

    fn drop_sql(&self) -> String {
        format!("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {};", quoted(&self.child), ident(&self.name))
    }

    fn create_sql(&self) -> Vec<String> {
        create(&self.child, &self.name, &self.definition, self.partitioned)
    }
}

/// Two steps: the first locks for a moment only, the second reads the table while others write. A partitioned table takes no first one.
fn create(child: &TableName, name: &str, definition: &str, partitioned: bool) -> Vec<String> {
    let (child, name) = (quoted(child), ident(name));
    if partitioned {
        return vec![format!("ALTER TABLE {child} ADD CONSTRAINT {name} {definition};")];
    }
    vec![
        format!("ALTER TABLE {child} ADD CONSTRAINT {name} {definition} NOT VALID;"),
        format!("ALTER TABLE {child} VALIDATE CONSTRAINT {name};"),
    ]
}

fn quoted(table: &TableName) -> String {
    format!("{}.{}", ident(&table.schema), ident(&table.table))
}

/// What follows the parent's columns in a definition, the second list: `ON DELETE SET NULL (…)` and the like.
fn after_columns(definition: &str) -> &str {
    let mut quoted = false;
    let mut closing = definition.char_indices().filter(|(_, c)| {
        quoted ^= *c == '"';
        *c == ')' && !quoted
    });
    closing.nth(1).map_or("", |(at, _)| &definition[at + 1..])
}

fn list(columns: &[String]) -> String {
    columns.iter().map(|c| ident(c)).collect::<Vec<_>>().join(", ")
}

fn crossing(key: &ForeignKey, fates: (Fate, Fate)) -> Crossing {
    let (child, parent) = (&key.child, &key.parent);
    let moves = match &fates {
        (_, Fate::Moves) | (Fate::Stays, _) => End::Parent,
        _ => End::Child,
    };
    let (moving, staying) = match moves {
        End::Parent => ((parent, &fates.1), (child, &fates.0)),
        End::Child => ((child, &fates.0), (parent, &fates.1)),
    };
    let mut why = match moves {
        End::Parent => format!(
            "{parent} moves, {child} stays: once the service writes {parent}, its new rows are not in the legacy table, and this \
             constraint refuses rows of {child} that refer to them"
        ),
        End::Child => format!(
            "{child} moves, {parent} stays: nothing keeps a row of {parent} from being deleted while the service's rows refer to it; \
             and the rows that are left behind in the legacy table would keep it from being deleted for ever"
        ),
    };
    if let Some(action) = &key.on_delete {
        why += &format!(". ON DELETE {action} no longer happens by itself: an event must do it");
    }
    let mut read_by = Vec::new();
    if let (table, Fate::Read(by)) = moving {
        why = format!("{table} is read by the query of {}. If it moves along: {why}", by.join(", "));
        read_by.extend_from_slice(by);
    }
    if let (table, Fate::Read(by)) = staying {
        why += &format!(". It does not cross if {table} moves along, which the query of {} reads", by.join(", "));
        read_by.extend(by.iter().filter(|name| !read_by.contains(name)).cloned().collect::<Vec<_>>());
    }
    Crossing { constraint: key.clone(), moves, read_by, why, drop: vec![key.drop_sql()], restore: key.create_sql() }
}

fn moving(
    key: &ForeignKey,
    pairs: Vec<(&TableName, &TableName)>,
    on_new: &[ForeignKey],
    columns: &[(TableName, Columns)],
    references: &mut Vec<Reference>,
) -> Moving {
    let of = |table: &TableName| columns.iter().find(|(of, _)| of == table).map(|(_, columns)| columns);
    let has = |table: &TableName, names: &[String]| of(table).is_some_and(|of| of.has(names));
    // Among several references between the same tables the one of the same columns, if columns are called the same.
    let between: Vec<&ForeignKey> = on_new.iter().filter(|k| pairs.contains(&(&k.child, &k.parent))).collect();
    let same_columns = between.iter().find(|k| k.columns == key.columns);
    let named_alike = pairs.iter().find(|(child, parent)| has(child, &key.columns) && has(parent, &key.parent_columns));
    let kept_by = same_columns.or(if named_alike.is_none() { between.first() } else { None }).map(|k| k.name.clone());
    let mut create_sql = Vec::new();
    if let (None, Some((child, parent))) = (&kept_by, named_alike) {
        let (columns, parent_columns) = (list(&key.columns), list(&key.parent_columns));
        let rest = after_columns(&key.definition);
        let definition = format!("FOREIGN KEY ({columns}) REFERENCES {} ({parent_columns}){rest}", quoted(parent));
        create_sql = create(child, &key.name, &definition, of(child).is_some_and(|of| of.partitioned));
        references.push(Reference {
            what: format!("{} (not in the new database yet)", key.name),
            child: (Side::New, (*child).clone(), key.columns.clone()),
            parent: (Side::New, (*parent).clone(), key.parent_columns.clone()),
        });
    }
    Moving { constraint: key.clone(), kept_by, create: create_sql }
}

fn steps(moves: &[Move], on_new: &[ForeignKey]) -> Vec<Step> {
    let mut needs = Vec::new();
    for (child, of_child) in moves.iter().enumerate() {
        for (parent, of_parent) in moves.iter().enumerate() {
            let refers =
                |key: &&ForeignKey| key.child == of_child.new && key.parent == of_parent.new && key.child != key.parent;
            if on_new.iter().any(|key| refers(&key)) {
                needs.push((child, parent));
            }
        }
    }
    let step = |group: Vec<usize>| {
        let tables: Vec<&TableName> = group.iter().map(|n| &moves[*n].new).collect();
        let within = |key: &&ForeignKey| {
            tables.contains(&&key.child) && tables.contains(&&key.parent) && key.child != key.parent
        };
        let cycle: Vec<&ForeignKey> = if group.len() > 1 { on_new.iter().filter(within).collect() } else { Vec::new() };
        Step {
            entities: group.iter().map(|n| moves[*n].entity.clone()).collect(),
            cycle: cycle.iter().map(|key| key.name.clone()).collect(),
            before: cycle.iter().map(|key| key.drop_sql()).collect(),
            after: cycle.iter().flat_map(|key| key.create_sql()).collect(),
        }
    };
    order::order(moves.len(), &needs).into_iter().map(step).collect()
}

fn name<S: Serializer>(table: &TableName, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(table)
}

fn names<S: Serializer>(tables: &[TableName], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(tables.iter().map(ToString::to_string))
}

fn some_name<S: Serializer>(table: &Option<TableName>, to: S) -> Result<S::Ok, S::Error> {
    match table {
        Some(table) => to.collect_str(table),
        None => to.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_parents_columns_is_kept_whole() {
        for (definition, rest) in [
            ("FOREIGN KEY (a) REFERENCES public.t(id)", ""),
            (
                "FOREIGN KEY (a, b) REFERENCES public.t(x, y) MATCH FULL ON UPDATE CASCADE ON DELETE SET NULL DEFERRABLE",
                " MATCH FULL ON UPDATE CASCADE ON DELETE SET NULL DEFERRABLE",
            ),
            ("FOREIGN KEY (a, b) REFERENCES public.t(x, y) ON DELETE SET NULL (b)", " ON DELETE SET NULL (b)"),
            (
                "FOREIGN KEY (a, b) REFERENCES public.t(x, y) ON DELETE SET DEFAULT (a, \"b)\") DEFERRABLE INITIALLY DEFERRED",
                " ON DELETE SET DEFAULT (a, \"b)\") DEFERRABLE INITIALLY DEFERRED",
            ),
            (
                "FOREIGN KEY (\"a)\", \"b\"\")\") REFERENCES \"s)\".\"t (old)\"(\"x)\", y) ON DELETE CASCADE",
                " ON DELETE CASCADE",
            ),
            ("FOREIGN KEY (\"ü)\") REFERENCES public.\"ß\"(\"é\") ON DELETE RESTRICT", " ON DELETE RESTRICT"),
        ] {
            assert_eq!(after_columns(definition), rest, "{definition}");
        }
    }
}
