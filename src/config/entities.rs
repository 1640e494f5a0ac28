//! `[[entity]]`: reading them, and reading them again while the relay runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use super::problem::{Code, ConfigErrors, Place, nearest, one_of};
use super::reader::{Document, Item, Overrides, Reader};
use super::value::{NAME, PHRASE, Scalar, Text, Truth, Word};
use super::{
    Action, Capture, Config, Entity, LegacyRows, OnFailure, RowsFrom, SqlFile, TableName, VerifyRules, load, rows,
    verify,
};
use crate::redact::Quoting;

const ACTIONS: [&str; 3] = ["upsert", "delete", "ignore"];

impl Config {
    /// The entities, if they or their SQL files differ from what was loaded: `run` asks every second or so, and takes an
    /// operator's edit without a restart. An error reports the edit's mistakes, and changes nothing. Other sections are
    /// not looked at.
    pub fn entities_changed(&self) -> Result<Option<Vec<Entity>>, ConfigErrors> {
        let Some(path) = &self.file else { return Ok(None) };
        let text = load::read_file(path, None)?;
        let document = Document::parse(path, &text).map_err(ConfigErrors)?;
        let (variables, overrides) = (BTreeMap::new(), Overrides::default());
        let mut reader = Reader::new(Some(&document), &variables, &overrides);
        let entities = read(&mut reader, &self.new.search_path);
        match reader.problems {
            problems if !problems.is_empty() => Err(load::in_order(problems)),
            _ if entities == self.entities => Ok(None),
            _ => Ok(Some(entities)),
        }
    }
}

impl Config {
    /// How much of a server's words on work with these entities, by name, is kept and told: as much as admins may see.
    pub fn quoting(&self, names: &[String]) -> Quoting {
        self.redact.for_admins().quoting(&self.entities, names)
    }

    /// Aggregate types whose failed events hold nobody back: every entity lets them pass.
    pub fn passing(&self) -> Vec<String> {
        passing(&self.entities)
    }
}

/// See [`Config::passing`].
fn passing(entities: &[Entity]) -> Vec<String> {
    let of = |failure: OnFailure| {
        let entities = entities.iter().filter(move |e| e.on_failure == failure);
        entities.map(|e| e.aggregate_type.clone()).collect::<BTreeSet<_>>()
    };
    of(OnFailure::Pass).difference(&of(OnFailure::Hold)).cloned().collect()
}

impl Entity {
    /// One that takes a type's events into a table of the same columns, held on failure; for tests and the demo.
    pub fn new(aggregate_type: &str, table: TableName, key: &[&str]) -> Entity {
        Entity {
            name: table.table.clone(),
            line: 0,
            aggregate_type: aggregate_type.to_owned(),
            table: Some(table),
            key: key.iter().map(|column| (*column).to_owned()).collect(),
            replace_by: vec![],
            mapping: None,
            string_payloads: false,
            on_failure: OnFailure::Hold,
            events: BTreeMap::new(),
            legacy: None,
            verify: VerifyRules::default(),
        }
    }

    /// With a mapping that is shown as `path`.
    pub fn mapping(mut self, path: &str, text: &str) -> Entity {
        self.mapping = Some(SqlFile { path: PathBuf::from(path), text: text.to_owned() });
        self
    }

    /// Made of the rows of a legacy table, with a key of one column whose text is the aggregate.
    pub fn made_of(mut self, table: TableName, key: &str) -> Entity {
        self.legacy = Some(LegacyRows {
            from: RowsFrom::Table(table),
            key: vec![key.to_owned()],
            aggregate_id: format!("{}::text", crate::sql::ident(key)),
            capture: Capture::of(&self.aggregate_type),
        });
        self
    }

    /// With an action for an event type.
    pub fn on(mut self, event_type: &str, action: Action) -> Entity {
        self.events.insert(event_type.to_owned(), action);
        self
    }
}

/// All of them; with problems reported, those that make sense.
pub(super) fn read(reader: &mut Reader<'_>, search_path: &str) -> Vec<Entity> {
    let mut entities: Vec<Entity> = vec![];
    for (table, place) in reader.list("entity") {
        let Some(entity) = entity(reader.item("entity", table, place.clone()), search_path) else { continue };
        if let Some(same) = entities.iter().find(|other| other.name == entity.name) {
            let what = format!("two entities are called \"{}\"; the other is in line {}", entity.name, same.line);
            reader.report(Code::Conflict, place, what, "give this one a name of its own: name = \"…\"");
        }
        entities.push(entity);
    }
    entities
}

