//! One table of a list. Its keys are in the file only: no variable sets them.

use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Found, Reader};
use crate::config::problem::{Code, Place, nearest};
use crate::config::value::Kind;

/// One table of a list, such as an `[[entity]]`.
pub(in crate::config) struct Item<'r, 'a> {
    pub(in crate::config) reader: &'r mut Reader<'a>,
    pub(super) of: &'static str,
    pub(super) table: &'a DeTable<'a>,
    /// Of its header.
    pub(in crate::config) place: Place,
    pub(super) asked: Vec<&'static str>,
}

impl<'a> Item<'_, 'a> {
    /// From 1.
    pub(in crate::config) fn line(&self) -> usize {
        if let Place::File { line, .. } = self.place { line } else { 0 }
    }

    /// `None` where it was not written, or (with a problem) was wrong.
    pub(in crate::config) fn get<K: Kind>(&mut self, key: &'static str, kind: K, example: &str) -> Option<K::Value> {
        let (value, place) = self.raw(key)?;
        self.parse(key, &kind, value, &place, example)
    }

    /// `None`, with a problem, where it was not written or was wrong.
    pub(in crate::config) fn require<K: Kind>(
        &mut self,
        key: &'static str,
        kind: K,
        example: &str,
    ) -> Option<K::Value> {
        if self.table.get(key).is_none() {
            self.missing(key, "", example);
        }
        self.get(key, kind, example)
    }

    /// Reports that `key` is not there, although it must be, for a reason.
    pub(in crate::config) fn missing(&mut self, key: &'static str, reason: &str, example: &str) {
        let what = format!("`{}.{key}` is missing{reason}", self.of);
        self.reader.report(Code::Missing, self.place.clone(), what, format!("write {key} = {example}"));
    }

    /// A list of values of one kind; empty where it was not written.
    pub(in crate::config) fn each<K: Kind>(&mut self, key: &'static str, kind: K, example: &str) -> Vec<K::Value> {
        let Some((value, place)) = self.raw(key) else { return vec![] };
        let DeValue::Array(items) = value else {
            let what = format!("`{}.{key}` must be a list", self.of);
            self.reader.report(Code::Value, place, what, format!("write {key} = {example}"));
            return vec![];
        };
        let read = |item: &'a Spanned<DeValue<'a>>| {
            let place = self.place_of(&item.span());
            self.parse(key, &kind, item.get_ref(), &place, example)
        };
        items.iter().filter_map(read).collect()
    }

    /// The value as TOML has it.
    pub(in crate::config) fn raw(&mut self, key: &'static str) -> Option<(&'a DeValue<'a>, Place)> {
        self.asked.push(key);
        let value = self.table.get(key)?;
        Some((value.get_ref(), self.place_of(&value.span())))
    }

    /// A table within the table, `of` by its whole name; `None` where it was not written, or (with a problem) is none.
    pub(in crate::config) fn inner(
        &mut self,
        key: &'static str,
        of: &'static str,
        example: &str,
    ) -> Option<Item<'_, 'a>> {
        let (value, place) = self.raw(key)?;
        let DeValue::Table(table) = value else {
            let what = format!("`{of}` must be a table");
            self.reader.report(Code::Value, place, what, format!("write {key} = {example}"));
            return None;
        };
        Some(Item { reader: self.reader, of, table, place, asked: vec![] })
    }

    /// A list of tables within the table; empty where it was not written, or (with a problem) is none.
    pub(in crate::config) fn tables(&mut self, key: &'static str, example: &str) -> Vec<(&'a DeTable<'a>, Place)> {
        let Some((value, place)) = self.raw(key) else { return vec![] };
        let items = match value {
            DeValue::Array(items) => items.iter().collect(),
            _ => vec![],
        };
        let tables: Vec<_> = items
            .iter()
            .filter_map(|item| match item.get_ref() {
                DeValue::Table(table) => Some((table, self.place_of(&item.span()))),
                _ => None,
            })
            .collect();
        if tables.is_empty() || tables.len() < items.len() {
            let what = format!("`{}.{key}` must be a list of tables", self.of);
            self.reader.report(Code::Value, place, what, format!("write {key} = {example}"));
        }
        tables
    }

    /// One of those, `of` by its whole name.
    pub(in crate::config) fn within(&mut self, of: &'static str, table: &'a DeTable<'a>, place: Place) -> Item<'_, 'a> {
        Item { reader: self.reader, of, table, place, asked: vec![] }
    }

    /// `key = value`, somewhere within.
    pub(in crate::config) fn parse<K: Kind>(
        &mut self,
        key: &str,
        kind: &K,
        value: &DeValue<'_>,
        place: &Place,
        example: &str,
    ) -> Option<K::Value> {
        let path = format!("{}.{key}", self.of);
        self.reader.parse(&path, kind, &Found::Toml(value), place, Some(example))
    }

    /// Where `key` stands, or else the header.
    pub(in crate::config) fn at(&self, key: &str) -> Place {
        self.table.get(key).map_or(self.place.clone(), |value| self.place_of(&value.span()))
    }

    pub(in crate::config) fn place_of(&self, span: &Range<usize>) -> Place {
        self.reader.document.map_or(Place::Nowhere, |document| document.place(span))
    }

    /// Text of a file that the configuration names, relative to it; a problem where it cannot be read or is empty.
    pub(in crate::config) fn file(&mut self, key: &str, path: &str, place: Place) -> Option<(PathBuf, String)> {
        let folder = self.reader.folder();
        let full = folder.join(path);
        let (what, remedy) = match std::fs::read_to_string(&full) {
            Ok(text) if text.trim().is_empty() => ("is empty".to_owned(), "write the file"),
            Ok(text) => return Some((PathBuf::from(path), text)),
            Err(error) => (
                format!("cannot be read: {error}"),
                "mend the path, which starts at the configuration file's folder, or the file's permissions",
            ),
        };
        let what = format!("`{}.{key}` names {}, which {what}", self.of, full.display());
        self.reader.report(Code::File, place, what, remedy);
        None
    }

    /// Reports whatever was never asked for. To be called last.
    pub(in crate::config) fn finish(self) {
        for (name, _) in self.table {
            if self.asked.contains(&name.get_ref().as_ref()) {
                continue;
            }
            let remedy = match nearest(name.get_ref(), self.asked.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("remove it; [[{}]] takes {}", self.of, self.asked.join(", ")),
            };
            let place = self.place_of(&name.span());
            self.reader.report(Code::Unknown, place, format!("unknown key `{}.{}`", self.of, name.get_ref()), remedy);
        }
    }
}
