//! The kinds of values: how each is written, checked and shown.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use toml::de::DeValue;
use tracing_subscriber::EnvFilter;

use super::problem::{nearest, one_of};
use super::{DatabaseUrl, TableName, Webhook, names, webhook};
use crate::redact;

/// A value before its key's kind has looked at it.
pub(super) enum Scalar<'a> {
    /// From a variable, a flag or a file: it has no type yet.
    Bare(&'a str),
    /// A TOML string.
    Text(&'a str),
    /// A TOML integer; `None`: beyond 64 bits.
    Integer(Option<i64>),
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML list.
    List(Vec<Scalar<'a>>),
    /// Something that no key takes.
    Other(&'static str),
}

impl<'a> Scalar<'a> {
    pub(super) fn of(value: &'a DeValue<'_>) -> Scalar<'a> {
        match value {
            DeValue::String(text) => Scalar::Text(text),
            DeValue::Integer(number) => Scalar::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()),
            DeValue::Boolean(truth) => Scalar::Boolean(*truth),
            DeValue::Float(_) => Scalar::Other("a number with a fraction"),
            DeValue::Datetime(_) => Scalar::Other("a date"),
            DeValue::Array(items) => Scalar::List(items.iter().map(|item| Scalar::of(item.get_ref())).collect()),
            DeValue::Table(_) => Scalar::Other("a table"),
        }
    }

    /// As it was written, for messages.
    pub(super) fn found(&self) -> String {
        match self {
            Scalar::Bare(text) => text.chars().take(60).collect(),
            Scalar::Text(text) => quoted(&text.chars().take(60).collect::<String>()),
            Scalar::Integer(Some(number)) => number.to_string(),
            Scalar::Integer(None) => "a number beyond 64 bits".to_owned(),
            Scalar::Boolean(truth) => truth.to_string(),
            Scalar::List(_) => "a list".to_owned(),
            Scalar::Other(what) => (*what).to_owned(),
        }
    }

    fn text(&self) -> Option<&'a str> {
        match self {
            Scalar::Bare(text) | Scalar::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number, whether as one or (as by accident) as text.
    fn number(&self) -> Option<i64> {
        match self {
            Scalar::Integer(number) => *number,
            other => other.text()?.trim().parse().ok(),
        }
    }
}

/// A basic TOML string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Why a value is not what its key takes.
#[derive(Debug)]
pub(super) struct Wrong {
    /// Continues "`key` is value: ".
    pub(super) why: String,
    /// A value to write instead, as TOML writes it; `None`: any of the kind, such as the default.
    pub(super) instead: Option<String>,
}

impl Wrong {
    fn new(why: impl Into<String>) -> Wrong {
        Wrong { why: why.into(), instead: None }
    }
}

/// What a key takes.
pub(super) trait Kind {
    type Value;
    /// Whether a message may show what was found.
    const SECRET: bool = false;
    fn parse(&self, found: &Scalar<'_>) -> Result<Self::Value, Wrong>;
    /// As TOML would write it, without secrets.
    fn show(&self, value: &Self::Value) -> String;
}

/// A whole number.
pub(super) struct Number<T>(pub(super) RangeInclusive<T>);

impl<T: Copy + Into<i64> + TryFrom<i64> + ToString> Kind for Number<T> {
    type Value = T;

    fn parse(&self, found: &Scalar<'_>) -> Result<T, Wrong> {
        let (low, high): (i64, i64) = ((*self.0.start()).into(), (*self.0.end()).into());
        let inside = |number: i64| (low..=high).contains(&number);
        let number = found.number().filter(|number| inside(*number)).and_then(|number| T::try_from(number).ok());
        match (found, number) {
            (Scalar::Text(text), Some(_)) => Err(Wrong {
                why: "a number is written without quotes".to_owned(),
                instead: Some(text.trim().to_owned()),
            }),
            (_, Some(number)) => Ok(number),
            (_, None) => Err(Wrong::new(format!("it must be a whole number from {low} to {high}"))),
        }
    }

    fn show(&self, value: &T) -> String {
        value.to_string()
    }
}

/// A duration with its unit.
pub(super) struct Time(pub(super) RangeInclusive<Duration>);

impl Kind for Time {
    type Value = Duration;

    fn parse(&self, found: &Scalar<'_>) -> Result<Duration, Wrong> {
        if let Some(number) = found.number() {
            return Err(Wrong {
                why: "a duration needs its unit".to_owned(),
                instead: Some(format!("\"{}s\"", number.max(0))),
            });
        }
        let (low, high) = (show_duration(*self.0.start()), show_duration(*self.0.end()));
        let expected =
            || Wrong::new(format!("it must be a duration from {low} to {high}, such as \"250ms\", \"30s\" or \"7d\""));
        let time = found.text().and_then(|text| humantime::parse_duration(text).ok()).ok_or_else(expected)?;
        if self.0.contains(&time) { Ok(time) } else { Err(expected()) }
    }

    fn show(&self, value: &Duration) -> String {
        quoted(&show_duration(*value))
    }
}

/// In the largest unit that gives a whole number.
pub(super) fn show_duration(time: Duration) -> String {
    const UNITS: [(u128, &str); 6] = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ];
    let nanos = time.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    match UNITS.into_iter().find(|(unit, _)| nanos.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", nanos / unit),
        None => format!("{nanos}ns"),
    }
}

/// A number of bytes with its unit.
pub(super) struct Size(pub(super) RangeInclusive<u64>);

impl Kind for Size {
    type Value = u64;

    fn parse(&self, found: &Scalar<'_>) -> Result<u64, Wrong> {
        if let Some(number) = found.number() {
            return Err(Wrong {
                why: "a size needs its unit".to_owned(),
                instead: Some(quoted(&show_size(number.max(1).unsigned_abs()))),
            });
        }
        let (low, high) = (show_size(*self.0.start()), show_size(*self.0.end()));
        let expected = || Wrong::new(format!("it must be a size from {low} to {high}, such as \"16MiB\""));
        let size = found.text().and_then(|text| text.parse::<ByteSize>().ok()).ok_or_else(expected)?.as_u64();
        if self.0.contains(&size) { Ok(size) } else { Err(expected()) }
    }

    fn show(&self, value: &u64) -> String {
        quoted(&show_size(*value))
    }
}

fn show_size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.into_iter().find(|(unit, _)| bytes != 0 && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

/// True or false.
pub(super) struct Truth;

impl Kind for Truth {
    type Value = bool;

    fn parse(&self, found: &Scalar<'_>) -> Result<bool, Wrong> {
        match found {
            Scalar::Boolean(truth) => Ok(*truth),
            Scalar::Bare("true") => Ok(true),
            Scalar::Bare("false") => Ok(false),
            _ => Err(Wrong::new("it must be true or false, without quotes")),
        }
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// One of a few words.
pub(super) struct Word<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Kind for Word<T> {
    type Value = T;

    fn parse(&self, found: &Scalar<'_>) -> Result<T, Wrong> {
        let words = || self.0.iter().map(|(word, _)| *word);
        let text = found.text().unwrap_or_default();
        match self.0.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(*value),
            None => Err(Wrong {
                why: format!("it must be {}", one_of(words())),
                instead: nearest(text, words()).or(words().next()).map(quoted),
            }),
        }
    }

    fn show(&self, value: &T) -> String {
        quoted(self.0.iter().find(|(_, known)| known == value).map_or("", |(word, _)| word))
    }
}

/// Text that a function of its own understands.
pub(super) struct Text<T> {
    pub(super) parse: fn(&str) -> Result<T, String>,
    pub(super) show: fn(&T) -> String,
}

impl<T> Kind for Text<T> {
    type Value = T;

    fn parse(&self, found: &Scalar<'_>) -> Result<T, Wrong> {
        let text = found.text().ok_or_else(|| Wrong {
            why: "it must be text, in quotes".to_owned(),
            instead: match found {
                Scalar::Integer(Some(_)) | Scalar::Boolean(_) => Some(quoted(&found.found())),
                _ => None,
            },
        })?;
        (self.parse)(text).map_err(Wrong::new)
    }

    fn show(&self, value: &T) -> String {
        quoted(&(self.show)(value))
    }
}

/// A name as the catalogue shows it: of a column, a schema.
pub(super) const NAME: Text<String> = Text { parse: names::check_name, show: String::clone };

/// A word in a column.
pub(super) const PHRASE: Text<String> = Text {
    parse: |text| match text {
        "" => Err("it is empty".to_owned()),
        text if text.trim() != text || text.contains(char::is_control) => {
            Err("it has a space at its end, or a control character".to_owned())
        }
        text => Ok(text.to_owned()),
    },
    show: String::clone,
};

/// A table of the legacy database.
pub(super) const TABLE: Text<TableName> =
    Text { parse: |text| TableName::parse(text, "public"), show: TableName::to_string };

/// A list of values of one kind. A variable holds them with commas between them, or as TOML writes a list.
pub(super) struct List<K>(pub(super) K);

impl<K: Kind> Kind for List<K> {
    type Value = Vec<K::Value>;

    fn parse(&self, found: &Scalar<'_>) -> Result<Vec<K::Value>, Wrong> {
        match found {
            Scalar::List(items) => items.iter().map(|item| self.0.parse(item)).collect(),
            Scalar::Bare(text) if text.trim_start().starts_with('[') => {
                let table = format!("list = {text}");
                let list = toml::de::DeTable::parse(&table).ok();
                match list.as_ref().and_then(|table| Some(table.get_ref().get("list")?.get_ref())) {
                    Some(value @ DeValue::Array(_)) => self.parse(&Scalar::of(value)),
                    _ => Err(Wrong::new("it begins like a list, but TOML does not understand it as one")),
                }
            }
            Scalar::Bare(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.map(|item| self.0.parse(&Scalar::Bare(item))).collect()
            }
            _ => Err(Wrong::new("it must be a list")),
        }
    }

    fn show(&self, value: &Vec<K::Value>) -> String {
        format!("[{}]", value.iter().map(|item| self.0.show(item)).collect::<Vec<_>>().join(", "))
    }
}

/// A place in payloads.
pub(super) const PATH: Text<redact::Path> = Text { parse: str::parse, show: redact::Path::to_string };

/// A column of a table; its schema may depend on another key.
pub(super) const COLUMN: Text<String> =
    Text { parse: |text| names::column(text, "public").map(|_| text.to_owned()), show: String::clone };

/// An address to listen on.
pub(super) const ADDRESS: Text<SocketAddr> = Text {
    parse: |text| {
        text.parse()
            .map_err(|_| "it must be an IP address and a port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"".to_owned())
    },
    show: SocketAddr::to_string,
};

/// A file, by its path; `""`: none. What was found is not shown: it may be what the file should hold.
pub(super) struct PemFile;

impl Kind for PemFile {
    type Value = Option<PathBuf>;
    const SECRET: bool = true;

    fn parse(&self, found: &Scalar<'_>) -> Result<Option<PathBuf>, Wrong> {
        let wrong = |why: &str| Wrong { why: why.to_owned(), instead: Some(quoted("/etc/outbox-relay/tls/file.pem")) };
        match found.text() {
            None => Err(wrong("it must be the path of a file, in quotes")),
            Some("") => Ok(None),
            Some(text) if text.contains("-----") => Err(wrong("it holds what the file should: name the file")),
            Some(text) if text.contains(char::is_control) => Err(wrong("it is no path of a file")),
            Some(text) => Ok(Some(PathBuf::from(text))),
        }
    }

    fn show(&self, value: &Option<PathBuf>) -> String {
        quoted(&value.as_ref().map_or_else(String::new, |path| path.display().to_string()))
    }
}

/// A machine's name or address, as a browser would show it.
pub(super) const HOST: Text<String> = Text {
    parse: |text| {
        let is_name =
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if is_name || text.parse::<std::net::IpAddr>().is_ok() {
            Ok(text.trim_end_matches('.').to_ascii_lowercase())
        } else {
            Err("it must be a name alone, without https:// and without a port, such as \"relay.example\"".to_owned())
        }
    },
    show: String::clone,
};

/// A filter of `tracing`.
pub(super) const FILTER: Text<String> = Text {
    // Beyond ASCII, there are texts that make the library panic.
    parse: |text| match text.is_ascii().then(|| EnvFilter::try_new(text)) {
        None => Err("a log filter has no characters beyond ASCII".to_owned()),
        Some(Ok(_)) => Ok(text.to_owned()),
        Some(Err(error)) => Err(format!("it is not a log filter ({error})")),
    },
    show: String::clone,
};

/// A connection string.
pub(super) struct Url;

impl Kind for Url {
    type Value = DatabaseUrl;
    const SECRET: bool = true;

    fn parse(&self, found: &Scalar<'_>) -> Result<DatabaseUrl, Wrong> {
        let wrong = |why| Wrong { why, instead: Some(quoted("postgres://user@host:5432/database")) };
        let text = found.text().ok_or_else(|| wrong("it must be text, in quotes".to_owned()))?;
        DatabaseUrl::parse(text).map_err(wrong)
    }

    fn show(&self, value: &DatabaseUrl) -> String {
        quoted(&value.to_string())
    }
}

/// Where alerts are posted; empty: nowhere.
pub(super) struct Hook;

impl Kind for Hook {
    type Value = Option<Webhook>;
    const SECRET: bool = true;

    fn parse(&self, found: &Scalar<'_>) -> Result<Option<Webhook>, Wrong> {
        let wrong = |why| Wrong { why, instead: Some(quoted("https://hooks.slack.com/services/…")) };
        match found.text().map(str::trim) {
            None => Err(wrong("it must be text, in quotes".to_owned())),
            Some("") => Ok(None),
            Some(text) => Webhook::parse(text).map(Some).map_err(wrong),
        }
    }

    fn show(&self, value: &Option<Webhook>) -> String {
        quoted(&value.as_ref().map_or(String::new(), Webhook::to_string))
    }
}

/// The address of the page, for people.
pub(super) const PAGE: Text<String> = Text { parse: webhook::page, show: String::clone };

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn time() -> Time {
        Time(Duration::ZERO..=36_500 * DAY)
    }

    #[test]
    fn a_bare_number_is_no_duration_and_no_size_and_the_remedy_writes_the_unit() {
        for found in [Scalar::Integer(Some(30)), Scalar::Text("30"), Scalar::Bare("30")] {
            assert_eq!(time().parse(&found).unwrap_err().instead.as_deref(), Some("\"30s\""));
        }
        let size = Size(1..=1 << 30).parse(&Scalar::Integer(Some(16 << 20))).unwrap_err();
        assert_eq!(size.instead.as_deref(), Some("\"16MiB\""));
    }

    #[test]
    fn values_are_read_from_toml_and_from_text() {
        assert_eq!(time().parse(&Scalar::Text("1h 30m")).unwrap(), Duration::from_secs(5400));
        assert_eq!(time().parse(&Scalar::Bare("0s")).unwrap(), Duration::ZERO);
        assert_eq!(Size(1..=1 << 30).parse(&Scalar::Bare("16MiB")).unwrap(), 16 << 20);
        assert_eq!(Number(1..=256u16).parse(&Scalar::Bare("4")).unwrap(), 4);
        assert_eq!(Number(1..=256u16).parse(&Scalar::Integer(Some(4))).unwrap(), 4);
        assert!(Truth.parse(&Scalar::Bare("true")).unwrap());
        assert!(!Truth.parse(&Scalar::Boolean(false)).unwrap());
    }

    #[test]
    fn values_outside_their_range_or_of_another_type_are_refused() {
        for wrong in [
            Scalar::Integer(Some(0)),
            Scalar::Integer(Some(257)),
            Scalar::Integer(None),
            Scalar::Bare("x"),
            Scalar::Text("4"),
        ] {
            assert!(Number(1..=256u16).parse(&wrong).is_err());
        }
        assert!(Time(DAY..=2 * DAY).parse(&Scalar::Text("3d")).is_err());
        assert!(Size(2..=3).parse(&Scalar::Text("1B")).is_err());
        assert!(Truth.parse(&Scalar::Text("true")).is_err());
        assert!(Truth.parse(&Scalar::Bare("yes")).is_err());
        assert!(FILTER.parse(&Scalar::Text("info,outbox_relay=loud")).is_err());
        assert!(FILTER.parse(&Scalar::Text(" nಖ[5")).is_err());
        assert!(NAME.parse(&Scalar::Integer(Some(1))).is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(nanos in any::<u64>(), bytes in 1u64..=1 << 40) {
            let nanos = Duration::from_nanos(nanos);
            prop_assert_eq!(humantime::parse_duration(&show_duration(nanos)).unwrap(), nanos);
            prop_assert_eq!(show_size(bytes).parse::<ByteSize>().unwrap().as_u64(), bytes);
        }

        #[test]
        fn any_text_is_a_value_within_its_range_or_is_refused(
            text in "([-+0-9.,eE_ ]{0,8}(ns|us|ms|s|m|h|d|w|y|B|KB|KiB|MiB|GiB|TiB|PB|EiB)?){0,3}|\\PC{0,12}|[-a-z0-9:.\\[\\]=,*]{0,16}", number in any::<i64>()
        ) {
            let (times, sizes) = (Duration::ZERO..=36_500 * DAY, 1..=1 << 40);
            for found in [Scalar::Bare(&text), Scalar::Text(&text), Scalar::Integer(Some(number)), Scalar::Integer(None)] {
                if let Ok(time) = Time(times.clone()).parse(&found) {
                    prop_assert!(times.contains(&time));
                }
                if let Ok(size) = Size(sizes.clone()).parse(&found) {
                    prop_assert!(sizes.contains(&size));
                }
                if let Ok(n) = Number(1..=256u16).parse(&found) {
                    prop_assert!((1..=256).contains(&n));
                }
                let _ = Truth.parse(&found).is_ok();
                let _ = ADDRESS.parse(&found).is_ok();
                let _ = FILTER.parse(&found).is_ok();
                let _ = TABLE.parse(&found).is_ok();
                if let Ok(name) = NAME.parse(&found) {
                    prop_assert!(!name.is_empty() && name.len() <= 63);
                }
                if let Err(wrong) = Url.parse(&found) {
                    prop_assert!(text.len() < 4 || !wrong.why.contains(&text), "{}", wrong.why);
                }
            }
        }
    }
}
