//! A JSON path: the part of RFC 9535 that names places and does not compute.
//!
//! `$` is the whole payload, `.name` and `['name']` a member, `.*` and `[*]` all members or elements, `[0]` an element, `..` in
//! front of one of these the same at any depth. In front of it all may stand an aggregate type: `User: $.email`.

use std::fmt;
use std::str::FromStr;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    aggregate_type: Option<String>,
    pub(super) steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// After `..`: here, or anywhere below.
    pub(super) anywhere: bool,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Any,
    Name(String),
    Element(usize),
}

impl Path {
    /// Whether it is for payloads of this aggregate type.
    pub fn is_of(&self, aggregate_type: &str) -> bool {
        self.aggregate_type.as_deref().is_none_or(|kind| kind == aggregate_type)
    }

    /// One member of an object; `None`: all of them.
    pub(super) fn member(name: Option<&str>) -> Path {
        let what = name.map_or(What::Any, |name| What::Name(name.to_owned()));
        Path { aggregate_type: None, steps: vec![Step { anywhere: false, what }] }
    }
}

impl FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Path, String> {
        let (aggregate_type, path) = match text.starts_with('$') {
            true => (None, text),
            false => of_type(text).ok_or_else(|| {
                format!("{text:?} is no path: it begins with $, as in \"$.email\" or \"User: $.email\"")
            })?,
        };
        let mut steps = Vec::new();
        let mut rest = &path[1..];
        while !rest.is_empty() {
            let (step, after) = step(rest).map_err(|why| format!("{text:?}: {why}"))?;
            steps.push(step);
            rest = after;
        }
        Ok(Path { aggregate_type: aggregate_type.map(str::to_owned), steps })
    }
}

/// `User: $.email`. The type may have colons itself.
fn of_type(text: &str) -> Option<(Option<&str>, &str)> {
    text.match_indices(':').find_map(|(at, _)| {
        let (kind, path) = (&text[..at], text[at + 1..].trim_start());
        (path.starts_with('$') && !kind.is_empty()).then_some((Some(kind), path))
    })
}

fn step(text: &str) -> Result<(Step, &str), String> {
    let (anywhere, text) = match text.strip_prefix("..") {
        Some(rest) if rest.starts_with('[') => (true, rest),
        // As after a single dot.
        Some(_) => (true, &text[1..]),
        None => (false, text),
    };
    let (what, rest) = match text.strip_prefix('.') {
        Some(rest) => name(rest)?,
        None => brackets(text)?,
    };
    Ok((Step { anywhere, what }, rest))
}

fn name(text: &str) -> Result<(What, &str), String> {
    if let Some(rest) = text.strip_prefix('*') {
        return Ok((What::Any, rest));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-') || !c.is_ascii();
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    match end {
        0 => Err(format!("a name is expected after the dot, not {:?}; other keys are written ['like this']", text)),
        _ => Ok((What::Name(text[..end].to_owned()), &text[end..])),
    }
}

fn brackets(text: &str) -> Result<(What, &str), String> {
    const KNOWN: &str = "only .name, ['name'], .*, [*], [0] and .. before one of these are known here";
    let inner = text.strip_prefix('[').ok_or_else(|| format!("{text:?} is not understood: {KNOWN}"))?;
    let (what, rest) = match inner.chars().next() {
        Some('*') => (What::Any, &inner[1..]),
        Some(quote @ ('\'' | '"')) => quoted(&inner[1..], quote)?,
        _ => {
            let end = inner.find(|c: char| !c.is_ascii_digit()).unwrap_or(inner.len());
            let number = inner[..end].parse().map_err(|_| format!("{text:?} is not understood: {KNOWN}"))?;
            (What::Element(number), &inner[end..])
        }
    };
    let rest = rest.strip_prefix(']').ok_or_else(|| format!("{text:?} is not understood: {KNOWN}"))?;
    Ok((what, rest))
}

/// What stands before the closing quote; a backslash takes the next character as it is.
fn quoted(text: &str, quote: char) -> Result<(What, &str), String> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            c if c == quote => return Ok((What::Name(name), &text[at + c.len_utf8()..])),
            c => name.push(c),
        }
    }
    Err(format!("a {quote} is not closed"))
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(kind) = &self.aggregate_type {
            write!(f, "{kind}: ")?;
        }
        f.write_str("$")?;
        for step in &self.steps {
            if step.anywhere {
                f.write_str("..")?;
            }
            match &step.what {
                What::Any => f.write_str("[*]")?,
                What::Element(n) => write!(f, "[{n}]")?,
                What::Name(name) => write!(f, "['{}']", name.replace('\\', "\\\\").replace('\'', "\\'"))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_is_read_and_shown_in_one_form() {
        for (text, expected) in [
            ("$", "$"),
            ("$.email", "$['email']"),
            ("$.a-b.größe", "$['a-b']['größe']"),
            ("$.*", "$[*]"),
            ("$.phones[*].number", "$['phones'][*]['number']"),
            ("$[0]['a.b'][\"it's\"]", "$[0]['a.b']['it\\'s']"),
            ("$..email", "$..['email']"),
            ("$..[0]..*", "$..[0]..[*]"),
            ("User: $.email", "User: $['email']"),
            ("App::User:$.email", "App::User: $['email']"),
        ] {
            let path: Path = text.parse().unwrap();
            assert_eq!(path.to_string(), expected);
            assert_eq!(path.to_string().parse(), Ok(path));
        }
        let path: Path = "User: $.email".parse().unwrap();
        assert!(path.is_of("User") && !path.is_of("user") && !path.is_of("Order"));
    }

    #[test]
    fn what_is_no_path_is_refused_with_what_is_known() {
        for (text, why) in [
            ("", "begins with $"),
            ("email", "begins with $"),
            (": $.a", "begins with $"),
            ("$email", "only .name"),
            ("$.", "a name is expected"),
            ("$. email", "a name is expected"),
            ("$..", "a name is expected"),
            ("$...a", "a name is expected"),
            ("$[-1]", "only .name"),
            ("$[0:2]", "only .name"),
            ("$[?@.a]", "only .name"),
            ("$['a','b']", "only .name"),
            ("$['a", "not closed"),
            ("$[0", "only .name"),
            ("$[99999999999999999999999]", "only .name"),
        ] {
            let error = text.parse::<Path>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(\\PC|\\$|\\.|\\[|\\]|'|\\*|\\\\){0,20}") {
            if let Ok(path) = text.parse::<Path>() {
                prop_assert_eq!(path.to_string().parse::<Path>(), Ok(path));
            }
        }
    }
}
