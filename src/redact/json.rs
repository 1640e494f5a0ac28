//! Cuts values out of JSON text, and leaves every other byte as it is.
//!
//! Works on the text, not on a tree: numbers, spaces, duplicate keys and their order stay. It walks without recursion, so that no
//! depth is too deep. Every occurrence of a duplicate key is cut, and a key is compared as what it means: `"em\u0061il"` is `email`.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::HIDDEN_JSON;
use super::path::{Path, What};

/// The text with [`super::HIDDEN`] in the place of each value that a path leads to. Where a path leads *through* a string (an object
/// that was serialised twice, say), nobody can tell what is in it, and the string is hidden.
pub(super) fn cut<'t>(text: &'t str, paths: &[&Path]) -> Cow<'t, str> {
    if paths.is_empty() {
        return Cow::Borrowed(text);
    }
    if paths.iter().any(|path| path.steps.is_empty()) || serde_json::from_str::<&RawValue>(text).is_err() {
        return Cow::Borrowed(HIDDEN_JSON);
    }
    let mut cutter = Cutter { text, at: 0, copied: 0, out: String::new(), paths };
    match cutter.walk() {
        // What was not understood to its end may hold anything.
        None => Cow::Borrowed(HIDDEN_JSON),
        Some(()) if cutter.copied == 0 => Cow::Borrowed(text),
        Some(()) => {
            cutter.out.push_str(&text[cutter.copied..]);
            Cow::Owned(cutter.out)
        }
    }
}

/// How far each path has come: (path, steps that lie behind).
type Places = Vec<(usize, usize)>;

enum Within {
    Object(Places),
    Array(Places, usize),
}

enum Child<'a> {
    /// `None`: a key that is no text (half of a surrogate pair), and so none that anybody names.
    Key(Option<&'a str>),
    Element(usize),
}

struct Cutter<'t, 'p> {
    text: &'t str,
    at: usize,
    copied: usize,
    out: String,
    paths: &'p [&'p Path],
}

impl Cutter<'_, '_> {
    /// `None`: this was no JSON after all.
    fn walk(&mut self) -> Option<()> {
        let mut open: Vec<Within> = Vec::new();
        self.space();
        let root = (0..self.paths.len()).map(|path| (path, 0)).collect();
        open.extend(self.value(false, root)?);
        while let Some(within) = open.last_mut() {
            self.space();
            if self.peek()? == b',' {
                self.at += 1;
                self.space();
            }
            if matches!(self.peek()?, b'}' | b']') {
                self.at += 1;
                open.pop();
                continue;
            }
            let (found, places) = match within {
                Within::Object(places) => {
                    let start = self.at;
                    self.skip_string()?;
                    let key: Option<String> = serde_json::from_str(&self.text[start..self.at]).ok();
                    self.space();
                    if self.peek()? != b':' {
                        return None;
                    }
                    self.at += 1;
                    self.space();
                    enter(self.paths, places, &Child::Key(key.as_deref()))
                }
                Within::Array(places, next) => {
                    *next += 1;
                    enter(self.paths, places, &Child::Element(*next - 1))
                }
            };
            open.extend(self.value(found, places)?);
        }
        Some(())
    }

    /// The value that begins here: cut, stepped over, or (if something in it may be to cut) stepped into.
    fn value(&mut self, found: bool, places: Places) -> Option<Option<Within>> {
        let start = self.at;
        let first = self.peek()?;
        if !found && !places.is_empty() && matches!(first, b'{' | b'[') {
            self.at += 1;
            return Some(Some(if first == b'{' { Within::Object(places) } else { Within::Array(places, 0) }));
        }
        self.skip()?;
        if found || first == b'"' && self.may_lead_on(&places, &self.text[start..self.at]) {
            self.out.push_str(&self.text[self.copied..start]);
            self.out.push_str(HIDDEN_JSON);
            self.copied = self.at;
        }
        Some(None)
    }

    /// Whether a path goes on within this string. One that may begin anywhere does so only if JSON may begin there.
    fn may_lead_on(&self, places: &Places, string: &str) -> bool {
        let of_json = || match serde_json::from_str::<String>(string) {
            Ok(text) => text.trim_start().starts_with(['{', '[', '"']),
            Err(_) => true,
        };
        places.iter().any(|(path, done)| !self.paths[*path].steps[*done].anywhere) || !places.is_empty() && of_json()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn skip(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => self.skip_string()?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                _ if depth > 0 => self.at += 1,
                // A number, true, false, null: up to what ends it.
                _ => {
                    while self.peek().is_some_and(|b| !b.is_ascii_whitespace() && !matches!(b, b',' | b'}' | b']')) {
                        self.at += 1;
                    }
                }
            }
            if depth == 0 {
                return Some(());
            }
        }
    }

    fn skip_string(&mut self) -> Option<()> {
        if self.peek()? != b'"' {
            return None;
        }
        self.at += 1;
        loop {
            match self.peek()? {
                b'\\' => self.at += 2,
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                _ => self.at += 1,
            }
        }
    }
}

