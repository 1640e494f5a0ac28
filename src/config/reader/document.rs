//! The configuration file as a tree in which everything knows its place.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::problem::{Code, Place, Problem};

/// A configuration file, parsed.
pub(in crate::config) struct Document<'a> {
    pub(super) path: &'a Path,
    text: &'a str,
    pub(super) root: DeTable<'a>,
}

impl<'a> Document<'a> {
    /// All of its syntax errors at once. Nothing else is looked at in a file that has one: what follows from it would only distract.
    pub(in crate::config) fn parse(path: &'a Path, text: &'a str) -> Result<Document<'a>, Vec<Problem>> {
        let (root, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            return Ok(Document { path, text, root: root.into_inner() });
        }
        let problem = |error: &toml::de::Error| {
            let message = error.message().lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>();
            let span = error.span().unwrap_or_default();
            let mut what = message.join("; ");
            // Nothing else is quoted: the line may hold a password.
            if let ("duplicate key", Some(key)) = (what.as_str(), text.get(span.clone())) {
                what = format!("duplicate key `{key}`");
            }
            Problem {
                code: Code::Syntax,
                place: place(path, text, span.start),
                what,
                remedy: "mend the line; TOML writes text as key = \"value\" and sections as [section]".to_owned(),
            }
        };
        Err(errors.iter().map(problem).collect())
    }

    /// The file's place of a byte range.
    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        place(self.path, self.text, span.start)
    }

    pub(super) fn find(&'a self, key: &str) -> Option<(&'a Spanned<DeValue<'a>>, Place)> {
        let mut table = &self.root;
        let (sections, last) = key.rsplit_once('.').unwrap_or(("", key));
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            match table.get(section)?.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => return None,
            }
        }
        let value = table.get(last)?;
        Some((value, self.place(&value.span())))
    }
}

fn place(path: &Path, text: &str, at: usize) -> Place {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Place::File {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}