fn entity(mut item: Item<'_, '_>, search_path: &str) -> Option<Entity> {
    let name = item.get("name", PHRASE, "\"users\"");
    let aggregate_type = item.require("aggregate_type", PHRASE, "\"User\"");
    let table = item.get("table", TABLE_TEXT, "\"users\"").and_then(|text| TableName::parse(&text, search_path).ok());
    let key = item.each("key", NAME, "[\"id\"]");
    let replace_by = item.each("replace_by", NAME, "[\"user_id\"]");
    for (list, columns) in [("key", &key), ("replace_by", &replace_by)] {
        if let Some(twice) =
            columns.iter().enumerate().find_map(|(n, name)| columns[..n].contains(name).then_some(name))
        {
            let what = format!("`entity.{list}` names \"{twice}\" twice");
            item.reader.report(Code::Value, item.at(list), what, "name each column once");
        }
    }
    let mapping = sql_file(&mut item, "mapping");
    let string_payloads = item.get("string_payloads", Truth, "true");
    let on_failure = item.get("on_failure", ON_FAILURE, "\"hold\"");
    let events = events(&mut item);
    let legacy = rows::read(&mut item, aggregate_type.as_deref());
    let verify = verify::read(&mut item, &key, &replace_by);
    let writes: Vec<&str> = events
        .iter()
        .flatten()
        .filter(|(_, action)| matches!(action, Action::Upsert | Action::Delete))
        .map(|(event_type, _)| event_type.as_str())
        .collect();
    let needing = writes.first().copied().or(legacy.is_some().then_some("legacy"));
    if let Some(first) = needing {
        let reason = format!(", which `{first}` needs");
        // A key that was written, but wrongly, has been reported as that.
        if item.raw("table").is_none() {
            item.missing("table", &reason, "\"users\"");
        }
        match item.raw("key") {
            None => item.missing("key", &reason, "[\"id\"]"),
            Some((DeValue::Array(columns), place)) if columns.is_empty() => {
                let what = format!("`entity.key` is empty{reason}");
                item.reader.report(Code::Value, place, what, "name the columns of the table's key: key = [\"id\"]");
            }
            Some(_) => {}
        }
    }
    let entity = aggregate_type.zip(events).map(|(aggregate_type, events)| Entity {
        name: name.or(table.as_ref().map(|table| table.table.clone())).unwrap_or(aggregate_type.clone()),
        line: item.line(),
        aggregate_type,
        table,
        key,
        replace_by,
        mapping,
        string_payloads: string_payloads.unwrap_or(false),
        on_failure: on_failure.unwrap_or_default(),
        events,
        legacy,
        verify: verify.unwrap_or_default(),
    });
    item.finish();
    entity
}

/// Checked as a name; its schema depends on another key.
const TABLE_TEXT: Text<String> =
    Text { parse: |text| TableName::parse(text, "public").map(|_| text.to_owned()), show: String::clone };

const ON_FAILURE: Word<OnFailure> = Word(&[("hold", OnFailure::Hold), ("pass", OnFailure::Pass)]);

pub(super) fn sql_file(item: &mut Item<'_, '_>, key: &'static str) -> Option<SqlFile> {
    let path = item.get(key, PHRASE, "\"mappings/user.sql\"")?;
    let place = item.at(key);
    item.file(key, &path, place).map(|(path, text)| SqlFile { path, text })
}

fn events(item: &mut Item<'_, '_>) -> Option<BTreeMap<String, Action>> {
    const REMEDY: &str =
        "below it, write [entity.events] and each event type with its action: UserCreated = \"upsert\"";
    let table = match item.raw("events") {
        Some((DeValue::Table(table), _)) if !table.is_empty() => table,
        other => {
            let place = other.map_or(item.place.clone(), |(_, place)| place);
            item.reader.report(Code::Missing, place, "the entity takes no events", REMEDY);
            return None;
        }
    };
    let mut events = BTreeMap::new();
    for (event_type, value) in table {
        let place = item.place_of(&value.span());
        if let Some(action) = action(item, event_type.get_ref(), value.get_ref(), &place) {
            events.insert(event_type.get_ref().to_string(), action);
        }
    }
    Some(events)
}

fn action(item: &mut Item<'_, '_>, event_type: &str, value: &DeValue<'_>, place: &Place) -> Option<Action> {
    let word = match value {
        DeValue::Table(table) => return handler(item, event_type, table, place),
        DeValue::String(word) => word.as_ref(),
        _ => "",
    };
    match word {
        "upsert" => Some(Action::Upsert),
        "delete" => Some(Action::Delete),
        "ignore" => Some(Action::Ignore),
        _ => {
            let what = format!(
                "`entity.events.{event_type}` is {}: it must be {}, or {{ sql = \"file.sql\" }}",
                Scalar::of(value).found(),
                one_of(ACTIONS)
            );
            let meant = nearest(word, ACTIONS).unwrap_or("upsert");
            let remedy = if word.ends_with(".sql") {
                format!("write {event_type} = {{ sql = \"{word}\" }}")
            } else {
                format!("write {event_type} = \"{meant}\", for example")
            };
            item.reader.report(Code::Value, place.clone(), what, remedy);
            None
        }
    }
}

fn handler(item: &mut Item<'_, '_>, event_type: &str, table: &DeTable<'_>, place: &Place) -> Option<Action> {
    let key = format!("events.{event_type}");
    let unknown: BTreeSet<&str> = table.keys().map(|key| key.get_ref().as_ref()).filter(|key| *key != "sql").collect();
    let sql = table.get("sql");
    if !unknown.is_empty() || sql.is_none() {
        let what = match unknown.first() {
            Some(unknown) => format!("unknown key `entity.{key}.{unknown}`"),
            None => format!("`entity.{key}` names no file"),
        };
        let remedy = format!("write {event_type} = {{ sql = \"handlers/file.sql\" }}");
        item.reader.report(Code::Unknown, place.clone(), what, remedy);
        return None;
    }
    let value = sql?;
    let place = item.place_of(&value.span());
    let path = item.parse(&format!("{key}.sql"), &PHRASE, value.get_ref(), &place, "\"handlers/file.sql\"")?;
    item.file(&format!("{key}.sql"), &path, place).map(|(path, text)| Action::Sql(SqlFile { path, text }))
}