/// Whether a path ends at this child, and how far the others have come there.
fn enter(paths: &[&Path], places: &Places, child: &Child<'_>) -> (bool, Places) {
    let mut found = false;
    let mut there = Places::new();
    for (path, done) in places {
        let steps = &paths[*path].steps;
        let step = &steps[*done];
        if step.anywhere && !there.contains(&(*path, *done)) {
            there.push((*path, *done));
        }
        let fits = match (&step.what, child) {
            (What::Any, _) => true,
            (What::Name(name), Child::Key(Some(key))) => name == key,
            (What::Element(wanted), Child::Element(at)) => wanted == at,
            _ => false,
        };
        if fits && done + 1 == steps.len() {
            found = true;
        } else if fits && !there.contains(&(*path, done + 1)) {
            there.push((*path, done + 1));
        }
    }
    (found, there)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn of(text: &str, paths: &[&str]) -> String {
        let paths: Vec<Path> = paths.iter().map(|path| path.parse().unwrap()).collect();
        cut(text, &paths.iter().collect::<Vec<_>>()).into_owned()
    }

    #[test]
    fn values_are_cut_where_a_path_leads() {
        for (text, paths, expected) in [
            (r#"{"a": 1, "b": 2}"#, &["$.a"][..], r#"{"a": "[redacted]", "b": 2}"#),
            (r#"{"a": {"b": [1, {"c": 2}]}}"#, &["$.a.b"], r#"{"a": {"b": "[redacted]"}}"#),
            (r#"{"a": {"b": [1, {"c": 2}]}}"#, &["$.a.b[1].c"], r#"{"a": {"b": [1, {"c": "[redacted]"}]}}"#),
            (
                r#"{"a": [{"n": 1}, {"n": 2, "m": 3}]}"#,
                &["$.a[*].n"],
                r#"{"a": [{"n": "[redacted]"}, {"n": "[redacted]", "m": 3}]}"#,
            ),
            (
                r#"{"a": {"x": 1, "y": null}, "b": []}"#,
                &["$.a.*"],
                r#"{"a": {"x": "[redacted]", "y": "[redacted]"}, "b": []}"#,
            ),
            (
                r#"{"e": 1, "a": [{"e": {"e": 2}}], "f": "e"}"#,
                &["$..e"],
                r#"{"e": "[redacted]", "a": [{"e": "[redacted]"}], "f": "e"}"#,
            ),
            (r#"{"a": {"b": {"c": 1}}, "c": 2}"#, &["$..b..c"], r#"{"a": {"b": {"c": "[redacted]"}}, "c": 2}"#),
            (r#"{"a": 1}"#, &["$"], HIDDEN_JSON),
            (r#"{"a": 1}"#, &["$.b", "$.A", "$[0]", "$.a.b"], r#"{"a": 1}"#),
            ("[1, 2]", &["$[1]"], r#"[1, "[redacted]"]"#),
            ("17", &["$.a"], "17"),
            ("{}", &["$.a", "$..b"], "{}"),
        ] {
            assert_eq!(of(text, paths), expected, "{text} {paths:?}");
        }
    }

    #[test]
    fn what_is_left_is_left_byte_for_byte() {
        let long = "1234567890123456789012345678901234567890.10";
        let text = format!("{{ \"n\" : {long} ,\t\"d\":1e400, \"d\":2.0, \"s\":\"\\ud800\", \"x\":1}}");
        assert_eq!(of(&text, &["$.x"]), text.replace("\"x\":1", "\"x\":\"[redacted]\""));
        assert_eq!(of(&text, &["$.y"]), text);
    }

    #[test]
    fn a_key_is_what_it_means_and_every_one_of_its_kind_is_cut() {
        assert_eq!(
            of(r#"{"em\u0061il": 1, "email": 2}"#, &["$.email"]),
            r#"{"em\u0061il": "[redacted]", "email": "[redacted]"}"#
        );
        assert_eq!(of(r#"{"a\"b": 1, "\ud800": 2}"#, &["$['a\"b']"]), r#"{"a\"b": "[redacted]", "\ud800": 2}"#);
        assert_eq!(of(r#"{"\ud800": 2}"#, &["$.*"]), r#"{"\ud800": "[redacted]"}"#);
    }

    #[test]
    fn what_cannot_be_looked_into_is_hidden() {
        let twice = serde_json::to_string(r#"{"email": "a@b.c"}"#).unwrap();
        assert_eq!(of(&twice, &["$.email"]), HIDDEN_JSON);
        assert_eq!(of(&twice, &["$..email"]), HIDDEN_JSON);
        assert_eq!(
            of(&format!("{{\"user\": {twice}, \"n\": \"x\"}}"), &["$.user.email"]),
            r#"{"user": "[redacted]", "n": "x"}"#
        );
        assert_eq!(of("{\"n\": \"x\"}", &["$..email"]), "{\"n\": \"x\"}");
        for no_json in ["", "{", "{\"a\": 1", "a@b.c", "{\"a\": 1} x", "{'a': 1}"] {
            assert_eq!(of(no_json, &["$.b"]), HIDDEN_JSON, "{no_json}");
        }
    }

    #[test]
    fn no_depth_is_too_deep() {
        let deep = format!("{}{{\"e\": 1}}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(of(&deep, &["$..e"]), deep.replace('1', HIDDEN_JSON));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            "[a-c\"\\\\{}é]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("[a-c]{1,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// The same on a tree, by recursion.
    fn reference(value: &mut Value, name: &str) {
        match value {
            Value::Object(map) => map.iter_mut().for_each(|(key, value)| match key == name {
                true => *value = Value::from(super::super::HIDDEN),
                false => reference(value, name),
            }),
            Value::Array(items) => items.iter_mut().for_each(|item| reference(item, name)),
            Value::String(text) if text.trim_start().starts_with(['{', '[', '"']) => {
                *value = Value::from(super::super::HIDDEN)
            }
            _ => {}
        }
    }

    proptest! {
        #[test]
        fn at_any_depth_it_cuts_what_a_walk_over_the_tree_would(value in any_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
            let mut expected = value;
            reference(&mut expected, "a");
            let found: Value = serde_json::from_str(&of(&text, &["$..a"])).unwrap();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_text_panics(text in "[\\[\\]{}\",:a0\\\\é ]{0,30}") {
            of(&text, &["$..a", "$.a[0].*"]);
        }
    }
}
