//! Reads one key after the other: flag over environment over file over default, remembering where each came from.
//!
//! The keys that were asked for are the keys that there are; whatever else the file or the environment holds is reported
//! by [`Reader::report_unknown`]. So a key is declared in one place: where it is read.

mod document;
mod item;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::problem::{Code, Place, Problem, nearest};
use super::value::{Kind, Scalar, Wrong};

pub(super) use self::document::Document;
pub(super) use self::item::Item;

/// What every variable of the configuration begins with.
pub(super) const PREFIX: &str = "OUTBOX_RELAY_";

/// Values given by flags; they win over environment and file.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Vec<(&'static str, &'static str, String)>);

impl Overrides {
    /// `flag` gives the value of `key` (`"--workers"`, `"relay.workers"`); `None`: it was not given.
    pub fn set(&mut self, flag: &'static str, key: &'static str, value: Option<impl ToString>) -> &mut Self {
        self.0.extend(value.map(|value| (flag, key, value.to_string())));
        self
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Somebody wrote it there.
    Written(Place),
    /// Nobody wrote it.
    Default,
    /// Nobody wrote it, and there is no default.
    Missing,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Written(Place::File { path, line, .. }) => write!(f, "{}:{line}", path.display()),
            Origin::Written(Place::Variable(name) | Place::Flag(name)) => f.write_str(name),
            Origin::Written(Place::Nowhere) | Origin::Missing => f.write_str("missing"),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// The effective value of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `relay.workers`
    pub key: &'static str,
    /// As TOML writes it, without passwords; empty when it is missing or wrong.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

impl Setting {
    /// The value; `None` when it is missing or wrong.
    pub fn to_toml(&self) -> Option<toml::Value> {
        let mut table: toml::Table = format!("value = {}", self.value).parse().ok()?;
        table.remove("value")
    }
}

/// The variable that sets `key`.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

enum Found<'a> {
    Bare(String),
    Toml(&'a DeValue<'a>),
}

/// See the module.
pub(super) struct Reader<'a> {
    document: Option<&'a Document<'a>>,
    variables: &'a BTreeMap<String, String>,
    overrides: &'a Overrides,
    lists: BTreeSet<&'static str>,
    pub(super) settings: Vec<Setting>,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        document: Option<&'a Document<'a>>,
        variables: &'a BTreeMap<String, String>,
        overrides: &'a Overrides,
    ) -> Reader<'a> {
        Reader { document, variables, overrides, lists: BTreeSet::new(), settings: vec![], problems: vec![] }
    }

    pub(super) fn report(&mut self, code: Code, place: Place, what: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem { code, place, what: what.into(), remedy: remedy.into() });
    }

    /// The value of `key`, or `default` where none was written, or (with a problem) where it was wrong.
    pub(super) fn get<K: Kind>(&mut self, key: &'static str, kind: K, default: K::Value) -> K::Value {
        let usual = kind.show(&default);
        match self.find(key) {
            None => self.remember(key, usual, Origin::Default, default),
            Some((found, place)) => match self.parse(key, &kind, &found, &place, Some(&usual)) {
                Some(value) => self.remember(key, kind.show(&value), Origin::Written(place), value),
                None => self.remember(key, String::new(), Origin::Written(place), default),
            },
        }
    }

    /// The value of a `key` that has no default; `None` (with a problem) where it is missing or wrong.
    pub(super) fn require<K: Kind>(&mut self, key: &'static str, kind: K, example: &str) -> Option<K::Value> {
        let Some((found, place)) = self.find(key) else {
            let (section, last) = key.rsplit_once('.').unwrap_or(("", key));
            let file = self.document.map_or(super::DEFAULT_FILE.into(), |document| document.path.display().to_string());
            let remedy = format!("write {last} = {example} under [{section}] in {file}, or set {}", variable(key));
            self.report(Code::Missing, Place::Nowhere, format!("`{key}` is missing"), remedy);
            return self.remember(key, String::new(), Origin::Missing, None);
        };
        let value = self.parse(key, &kind, &found, &place, Some(example));
        let shown = value.as_ref().map_or(String::new(), |value| kind.show(value));
        self.remember(key, shown, Origin::Written(place), value)
    }

    /// Where relative paths start.
    pub(super) fn folder(&self) -> PathBuf {
        self.document.and_then(|document| document.path.parent()).unwrap_or(Path::new("")).to_owned()
    }

    /// Where `key` was written, once it has been read.
    pub(super) fn written(&self, key: &str) -> Place {
        match self.settings.iter().find(|setting| setting.key == key).map(|setting| &setting.origin) {
            Some(Origin::Written(place)) => place.clone(),
            _ => Place::Nowhere,
        }
    }

    fn remember<T>(&mut self, key: &'static str, value: String, origin: Origin, result: T) -> T {
        self.settings.push(Setting { key, value, origin });
        result
    }

    fn find(&mut self, key: &str) -> Option<(Found<'a>, Place)> {
        if let Some((flag, _, value)) = self.overrides.0.iter().rev().find(|(_, of, _)| *of == key) {
            return Some((Found::Bare(value.clone()), Place::Flag((*flag).to_owned())));
        }
        if let Some((value, place)) = self.variable(&variable(key)) {
            return Some((Found::Bare(value), place));
        }
        let (value, place) = self.document?.find(key)?;
        Some((Found::Toml(value.get_ref()), place))
    }

    /// The value of a variable, or of the file that `…_FILE` names.
    pub(super) fn variable(&mut self, name: &str) -> Option<(String, Place)> {
        let of_file = format!("{name}_FILE");
        let place = Place::Variable(of_file.clone());
        match (self.variables.get(name), self.variables.get(&of_file)) {
            (Some(_), Some(_)) => {
                let what = format!("{name} and {of_file} are both set");
                self.report(Code::Conflict, place, what, "unset one of them");
                None
            }
            (Some(value), None) => Some((value.clone(), Place::Variable(name.to_owned()))),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => {
                    let line = text.strip_suffix('\n').unwrap_or(&text);
                    Some((line.strip_suffix('\r').unwrap_or(line).to_owned(), place))
                }
                Err(error) => {
                    let what = format!("{of_file} names {path}, which cannot be read: {error}");
                    self.report(Code::File, place, what, format!("let {of_file} name a file that this user may read"));
                    None
                }
            },
            (None, None) => None,
        }
    }

    /// The file that a variable's value is in, if it is.
    pub(super) fn file_of(&self, name: &str) -> Option<PathBuf> {
        self.variables.get(&format!("{name}_FILE")).map(PathBuf::from)
    }

    fn parse<K: Kind>(
        &mut self,
        key: &str,
        kind: &K,
        found: &Found<'_>,
        place: &Place,
        example: Option<&str>,
    ) -> Option<K::Value> {
        let scalar = match found {
            Found::Bare(text) => Scalar::Bare(text),
            Found::Toml(value) => Scalar::of(value),
        };
        match kind.parse(&scalar) {
            Ok(value) => Some(value),
            Err(Wrong { why, instead }) => {
                let what =
                    if K::SECRET { format!("`{key}`: {why}") } else { format!("`{key}` is {}: {why}", scalar.found()) };
                let instead = instead.or_else(|| example.map(str::to_owned));
                let bare = |value: &str| value.trim_matches('"').to_owned();
                let remedy = match (place, instead) {
                    (Place::Variable(name), Some(value)) if name.ends_with("_FILE") => {
                        format!("let the file that {name} names hold, for example, {}", bare(&value))
                    }
                    (Place::Variable(name), Some(value)) => format!("set {name}={}, for example", bare(&value)),
                    (Place::Flag(flag), Some(value)) => format!("give {flag} {}, for example", bare(&value)),
                    (_, Some(value)) => {
                        format!("write {} = {value}, for example", key.rsplit('.').next().unwrap_or(key))
                    }
                    (_, None) => "mend it".to_owned(),
                };
                self.report(Code::Value, place.clone(), what, remedy);
                None
            }
        }
    }

    /// The tables of a `[[key]]`.
    pub(super) fn list(&mut self, key: &'static str) -> Vec<(&'a DeTable<'a>, Place)> {
        self.lists.insert(key);
        let Some((document, (value, at))) = self.document.and_then(|document| Some((document, document.find(key)?)))
        else {
            return vec![];
        };
        let mut tables = vec![];
        let mut wrong = vec![];
        match value.get_ref() {
            DeValue::Array(items) => {
                for item in items {
                    match item.get_ref() {
                        DeValue::Table(table) => tables.push((table, document.place(&item.span()))),
                        _ => wrong.push(document.place(&item.span())),
                    }
                }
            }
            _ => wrong.push(at),
        }
        for place in wrong {
            let what = format!("`{key}` is a list of sections");
            self.report(Code::Value, place, what, format!("write [[{key}]], with double brackets, above its keys"));
        }
        tables
    }

    /// Reads one table of a list; what it holds is in the file only.
    pub(super) fn item<'r>(&'r mut self, of: &'static str, table: &'a DeTable<'a>, place: Place) -> Item<'r, 'a> {
        Item { reader: self, of, table, place, asked: vec![] }
    }

    /// Reports whatever was never asked for. To be called last.
    pub(super) fn report_unknown(&mut self) {
        if let Some(document) = self.document {
            self.report_unknown_keys(document, "", &document.root);
        }
        let known: BTreeSet<String> = self.settings.iter().map(|setting| variable(setting.key)).collect();
        let is_unknown = |name: &&String| {
            let of_key = name.strip_suffix("_FILE").unwrap_or(name);
            name.starts_with(PREFIX) && name[PREFIX.len()..].contains("__") && !known.contains(of_key)
        };
        for name in self.variables.keys().filter(is_unknown) {
            let (of_key, suffix) = name.strip_suffix("_FILE").map_or((name.as_str(), ""), |name| (name, "_FILE"));
            let remedy = match nearest(of_key, known.iter().map(String::as_str)) {
                Some(meant) => format!("did you mean {meant}{suffix}?"),
                None => {
                    "unset it; `outbox-relay config` lists the keys, and a variable is OUTBOX_RELAY_<SECTION>__<KEY>"
                        .to_owned()
                }
            };
            self.report(Code::Unknown, Place::Variable(name.clone()), format!("{name} sets no known key"), remedy);
        }
    }

    fn report_unknown_keys(&mut self, document: &Document<'_>, section: &str, table: &DeTable<'_>) {
        let keys: Vec<&'static str> =
            self.settings.iter().map(|setting| setting.key).chain(self.lists.clone()).collect();
        // What may stand in this section: its keys, and the sections in it.
        let here: BTreeSet<&str> = keys
            .iter()
            .filter_map(
                |key| if section.is_empty() { Some(*key) } else { key.strip_prefix(section)?.strip_prefix('.') },
            )
            .filter_map(|rest| rest.split('.').next())
            .collect();
        for (name, value) in table {
            let path =
                if section.is_empty() { name.get_ref().to_string() } else { format!("{section}.{}", name.get_ref()) };
            if keys.contains(&path.as_str()) {
                continue;
            }
            let place = document.place(&name.span());
            if here.contains(name.get_ref().as_ref()) {
                match value.get_ref() {
                    DeValue::Table(inner) => self.report_unknown_keys(document, &path, inner),
                    _ => self.report(
                        Code::Value,
                        place,
                        format!("`{path}` is a section, not a key"),
                        format!("write [{path}], and its keys below it"),
                    ),
                }
                continue;
            }
            let remedy = match nearest(name.get_ref(), here.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                // The right key in the wrong section.
                None => {
                    match keys.iter().find_map(|key| key.rsplit_once('.').filter(|(_, last)| last == name.get_ref())) {
                        Some((section, key)) => format!("`{key}` belongs under [{section}]"),
                        None => "remove it; `outbox-relay config` lists the keys".to_owned(),
                    }
                }
            };
            self.report(Code::Unknown, place, format!("unknown key `{path}`"), remedy);
        }
    }
}
